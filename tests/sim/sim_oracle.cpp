#include "tests/sim/sim_oracle.hpp"

#include <cstdlib>

#include <fmt/format.h>

#include "offload/block_store.hpp"

namespace shoal::sim {

Oracle::Oracle(const Disk& disk, const ModelShape& shape, const Config& config,
               const SessionOptions& options)
    : disk_(disk) {
    const Groups groups(shape, config);
    const FilePlaces places = file_places(groups, options.slots_per_store);
    for (uint32_t store = 0; store < options.store_count_max; ++store) {
        for (const Group& group : groups.all()) {
            Lane lane{fmt::format("store {}, layer {}", store, group.layer),
                      places.of_group[group.index],
                      offload::make_block_layout(group.piece).block_bytes};
            lane.place.offset += store * places.bytes;
            if (group.piece.kv_head_count == 1) {
                lane.name += fmt::format(", KV head {}", group.kv_head_first);
            }
            lane.name += ", block ";
            lanes_.push_back(lane);
        }
    }
}

bool Oracle::find_block(const std::string& message, Place& place) const {
    for (const Lane& lane : lanes_) {
        const size_t at = message.find(lane.name);
        if (at == std::string::npos) continue;
        const uint64_t block = std::strtoull(message.c_str() + at + lane.name.size(), nullptr, 10);
        place = {lane.place.offset + block * lane.place.stride, lane.block_bytes};
        return true;
    }
    return false;
}

std::string Oracle::objection(const Status& refused) const {
    const std::string& said = refused.message();
    const auto says = [&](const char* what) { return said.find(what) != std::string::npos; };
    const std::string text = fmt::format("{}: {}", status_code_name(refused.code()), said);
    Place block;
    if (!find_block(said, block)) return "names no block: " + text;
    const bool stuck = disk_.has_late() || disk_.befell(Fault::late);
    bool explained = false;
    if (refused.code() == StatusCode::corrupt) {
        explained = disk_.is_damaged(block) ||
                    disk_.befell_twice({Fault::corrupt, Fault::misdirected, Fault::error}, block);
    } else if (refused.code() == StatusCode::unavailable) {
        if (says("could not be read from disk")) {
            explained =
                disk_.befell_twice({Fault::corrupt, Fault::misdirected, Fault::error}, block);
        } else if (says("did not answer in time") || says("does not end")) {
            explained = stuck;
        } else if (says("no room for it in RAM")) {
            explained = stuck || disk_.befell(Fault::error) || disk_.befell(Fault::full);
        }
    }
    return explained ? "" : "nothing happened that explains it: " + text;
}

}  // namespace shoal::sim
