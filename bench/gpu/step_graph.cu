// 32 layers of scan, select, resolve, gather on a side stream, attend in one CUDA graph: by stage,
// by miss rate, with and without the weights of Llama-3.1-8B read in between.
//
// The ids that are resolved are synthetic (so that misses are as many as meant); resolve still
// waits for the selection.
#include <algorithm>

#include "bench/gpu/attend_buffers.cuh"
#include "bench/gpu/gather.cuh"
#include "bench/gpu/label_buffers.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"
#include "bench/gpu/resolve_buffers.cuh"
#include "bench/gpu/select_buffers.cuh"

namespace shoal::gpu {
namespace {

enum Stage : uint32_t {
    kWeights = 1,
    kScan = 2,
    kSelect = 4,
    kResolve = 8,
    kGather = 16,
    kAttend = 32,
};
constexpr Stage kStages[] = {kScan, kSelect, kResolve, kGather, kAttend};
constexpr const char* kStageNames[] = {"scan", "select", "resolve", "gather", "attend"};
constexpr uint32_t kAllStages = kScan | kSelect | kResolve | kGather | kAttend;

// Where a layer's weights are read: after its attention (a fetch is waited for), or while its
// fetch runs, as when the selection is known one layer ahead.
enum class Load : uint8_t { none, after, meanwhile };
const char* load_name(Load load) {
    return load == Load::none ? "none" : load == Load::after ? "after attend" : "during fetch";
}

struct StepCase {
    uint32_t misses;
    Load load;
    uint32_t stages;
};

constexpr uint32_t kGatherBlocks = 16;

class Step {
public:
    Step(Context& c, uint32_t token_count, const PinnedArray<uint4>& pinned_rows)
        : context(c), plan(c.plan), tokens(token_count), spans(token_count / kSpanTokens),
          side(Priority::high), host_rows(pinned_rows),
          labels(c, 1, token_count, plan.step_layers, main),
          selection(token_count, plan.step_rows, 1),
          slots(plan.step_layers, log2_of(token_count), plan.step_hot_slots, plan.step_rows),
          attention(c.device, 1, plan.step_rows),
          hot(uint64_t{plan.step_layers} * plan.step_hot_slots * kPieceBytes / 16),
          weights(plan.step_weight_layers * plan.step_weight_bytes / 16), sum(1) {
        labels.set_masks(spans, 1);
        labels.clear();
        sum.fill_bytes(0);
        if (weights.count() != 0) {
            enqueue_fill_rows(c.device, weights.data(), weights.bytes(), 9, main);
        }
        for (uint32_t l = 0; l < plan.step_layers; ++l) {
            forks.push_back(std::make_unique<Event>(Event::Timing::off));
            joins.push_back(std::make_unique<Event>(Event::Timing::off));
        }
        main.wait_idle();
    }

    // Every state as before the first step.
    void reset() {
        slots.clear();
        selection.histogram.fill_bytes(0);
        selection.arrived.fill_bytes(0);
        enqueue_fill_rows(context.device, hot.data(), hot.bytes(), 77, main);
        main.wait_idle();
    }

    // One whole step, so that every stage finds the results of the others, also when it runs alone.
    void prime(uint32_t misses) {
        enqueue({misses, Load::none, kAllStages});
        main.wait_idle();
    }

    void enqueue(const StepCase& c) {
        for (uint32_t layer = 0; layer < plan.step_layers; ++layer) enqueue_layer(c, layer);
        slots.enqueue_advance(main);
    }

    double label_bytes() const { return labels.bytes_of(spans); }
    const std::byte* hot_of(uint32_t layer) const {
        return reinterpret_cast<const std::byte*>(hot.data()) +
               uint64_t{layer} * plan.step_hot_slots * kPieceBytes;
    }
    uint32_t host_mask() const {
        return static_cast<uint32_t>(plan.pinned_bytes / kPieceBytes - 1);
    }

