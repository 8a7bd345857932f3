#include "runtime/saved_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace shoal {
namespace {

// The channel statistics of a file, where the session has none of its own.
Status read_profile(const SessionState& state, const std::string& path, const std::string& text,
                    std::optional<calib::Profile>& out) {
    if (text.empty() || state.label_source->ready()) return Status::ok();
    Result<calib::Profile> profile = calib::parse_profile(text, path + ": profile");
    if (!profile) return profile.status();
    SHOAL_TRY(calib::check_profile(*profile, state.shape, state.options.model_fingerprint));
    out = std::move(*profile);
    return Status::ok();
}

// Memory for rows that come is taken by all threads, in steps that are worth it: clearing new pages
// takes longer than copying into them.
class MemoryAhead {
public:
    MemoryAhead(const SessionState& state, Store& store) : state_(state), store_(store) {}

    void expect(const SavedHeader& header) {
        for (const Group& group : state_.groups.all()) {
            left_ += uint64_t{header.token_count} *
                     store_.group(group.index).rows.layout().format.piece_stride_bytes;
        }
    }
    // K or V of these rows is about to be written.
    Status use(uint64_t bytes) {
        if (bytes > taken_ && left_ != 0) {
            const uint64_t step = std::min(left_, kStepBytes);
            SHOAL_TRY(store_.prepare(step, state_.executor));
            left_ -= step;
            taken_ += step;
        }
        taken_ -= std::min(taken_, bytes);
        return Status::ok();
    }

private:
    static constexpr uint64_t kStepBytes = uint64_t{16} << 20;
    const SessionState& state_;
    Store& store_;
    uint64_t left_ = 0;   // that rows will take and was not asked for
    uint64_t taken_ = 0;  // that was, and is not used
};

}  // namespace

Status save_store(const SessionState& state, const Store& store, const SequenceNotes& notes,
                  const std::string& path, decltype(SaveInput::read) read) {
    for (const Group& group : state.groups.all()) {
        const std::string reason = store.incomplete_reason(group.index, group);
        if (reason.empty()) continue;
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("save: {}: tokens must be whole", reason));
    }
    Result<std::string> profile = state.label_source->profile_text();
    if (!profile) return profile.status();
    const std::vector<uint32_t> order = store.order().written_in_order();
    SaveInput in;
    in.header.model = state.options.model_fingerprint;
    in.header.rope = state.options.rope_fingerprint;
    in.header.shape = state.shape;
    in.header.shape.rows = state.stored_rows();
    in.order = order;
    in.notes = &notes;
    in.profile = std::move(*profile);
    in.read = std::move(read);
    return save_sequence(in, path);
}

Status load_store(SessionState& state, Step& step, Store& store, const std::string& path,
                  SequenceNotes* notes) {
    LoadTarget target;
    MemoryAhead memory(state, store);
    target.accept = [&](const SavedHeader& header) {
        ModelShape shape = state.shape;
        shape.rows = state.stored_rows();
        SHOAL_TRY(check_saved_model(header, shape, state.options, path));
        memory.expect(header);
        return Status::ok();
    };
    target.write = [&](LayerId layer, Session::Part part, std::span<const int64_t> slots,
                       const ConstTensor& rows) {
        const bool is_k = part == Session::Part::k;
        SHOAL_TRY(memory.use(uint64_t{rows.n} * rows.n_stride_bytes));
        return step.stage(layer.index, store, slots,
                          is_k ? kernels::RowPart::k : kernels::RowPart::v, rows);
    };
    Result<LoadedSequence> loaded = load_sequence(path, target);
    std::optional<calib::Profile> profile;
    const Status status =
        loaded ? read_profile(state, path, loaded->profile, profile) : loaded.status();
    if (!status) {
        store.clear();
        return status;
    }
    step.publish(store, loaded->order);
    if (profile) state.label_source->adopt(std::move(*profile));
    if (notes != nullptr) *notes = std::move(loaded->notes);
    return Status::ok();
}

}  // namespace shoal
