// Records which slots each step of a real model attends: bench/replacement.cpp replays it.
//
//   bench_llama_trace MODEL PROFILE TEXT OUT [TOKENS [STEPS [ROWS [DENSE_ROWS]]]]
//
// llama.cpp computes the model, with attention to everything; the keys and queries it makes are
// given to sessions of Shoal's beside it, which select by their labels. The text is forced: TOKENS
// (8,128) of it are the prompt, the next STEPS (48) are decoded one by one. Sessions that select a
// quarter and a half of the ROWS (512) say how well each slot scored. Dense layers select
// DENSE_ROWS (8,192); with fewer tokens they attend everything.
#include <algorithm>
#include <cstring>
#include <memory>

#include "bench/selection_trace.hpp"
#include "llama.h"
#include "shoal/shoal.hpp"

namespace shoal::bench {
namespace {

constexpr uint32_t kBatch = 512;

[[noreturn]] void fail(const std::string& text) {
    std::fprintf(stderr, "bench_llama_trace: %s\n", text.c_str());
    std::exit(1);
}
void check(const Status& status) {
    if (!status) fail(status.message());
}

struct Args {
    std::string model, profile, text, out;
    uint32_t tokens = 8128;
    uint32_t steps = 48;
    uint32_t rows = 512;
    uint32_t dense_rows = 8192;
};

// Keys and queries of one llama_decode, after RoPE: [layer][token, head, dim].
struct Watched {
    std::vector<std::vector<float>> k, q;