    Context& context;
    const Plan& plan;
    uint32_t tokens;
    uint32_t spans;
    Stream main;
    Stream side;
    const PinnedArray<uint4>& host_rows;
    LabelBuffers labels;
    SelectBuffers selection;
    ResolveBuffers slots;
    AttendBuffers attention;
    DeviceArray<uint4> hot;
    DeviceArray<uint4> weights;
    DeviceArray<uint32_t> sum;

private:
    void enqueue_layer(const StepCase& c, uint32_t layer) {
        if ((c.stages & kScan) != 0) {
            ScanArgs args = labels.args(layer, spans, 1);
            args.scores = selection.scores.data();
            args.histogram = selection.histogram.data();
            launch(main, {labels.grid(spans, 1), kScanThreads}, label_scan<ScanCombine::sum, true>,
                   args);
        }
        if ((c.stages & kSelect) != 0) {
            // Without a scan there is no histogram: the last threshold is the floor.
            SelectArgs args = selection.args(tokens, plan.step_rows, (c.stages & kScan) != 0);
            args.guess = &selection.result.data()->threshold;
            SelectBuffers::enqueue_select(args, 1, main);
        }
        if ((c.stages & kResolve) != 0) {
            ResolveArgs args = slots.args(layer, false, plan.step_rows - c.misses);
            args.selected = &selection.result.data()->count;
            ResolveBuffers::enqueue(args, 1, main);
        }
        const bool fetches = (c.stages & kGather) != 0;
        if (fetches) enqueue_fetch(layer);
        if (c.load == Load::meanwhile) enqueue_weights(layer);
        if (fetches) joins[layer]->hold(main);
        if ((c.stages & kAttend) != 0) {
            attention.enqueue(hot_of(layer), plan.step_hot_slots,
                              slots.slots.data() + size_t{layer} * plan.step_rows, main);
        }
        if (c.load == Load::after) enqueue_weights(layer);
    }
    void enqueue_fetch(uint32_t layer) {
        forks[layer]->record(main);
        forks[layer]->hold(side);
        GatherArgs args;
        args.from = reinterpret_cast<const std::byte*>(host_rows.device_data());
        args.to = reinterpret_cast<std::byte*>(hot.data()) +
                  uint64_t{layer} * plan.step_hot_slots * kPieceBytes;
        args.from_index = slots.miss_from.data() + size_t{layer} * plan.step_rows;
        args.to_index = slots.miss_to.data() + size_t{layer} * plan.step_rows;
        args.count = slots.miss_count.data() + layer;
        args.from_mask = host_mask();
        args.piece_log2 = log2_of(kPieceBytes);
        launch(side, {kGatherBlocks, kGatherThreads}, gather_plain<kGatherThreads>, args);
        joins[layer]->record(side);
    }
    void enqueue_weights(uint32_t layer) {
        if (plan.step_weight_layers == 0) return;
        const uint64_t first = (layer % plan.step_weight_layers) * plan.step_weight_bytes / 16;
        enqueue_read(context.device, weights.data() + first, plan.step_weight_bytes, sum.data(),
                     main);
    }

