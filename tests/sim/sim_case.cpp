#include "tests/sim/sim_case.hpp"

namespace shoal::sim {

DiskPlan random_disk(std::mt19937_64& random) {
    DiskPlan plan;
    plan.seed = random();
    plan.capacity = 1 + static_cast<uint32_t>(random() % 64);
    plan.depth = 1 + static_cast<uint32_t>(random() % 128);
    plan.latency_most_ns = uint64_t{1} << (random() % 20);
    const double chance = 1.0 / static_cast<double>(4 + random() % 200);
    const auto one = static_cast<size_t>(random() % (kFaultKinds + 4));
    for (size_t kind = 1; kind < kFaultKinds; ++kind) {
        if (kind == one) plan.chance[kind] = chance;
        if (one >= kFaultKinds + 2) plan.chance[kind] = chance / 4;
    }
    // What loses nothing may happen all the time.
    if (random() % 2 == 0) {
        for (const Fault fault : {Fault::refused, Fault::short_result, Fault::duplicate,
                                  Fault::foreign}) {
            plan.chance[static_cast<size_t>(fault)] += chance;
        }
    }
    return plan;
}

ModelShape random_shape(std::mt19937_64& random) {
    constexpr uint32_t kDims[] = {32, 64};
    constexpr DType kTypes[] = {DType::f16, DType::bf16, DType::f32};
    ModelShape shape;
    const auto heads = 1 + static_cast<uint32_t>(random() % 2);
    const uint32_t dim = kDims[random() % 2];
    shape.layers.resize(2 + random() % 2, {LayerKind::full, heads, dim, dim, 0});
    shape.q_head_count = heads * (1 + static_cast<uint32_t>(random() % 2));
    const DType type = kTypes[random() % 3];
    shape.rows = {type, type};
    return shape;
}

Config::Prefetch random_prefetch(std::mt19937_64& random) {
    Config::Prefetch prefetch;
    const bool is_any = random() % 3 != 0;
    prefetch.kind = is_any ? static_cast<PrefetchKind>(random() % 5) : PrefetchKind::query;
    prefetch.percent = 100 + static_cast<uint32_t>(random() % 301);
    return prefetch;
}

Config random_config(std::mt19937_64& random) {
    constexpr SelectorKind kKinds[] = {SelectorKind::labels, SelectorKind::labels,
                                       SelectorKind::page_bounds, SelectorKind::hybrid,
                                       SelectorKind::dense};
    Config config;
    config.selector.kind = kKinds[random() % 5];
    config.budget.rows = 1 + static_cast<uint32_t>(random() % 200);
    config.budget.dense_below = 1;
    config.budget.dense_layers = {};
    config.safety = {2, 1 + static_cast<uint32_t>(random() % 40)};
    config.profile.tokens = 256;
    config.host.threads = 1;
    config.host.check_rows = random() % 8 == 0;
    if (random() % 4 == 0) config.host.rows = HostRows::q8;
    config.sharing.kind = static_cast<SharingKind>(random() % 3);
    config.prefetch = random_prefetch(random);
    if (config.sharing.kind == SharingKind::tidal) {
        config.sharing.anchors = {0};
    } else if (random() % 3 == 0) {
        config.budget.dense_layers = {0};
        config.budget.dense_rows = 64 + static_cast<uint32_t>(random() % 512);
    }
    return config;
}

}  // namespace shoal::sim
