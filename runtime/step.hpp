// One forward pass over the stores of a session: the whole flow, in one place.
#pragma once

#include <span>
#include <vector>

#include "runtime/adaptive_rows.hpp"
#include "runtime/guess_queries.hpp"
#include "runtime/prefetch_trial.hpp"
#include "runtime/query_view.hpp"
#include "runtime/session_state.hpp"

namespace shoal {

struct AttendCall {
    uint32_t layer = 0;
    const ConstTensor* q = nullptr;
    const Visibility* visibility = nullptr;
    const Tensor* out = nullptr;
    float* lse = nullptr;
};

// Whether `offsets` is a CSR index of `parts` parts over `total` entries.
Status check_offsets(const char* name, std::span<const uint32_t> offsets, size_t parts,
                     size_t total);

class Step {
public:
    explicit Step(SessionState& state);

    Status begin(const StepInput& input);
    Status append(uint32_t layer, const ConstTensor& k, const ConstTensor& v);
    Status attend(const AttendCall& call);
    Status end();
    bool is_open() const { return open_; }
    // Forgets an open step and what the last one attended: before stores change under it.
    void abandon();

    // Writes rows of one store outside a step. Slots get new stamps, in order, with the keys of
    // the first layer.
    Status put(uint32_t layer, Store& store, std::span<const int64_t> slots, const ConstTensor& k,
               const ConstTensor& v);
    // Writes rows of slots that were written before: they keep their stamps.
    Status replace(uint32_t layer, Store& store, std::span<const int64_t> slots,
                   const ConstTensor& k, const ConstTensor& v);
    // Writes rows of a store that nobody knows of yet, as a file is read: no stamps, statistics or
    // times; `slots` ascend. publish() gives the stamps, in this order.
    Status stage(uint32_t layer, Store& store, std::span<const int64_t> slots,
                 kernels::RowPart part, const ConstTensor& rows);
    void publish(Store& store, std::span<const uint32_t> order);
    // Makes `to` what `from` is, sharing rows.
    Status fork(Store& from, Store& to);
    // Makes a part of a layer in `to` what it is in `from`; the order with the first layer's keys.
    Status copy(uint32_t layer, kernels::RowPart part, const Store& from, Store& to);

    // Session::wants_hint(), Session::hint_query().
    bool wants_hint(uint32_t layer) const;
    Status hint(uint32_t layer, const ConstTensor& q);
    // The policy changed: whether guessing pays is tried anew, with nothing remembered.
    void restart_guesses();

    // `query`: row of q in the last attend.
    std::vector<uint32_t> attended_slots(uint32_t group, uint32_t query) const;

private:
    // One query of one group: what to attend, and where the result goes.
    struct Job {
        const Group* group = nullptr;
        uint32_t query = 0;             // row of q and out
        uint32_t view = 0;              // index in views_
        kernels::SlotList slots;
        uint32_t part_first = 0;        // of all parts of the call
        float* partials = nullptr;
    };

    // Rows [begin, end) of a job's list: what is computed at once.
    struct Part {
        const Job* job = nullptr;
        uint32_t index = 0;
        uint32_t begin = 0;
        uint32_t end = 0;
    };

    Status write(uint32_t layer, Store& store, std::span<const int64_t> slots,
                 const ConstTensor& k, const ConstTensor& v);
    Status write_part(uint32_t layer, Store& store, kernels::RowPart part,
                      std::span<const int64_t> slots, const ConstTensor& rows);
    Status check_step(const StepInput& input) const;
    Status place_tokens(const StepInput& input, std::vector<int64_t>& slots);
    void forget_lists();
    void forget_step();
    Status check_attend(const AttendCall& call) const;
    Status prepare_views(const Visibility& visibility);
    Status check_ranges(const Visibility& visibility) const;
    void prepare_views_of(uint32_t store_index, const Visibility& visibility);
    void prepare_query(uint32_t store_index, std::span<const SlotRange> ranges, QueryView* view);
    Status check_written(uint32_t layer, uint32_t store_index) const;
    Status compare_rows(uint32_t layer, uint32_t store_index);
    Status find_wrong_row(const GroupStore& group, std::span<const kernels::SpanMask> seen,
                          uint32_t& slot);
    Status check_list(const Job& job);
    Status learn(uint32_t layer, const ConstTensor& q);
    Status start_labels(uint32_t layer);

