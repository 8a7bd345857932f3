#include "runtime/saved_store.hpp"

#include <fmt/format.h>

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
    target.accept = [&](const SavedHeader& header) {
        ModelShape shape = state.shape;
        shape.rows = state.stored_rows();
        return check_saved_model(header, shape, state.options, path);
    };
    target.write = [&](LayerId layer, Session::Part part, std::span<const int64_t> slots,
                       const ConstTensor& rows) {
        const bool is_k = part == Session::Part::k;
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