    static bool watch(ggml_tensor* tensor, bool ask, void* data) {
        const std::string name = tensor->name;
        const bool is_k = name.rfind("Kcur-", 0) == 0;
        const bool wanted = tensor->op == GGML_OP_ROPE && (is_k || name.rfind("Qcur-", 0) == 0);
        if (ask || !wanted) return wanted || !ask;
        auto& watched = *static_cast<Watched*>(data);
        const size_t layer = std::stoul(name.substr(5));
        std::vector<float>& rows = (is_k ? watched.k : watched.q)[layer];
        rows.resize(static_cast<size_t>(ggml_nelements(tensor)));
        ggml_backend_tensor_get(tensor, rows.data(), 0, rows.size() * sizeof(float));
        return true;
    }
};

class Engine {
public:
    explicit Engine(const Args& args) {
        llama_backend_init();
        llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
        model_ = llama_model_load_from_file(args.model.c_str(), llama_model_default_params());
        if (model_ == nullptr) fail(args.model + ": llama.cpp could not load it");
        llama_context_params params = llama_context_default_params();
        params.n_ctx = args.tokens + args.steps;
        params.n_batch = params.n_ubatch = kBatch;
        params.n_threads = params.n_threads_batch = 2;
        params.cb_eval = Watched::watch;
        params.cb_eval_user_data = &watched;
        context_ = llama_init_from_model(model_, params);
        if (context_ == nullptr) fail("llama.cpp could not make a context");
        watched.k.resize(static_cast<size_t>(llama_model_n_layer(model_)));
        watched.q.resize(watched.k.size());
    }
    ~Engine() {
        llama_free(context_);
        llama_model_free(model_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    ModelShape shape() const {
        const auto dim = static_cast<uint32_t>(llama_model_n_embd(model_) /
                                               llama_model_n_head(model_));
        ModelShape shape;
        shape.layers.resize(watched.k.size(),
                            {LayerKind::full, static_cast<uint32_t>(llama_model_n_head_kv(model_)),
                             dim, dim, 0});
        shape.q_head_count = static_cast<uint32_t>(llama_model_n_head(model_));
        shape.rows = {DType::f16, DType::f16};
        return shape;
    }
    std::vector<llama_token> tokens_of(const std::string& path, uint32_t count) const {
        std::ifstream file(path, std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        std::vector<llama_token> tokens(text.size() + 16);
        const int32_t made = llama_tokenize(
            llama_model_get_vocab(model_), text.data(), static_cast<int32_t>(text.size()),
            tokens.data(), static_cast<int32_t>(tokens.size()), true, false);
        if (made < 0 || static_cast<uint32_t>(made) < count) {
            fail(path + ": fewer than " + std::to_string(count) + " tokens");
        }
        tokens.resize(count);
        return tokens;
    }
    void decode(llama_token* tokens, uint32_t n) {
        if (llama_decode(context_, llama_batch_get_one(tokens, static_cast<int32_t>(n))) != 0) {
            fail("llama_decode failed");
        }
    }

    Watched watched;

private:
    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
};

// Values are zero: what is selected follows from keys and queries.
class Chooser {
public:
    Chooser(const Args& args, const ModelShape& shape, uint32_t rows) : shape_(shape) {
        Config config;
        config.budget.rows = rows;
        config.budget.dense_rows = args.dense_rows;
        config.profile.path = args.profile;
        SessionOptions options;
        options.slots_per_store = args.tokens + args.steps;
        options.queries_per_step_max = kBatch;
        auto session = Session::create(config, shape, options);
        if (!session) fail(session.status().message());
        session_ = std::move(*session);
        store_ = *session_->open();
        zeros_.resize(size_t{kBatch} * shape.layers[0].kv_head_count * shape.layers[0].v_head_dim);
    }

    void put(const Watched& watched, uint32_t n) {
        std::vector<int64_t> slots(n);
        for (uint32_t i = 0; i < n; ++i) slots[i] = count_ + i;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            check(session_->put({l}, store_, slots, tensor(watched.k[l], n), tensor(zeros_, n)));
        }
        count_ += n;
    }

    // One token; returns what each layer attended, nothing where that was everything.
    std::vector<std::vector<uint32_t>> step(const Watched& watched) {
        const uint32_t offsets[2] = {0, 1};
        const SlotRange seen[1] = {{0, ++count_}};
        StepInput input;
        input.stores = {&store_, 1};
        input.token_offsets = offsets;
        check(session_->begin_step(input));
        std::vector<std::vector<uint32_t>> attended;
        std::vector<float> out(watched.q[0].size());
        const uint32_t dim = shape_.layers[0].v_head_dim;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            check(session_->append({l}, tensor(watched.k[l], 1), tensor(zeros_, 1)));
            const ConstTensor q{reinterpret_cast<const std::byte*>(watched.q[l].data()), DType::f32,
                                1, shape_.q_head_count, dim, watched.q[l].size() * 4,
                                size_t{dim} * 4};
            check(session_->attend({l}, q, {offsets, offsets, seen, count_},
                                   {out.data(), 1, shape_.q_head_count, dim, out.size() * 4,
                                    size_t{dim} * 4}));
            attended.push_back(session_->attended_slots({l}, 0, 0));
            if (attended.back().size() == count_) attended.back().clear();
        }
        check(session_->end_step());
        return attended;
    }

private:
    ConstTensor tensor(const std::vector<float>& rows, uint32_t n) const {
        const LayerShape& s = shape_.layers[0];
        return {reinterpret_cast<const std::byte*>(rows.data()), DType::f32, n, s.kv_head_count,
                s.k_head_dim, size_t{s.kv_head_count} * s.k_head_dim * 4,
                size_t{s.k_head_dim} * 4};
    }

    ModelShape shape_;
    std::unique_ptr<Session> session_;
    StoreId store_;
    uint32_t count_ = 0;
    std::vector<float> zeros_;
};

bool has(const std::vector<uint32_t>& slots, uint32_t slot) {
    return std::binary_search(slots.begin(), slots.end(), slot);
}

void record(const Args& args) {
    Engine engine(args);
    const ModelShape shape = engine.shape();
    std::vector<llama_token> tokens = engine.tokens_of(args.text, args.tokens + args.steps);
    std::vector<std::unique_ptr<Chooser>> choosers;
    for (const uint32_t rows : {args.rows / 4, args.rows / 2, args.rows}) {
        choosers.push_back(std::make_unique<Chooser>(args, shape, rows));
    }
    for (uint32_t begin = 0; begin < args.tokens; begin += kBatch) {
        const uint32_t n = std::min(kBatch, args.tokens - begin);
        engine.decode(tokens.data() + begin, n);
        for (const auto& chooser : choosers) chooser->put(engine.watched, n);
    }
    SelectionTrace trace;
    trace.slot_count = args.tokens + 1;
    trace.layer_count = static_cast<uint32_t>(shape.layers.size());
    trace.step_count = args.steps;
    trace.rows = args.rows;
    const Config::Safety safety;
    for (uint32_t i = 0; i < args.steps; ++i) {
        engine.decode(tokens.data() + args.tokens + i, 1);
        const auto quarter = choosers[0]->step(engine.watched);
        const auto half = choosers[1]->step(engine.watched);
        const auto all = choosers[2]->step(engine.watched);
        for (uint32_t l = 0; l < trace.layer_count; ++l) {
            SelectionTrace::Set set;
            set.everything = all[l].empty();
            for (const uint32_t slot : all[l]) {
                const bool safe = slot < safety.sinks ||
                                  slot + safety.window >= args.tokens + i + 1;
                const int rank = has(quarter[l], slot) ? 0 : has(half[l], slot) ? 1 : 2;
                set.slots.push_back({slot, static_cast<uint8_t>(safe ? 3 : rank)});
            }
            trace.sets.push_back(std::move(set));
        }
    }
    write_trace(trace, args.out);
    std::printf("%s: %u steps of %u layers at %u tokens, %u rows\n", args.out.c_str(), args.steps,
                trace.layer_count, args.tokens, args.rows);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    if (argc < 5 || argc > 9) {
        std::fprintf(stderr,
                     "usage: %s MODEL PROFILE TEXT OUT [TOKENS [STEPS [ROWS [DENSE_ROWS]]]]\n",
                     argv[0]);
        return 2;
    }
    shoal::bench::Args args{argv[1], argv[2], argv[3], argv[4]};
    uint32_t* const numbers[] = {&args.tokens, &args.steps, &args.rows, &args.dense_rows};
    for (int i = 5; i < argc; ++i) {
        *numbers[i - 5] = static_cast<uint32_t>(std::max(1, std::atoi(argv[i])));
    }
    if (args.rows < 4) args.rows = 4;
    shoal::bench::record(args);
}