    Status attend_lists(uint32_t store_index, const AttendCall& call);
    Status attend_exact(uint32_t store_index, const AttendCall& call);
    Status attend_passes(const offload::BlockStore& rows, std::span<const kernels::SpanMask> seen,
                         kernels::PrefillInput& in, kernels::PrefillOutput& out);
    uint32_t want_pass(const offload::BlockStore& rows, std::span<const kernels::SpanMask> seen,
                       uint32_t begin);
    Status choose(const Group& group, Store& store, const AttendCall& call, Job& job);
    Status reuse(const Group& group, uint32_t view_index, kernels::SlotList& list) const;
    kernels::SlotList select(const Group& group, uint32_t query, uint32_t view_index, Store& store,
                             const AttendCall& call);
    uint32_t budget_of(const Group& group, const SelectHistory& history) const;
    void adapt_rows();
    bool knows_all(const Group& group, const Store& store, uint32_t visible_count) const;
    bool sees_little(const Group& group, uint32_t visible_count) const;
    bool uses_labels_or_pages() const {
        return uses_labels(s_.config.selector.kind) || uses_pages(s_.config.selector.kind);
    }
    bool attends_everything(const Group& group, const Store& store, uint32_t visible_count);
    Status run_jobs(const Store& store, const AttendCall& call, std::span<Job> jobs);
    void merge_job(const Job& job, float* out, size_t out_head_stride, float* lse) const;
    kernels::AttendInput input_of(const Store& store, const AttendCall& call,
                                  const Job& job) const;
    Status sample_recall(const Store& store, const AttendCall& call, const Job& job);
    static Part part_of(std::span<const Job> jobs, uint32_t index);
    Status run_parts(const Store& store, const AttendCall& call, std::span<const Job> jobs);
    void start_parts(const Store& store, std::span<const Job> jobs, uint32_t begin,
                     uint32_t& end);
    Status finish_parts(uint32_t count);
    uint32_t parts_at_once(uint32_t parts) const;
    uint64_t begin_fetch();
    void end_fetch(uint64_t started);
    Status fetch_wanted();
    void prepare_guesses();
    void remember_query(uint32_t layer, uint32_t store_index, const AttendCall& call,
                        uint32_t query);
    void look_ahead(uint32_t store_index);
    void read_reuse_ahead(uint32_t store_index, uint32_t view);
    void read_layer_ahead(uint32_t layer, uint32_t store_index, uint32_t queries);
    void read_all_ahead(const offload::BlockStore& rows, kernels::SlotList visible) const;
    void guess_rows(const Group& group, uint32_t store_index, uint32_t query);
    kernels::SlotList select_guessed(const Group& group, Store& store, uint32_t view_index,
                                     uint32_t place, const float* q);
    void look_ahead_of_next_step();
    void end_guesses();
    void begin_stage(TraceStage stage);
    void end_stage(uint64_t ended_ns);
    uint32_t* list_of(uint32_t group, uint32_t view_index) const;
    size_t list_index(uint32_t group, uint32_t view_index) const {
        return size_t{group} * s_.limits.views_max + view_index;
    }
    uint32_t view_first(uint32_t store_index) const { return store_index * s_.limits.queries_max; }

    SessionState& s_;
    bool open_ = false;
    uint32_t layer_ = 0;                   // that is attended
    TraceStage stage_ = TraceStage::attend;
    uint64_t stage_began_ns_ = 0;
    bool told_dense_without_statistics_ = false;
    uint32_t first_kv_layer_ = 0;
    std::vector<uint8_t> labels_started_;  // [layer] in every store
    uint32_t sample_layer_ = 0;
    uint64_t sampled_step_ = 0;
    uint64_t began_ns_ = 0;  // of the open step, when it is traced
    std::vector<uint32_t> stores_;         // indices, in StepInput order
    std::vector<uint32_t> token_offsets_;  // CSR
    std::vector<int64_t> slots_;
    // Views of the step's queries, made once per visibility version: queries_max of each store.
    uint64_t views_version_ = 0;
    std::vector<QueryView> views_;       // [views_max]
    // Differs whenever a view may show something else: a list is of use for the view it was made
    // for alone. 0: none was made.
    std::vector<uint64_t> view_ids_;     // [views_max]
    std::vector<uint64_t> list_ids_;     // [group, views_max] view of the list in last_lists_
    uint64_t view_id_last_ = 0;
    // By store of the step: the union of what its queries see.
    std::vector<std::span<kernels::SpanMask>> seen_;
    std::vector<Job> jobs_;
    std::vector<uint8_t> selected_;  // [group, views_max] in this step
    std::vector<RowShare> shares_;
    std::vector<kernels::SlotList> last_lists_;  // [group, views_max]
    // CSR: queries of each store in the last attend, which views_ show; empty: views_ show nothing.
    std::vector<uint32_t> last_query_offsets_;
    std::vector<float> lse_;                     // [q_head_count] of the last merge
    std::vector<float> exact_lse_;  // [query_count, q_head_count of a group], if asked for
    // Reading ahead, with a disk.
    GuessQueries guess_queries_;
    std::vector<SelectHistory> guess_histories_;      // [group, place]
    std::vector<kernels::SlotList> previous_lists_;   // last_lists_ of the step before
    std::vector<uint32_t> previous_stores_;           // and its stores_; empty: there are no lists
    // [group of an anchor, views_max] the first group, of those that reuse its selection in this
    // step, whose reads were not started.
    std::vector<uint32_t> started_until_;
    std::vector<const offload::BlockStore*> family_;  // whose reads are started together
    PrefetchTrial guess_trial_;
    std::vector<uint32_t> part_wants_;  // blocks that the started parts want, up to each
    uint32_t attended_store_ = 0;     // index of the store that layer_ is attended in
    bool could_guess_ = false;        // in this step
    uint64_t began_on_disk_ns_ = 0;   // this step, by the disk's clock
    struct {                        // of the recall sample
        std::vector<float> lse_list;  // [q_head_count]
        std::vector<float> lse_all;   // [q_head_count]
        std::vector<float> out;       // [q_head_count, v_head_dim]
    } sample_;
};

}  // namespace shoal
