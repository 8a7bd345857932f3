// Writes the seeds of the fuzz target of saved sequences: usage: fuzz_make_seeds FOLDER
#include <cstdio>
#include <fstream>
#include <string>

#include "tests/runtime/saved_support.hpp"

namespace {

void write_seed(const std::string& folder, const std::string& name,
                shoal::testing::PlainSequence& sequence) {
    const std::string path = folder + "/" + name;
    const shoal::Status saved = sequence.save(path);
    if (!saved) {
        std::fprintf(stderr, "%s\n", saved.message().c_str());
        std::exit(1);
    }
    const std::string bytes = shoal::testing::read_file(path);
    for (const char repairs : {'\0', '\1', '\2'}) {
        shoal::testing::write_file(path + "-" + std::to_string(int{repairs}), repairs + bytes);
    }
    (void)unlink(path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: fuzz_make_seeds FOLDER\n");
        return 2;
    }
    using shoal::testing::PlainSequence;
    using shoal::testing::tiny_shape;
    std::filesystem::create_directories(argv[1]);
    PlainSequence one(tiny_shape(), 1, 1);
    write_seed(argv[1], "one-token", one);
    PlainSequence gaps(tiny_shape(2), 3, 2);
    gaps.order = {2, 0, 1};
    gaps.notes.positions = {5, 6, 7};
    gaps.notes.logits = {1.0F, 2.0F};
    gaps.profile = "{}";
    write_seed(argv[1], "everything", gaps);
    shoal::ModelShape mixed = tiny_shape(3);
    mixed.layers[1] = {shoal::LayerKind::none, 0, 0, 0, 0};
    mixed.layers[2] = {shoal::LayerKind::sliding, 1, 48, 32, 100};
    mixed.rows = {shoal::DType::bf16, shoal::DType::f32};
    PlainSequence sliding(mixed, 2, 3);
    sliding.notes.token_ids.clear();
    write_seed(argv[1], "mixed-layers", sliding);
    return 0;
}