    std::vector<std::unique_ptr<Event>> forks;
    std::vector<std::unique_ptr<Event>> joins;
};

// The rows, slots and outputs of one layer after `steps` replays, against host memory and ref.
void check_layer(Step& step, uint32_t layer, uint32_t misses, uint32_t steps) {
    const uint32_t k = step.plan.step_rows;
    const std::vector<int32_t> slots = step.slots.slots.download(size_t{layer} * k, k);
    const std::vector<uint4> hot = step.hot.download(
        uint64_t{layer} * step.plan.step_hot_slots * kPieceBytes / 16,
        uint64_t{step.plan.step_hot_slots} * kPieceBytes / 16);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < k; ++i) {
        const uint32_t id =
            synthetic_id(i, k - misses, k, steps - 1, step.slots.token_log2) & step.host_mask();
        const size_t piece = kPieceBytes / 16;
        const bool in_range =
            slots[i] >= 0 && static_cast<uint32_t>(slots[i]) < step.plan.step_hot_slots;
        if (!in_range || std::memcmp(&hot[size_t(slots[i]) * piece],
                                     &step.host_rows[size_t{id} * piece], kPieceBytes) != 0) {
            ++wrong;
        }
    }
    step.context.report.check("step: rows of layer " + std::to_string(layer) + ", " +
                                  std::to_string(misses) + " misses",
                              wrong == 0, std::to_string(wrong) + " of " + std::to_string(k) +
                                              " rows are not the token's");
}

void check_outputs(Step& step, uint32_t misses, uint32_t steps) {
    // Scores, selection and outputs are those of the last layer: it ran last.
    const uint32_t last = step.plan.step_layers - 1;
    const uint32_t k = step.plan.step_rows;
    const std::vector<float> scores = step.selection.scores.download(0, step.tokens);
    const Selection want = select_reference(scores.data(), step.tokens, k);
    step.context.report.check("step: selection", step.selection.slots.download(0, k) == want.slots,
                              std::to_string(k) + " of " + std::to_string(step.tokens));
    std::vector<float> expected(kSpanTokens);
    std::vector<double> sums(kQueryHeads);
    const uint32_t span = step.spans / 2;
    const auto bytes = step.labels.download_span(
        uint64_t{last} * step.spans * step.labels.head_bytes, span);
    scan_reference(step.labels.model, 0, bytes.data(), step.labels.host_masks[span],
                   kernels::Combine::sum, expected.data(), sums.data());
    const ScanError scan = compare_scores(&scores[size_t{span} * kSpanTokens], expected.data(),
                                          kSpanTokens, kernels::Combine::sum);
    step.context.report.check("step: scores", scan.acceptable(), scan.text());
    std::vector<std::byte*> pieces;
    for (uint32_t i = 0; i < k; ++i) {
        const uint32_t id =
            synthetic_id(i, k - misses, k, steps - 1, step.slots.token_log2) & step.host_mask();
        pieces.push_back(reinterpret_cast<std::byte*>(&step.host_rows[0]) +
                         size_t{id} * kPieceBytes);
    }
    const AttendBuffers::Error error = step.attention.compare(0, pieces);
    step.context.report.check("step: attention of the last layer, from host rows",
                              error.acceptable(), error.text());
}

void check_step(Step& step, uint32_t misses) {
    const StepCase c = {misses, Load::none, kAllStages};
    step.reset();
    const Graph graph(step.main, [&] { step.enqueue(c); });
    constexpr uint32_t kSteps = 4;
    for (uint32_t i = 0; i < kSteps; ++i) graph.launch(step.main);
    step.main.wait_idle();
    check_layer(step, 0, misses, kSteps);
    check_layer(step, step.plan.step_layers - 1, misses, kSteps);
    check_outputs(step, misses, kSteps);
}

// Microseconds per layer.
Summary time_step(Step& step, const StepCase& c, bool captured) {
    step.reset();
    step.prime(c.misses);
    Summary us;
    if (captured) {
        us = time_captured(step.context, step.main, 1,
                           [&](cudaStream_t, uint32_t) { step.enqueue(c); });
    } else {
        us = time_stream(step.context, step.main, [&](cudaStream_t) { step.enqueue(c); });
    }
    const double layers = step.plan.step_layers;
    return {us.median / layers, us.p10 / layers, us.p90 / layers, us.count};
}

// What each stage adds to the stages before it, and what it takes alone: the difference is overlap
// and launch gaps.
void time_stages(Step& step, uint32_t misses) {
    const std::string tokens = std::to_string(step.tokens);
    double before = 0;
    double alone_sum = 0;
    bool all_alone = true;
    uint32_t stages = 0;
    for (size_t i = 0; i < std::size(kStages); ++i) {
        stages |= kStages[i];
        const Summary upto = time_step(step, {misses, Load::none, stages}, true);
        if (upto.count == 0) return;
        Summary added = upto;
        added.median -= before;
        added.p10 -= before;
        added.p90 -= before;
        before = upto.median;
        Row row = make_row("stage adds, per layer",
                           {{"stage", kStageNames[i]},
                            {"tokens", tokens},
                            {"misses", std::to_string(misses)}},
                           added, "us");
        // A gather alone would have no misses to fetch.
        if (kStages[i] != kGather) {
            const Summary alone = time_step(step, {misses, Load::none, kStages[i]}, true);
            alone_sum += alone.median;
            all_alone = all_alone && alone.count != 0;
            row.note = alone.count != 0 ? number_text(alone.median) + " us alone"
                                        : "alone: not run, the budget is spent";
        }
        step.context.add(std::move(row));
    }
    if (!all_alone) {
        return step.context.report.note("step less its stages alone: not run, a stage is missing");
    }
    Summary gaps = {before - alone_sum, 0, 0, 20};
    gaps.p10 = gaps.p90 = gaps.median;
    Row row = make_row("step less its stages alone, per layer",
                       {{"tokens", tokens}, {"misses", std::to_string(misses)}}, gaps, "us");
    row.note = "gather and joins; without misses: launch gaps";
    step.context.add(std::move(row));
}

struct Rates {
    double hbm;   // GB/s
    double link;  // GB/s
};

void time_steps(Step& step, const Rates& rates) {
    const uint32_t k = step.plan.step_rows;
    const std::string tokens = std::to_string(step.tokens);
    for (const Load load : {Load::none, Load::meanwhile, Load::after}) {
        if (load != Load::none && step.plan.step_weight_layers == 0) continue;
        Summary without_misses;
        for (const uint32_t misses : {0U, k / 5, k}) {
            StepBound bound;
            bound.label_bytes = step.label_bytes();
            bound.weight_bytes =
                load == Load::none ? 0.0 : static_cast<double>(step.plan.step_weight_bytes);
            bound.row_bytes = static_cast<double>(k) * kPieceBytes;
            bound.miss_bytes = static_cast<double>(misses) * kPieceBytes;
            bound.hbm_rate = rates.hbm * 1e3;
            bound.link_rate = rates.link * 1e3;
            if (load == Load::meanwhile) bound.hidden_us = bound.weight_bytes / bound.hbm_rate;
            const StepCase c = {misses, load, kAllStages};
            const Summary us = time_step(step, c, true);
            const Params params = {{"tokens", tokens},
                                   {"rows", std::to_string(k)},
                                   {"misses", std::to_string(misses)},
                                   {"weights", load_name(load)}};
            const double bound_us = layer_bound_us(bound);
            Row row = with_percent(make_row("captured step, per layer", params, us, "us"),
                                   bound_us, "its bound");
            row.note = "bound " + number_text(bound_us) + " us";
            if (misses == 0) without_misses = us;
            if (misses != 0) {
                row.note += ", exposed wait ";
                row.note += without_misses.count == 0
                                ? "not known: no run without misses"
                                : number_text(us.median - without_misses.median) + " us";
            }
            step.context.add(std::move(row));
            if (load != Load::after) {
                step.context.add(make_row("uncaptured step, per layer", params,
                                          time_step(step, c, false), "us"));
            }
        }
    }
}

}  // namespace

void run_step_graph(Context& context) {
    const Stream stream;
    const Summary read = measure_read(context, stream);
    context.add(make_row("hbm read", {}, read, "GB/s"));
    const PinnedArray<uint4> host_rows(context.plan.pinned_bytes / 16);
    fill_host_rows(context, host_rows.data(), context.plan.pinned_bytes, stream);
    const uint64_t bytes = std::min(context.plan.dma_bytes_max, context.plan.pinned_bytes);
    Summary dma;
    {
        const DeviceArray<std::byte> to(bytes);
        dma = measure_bulk_h2d(context, host_rows.data(), to.data(), bytes, stream);
    }
    context.add(make_row("dma h2d in bulk", {}, dma, "GB/s"));
    for (auto tokens = context.plan.step_tokens.rbegin(); tokens != context.plan.step_tokens.rend();
         ++tokens) {
        Step step(context, *tokens, host_rows);
        for (const uint32_t misses :
             {0U, context.plan.step_rows / 5, context.plan.step_rows}) {
            check_step(step, misses);
        }
        time_steps(step, {read.median, dma.median});
        time_stages(step, 0);
        time_stages(step, context.plan.step_rows / 5);
    }
}

}  // namespace shoal::gpu
