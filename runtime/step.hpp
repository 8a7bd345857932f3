// One forward pass over the stores of a session: the flow of design 3, in one place.
#pragma once

#include <span>
#include <vector>

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

    std::vector<uint32_t> attended_slots(uint32_t group, uint32_t query) const;

private:
    // One query of one group: what to attend, and where the result goes.
    struct Job {
        const Group* group = nullptr;
        uint32_t query = 0;             // row of q and out
        kernels::SlotList slots;
        uint32_t part_first = 0;        // of all parts of the call
        float* partials = nullptr;
    };

    Status write(uint32_t layer, Store& store, std::span<const int64_t> slots,
                 const ConstTensor& k, const ConstTensor& v);
    Status check_step(const StepInput& input) const;
    Status place_tokens(const StepInput& input, std::vector<int64_t>& slots);
    void forget_lists();
    Status check_attend(const AttendCall& call) const;
    Status prepare_views(uint32_t store_index, const Visibility& visibility);
    Status prepare_query(const Store& store, const Visibility& visibility, uint32_t query,
                         QueryView* view);
    Status check_written(uint32_t layer, const Store& store) const;
    Status learn(uint32_t layer, const ConstTensor& q);
    Status start_labels(uint32_t layer);

    Status attend_lists(uint32_t store_index, const AttendCall& call);
    Status attend_exact(uint32_t store_index, const AttendCall& call);
    kernels::SlotList choose(uint32_t group_index, uint32_t query, uint32_t query_in_store,
                             Store& store, const AttendCall& call);
    bool attends_everything(uint32_t group_index, const Store& store, uint32_t visible_count);
    void run_jobs(const Store& store, const AttendCall& call, std::span<Job> jobs);
    void merge_job(const Job& job, float* out, size_t out_head_stride, float* lse) const;
    kernels::AttendInput input_of(const Store& store, const AttendCall& call,
                                  const Job& job) const;
    void sample_recall(const Store& store, const AttendCall& call, const Job& job);
    void run_parts(const Store& store, const AttendCall& call, std::span<const Job> jobs);
    uint32_t group_index(const Group& group) const {
        return static_cast<uint32_t>(&group - s_.groups.all().data());
    }
    uint32_t* list_of(uint32_t group, uint32_t query_in_store) const;

    SessionState& s_;
    bool open_ = false;
    bool told_dense_without_statistics_ = false;
    uint32_t first_kv_layer_ = 0;
    std::vector<uint8_t> labels_started_;  // [layer] in every store
    uint32_t sample_layer_ = 0;
    uint64_t sampled_step_ = 0;
    std::vector<uint32_t> stores_;         // indices, in StepInput order
    std::vector<uint32_t> token_offsets_;  // CSR
    std::vector<int64_t> slots_;
    // Views of the step's queries, by store: made once per visibility version.
    uint64_t views_version_ = 0;
    uint32_t views_store_ = UINT32_MAX;
    std::vector<QueryView> views_;
    std::span<kernels::SpanMask> seen_;  // union of what the store's queries see
    std::vector<Job> jobs_;
    std::vector<kernels::SlotList> last_lists_;  // [group, queries_max]
    std::vector<float> lse_;                     // [q_head_count] of the last merge
    std::vector<float> exact_lse_;  // [query_count, q_head_count of a group], if asked for
    struct {                        // of the recall sample
        std::vector<float> lse_list;  // [q_head_count]
        std::vector<float> lse_all;   // [q_head_count]
        std::vector<float> out;       // [q_head_count, v_head_dim]
    } sample_;
};

}  // namespace shoal
