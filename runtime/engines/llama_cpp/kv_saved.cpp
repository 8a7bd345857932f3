// Saved sequences: rows go between the session and a file, and the engine is told of cells alone.
#include <fmt/format.h>

#include <numeric>

#include "kv_cache.hpp"
#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

// Whether the tokens lie as an empty context takes them in: in slots and at positions 0, 1, 2, ...
Status check_packed(const std::string& path, const SequenceNotes& notes) {
    const auto refuse = [&](const std::string& what) {
        return invalid(fmt::format("{}: {}: not saved from llama.cpp", path, what));
    };
    if (notes.positions.empty()) return refuse("tokens have no positions");
    if (notes.slots.back() + 1 != notes.slots.size()) return refuse("tokens lie with gaps");
    for (size_t i = 0; i < notes.positions.size(); ++i) {
        if (static_cast<size_t>(notes.positions[i]) == i) continue;
        return refuse(fmt::format("positions[{}] = {}: must be {}", i, notes.positions[i], i));
    }
    return Status::ok();
}

}  // namespace

Status KvCache::check_one_stream(const char* what) const {
    if (!has_session()) {
        return Status::error(StatusCode::internal, fmt::format("{}: no session yet", what));
    }
    if (of_context().size() != 1) {
        return unsupported(fmt::format("{}: models with a sliding window keep two caches: not "
                                       "supported", what));
    }
    if (stores_.size() == 1) return Status::ok();
    return unsupported(fmt::format("{}: {} sequences with caches of their own: must be 1 "
                                   "(n_seq_max = 1, or kv_unified)", what, stores_.size()));
}

Status KvCache::save(const std::string& path, const SequenceNotes& notes) {
    SHOAL_TRY(check_one_stream("save"));
    abandon_step();
    return session_->save(stores_[0], path, notes);
}

Status KvCache::load(const std::string& path, SequenceNotes& notes) {
    SHOAL_TRY(check_one_stream("load"));
    abandon_step();
    if (session_->stats().slots_used != 0) {
        return invalid("load: the context holds tokens already: clear it first "
                       "(llama_memory_clear)");
    }
    const Status filled = fill_store(path, notes);
    if (!filled) return filled;
    is_loading_ = true;
    loaded_tokens_ = notes.slots.size();
    tensors_restored_ = 0;
    return Status::ok();
}

// A session opens a store for what it loads: the empty one makes room for it, and comes back when
// the file is refused.
Status KvCache::fill_store(const std::string& path, SequenceNotes& notes) {
    SHOAL_TRY(session_->close(stores_[0]));
    Result<StoreId> loaded = session_->load(path, &notes);
    Status status = loaded.status();
    if (status) status = check_packed(path, notes);
    if (!status && loaded) SHOAL_TRY(session_->close(*loaded));
    if (!status) loaded = session_->open();
    if (!loaded) return loaded.status();
    stores_[0] = *loaded;
    return status;
}

Status KvCache::skip_loaded(const KvTensor& tensor, size_t offset, size_t size) {
    if (offset != 0 || size != loaded_tokens_ * tensor.row_bytes()) {
        return unsupported(fmt::format("{}: {} bytes restored at {}: must be {} at 0, those of the "
                                       "loaded tokens", tensor.root->name, size, offset,
                                       loaded_tokens_ * tensor.row_bytes()));
    }
    ++tensors_restored_;
    return Status::ok();
}

Status KvCache::finish_load() {
    if (!is_loading_) return invalid("load_done: no load came before it");
    is_loading_ = false;
    const size_t tensors = tensors_in_state_order().size();
    if (tensors_restored_ == tensors && failure_.empty()) return Status::ok();
    SHOAL_TRY(session_->clear(stores_[0]));
    return unsupported(fmt::format("load: llama.cpp restored {} of {} tensors", tensors_restored_,
                                   tensors));
}

std::vector<const KvTensor*> KvCache::tensors_in_state_order() const {
    std::vector<const KvTensor*> tensors;
    for (const auto part : {Session::Part::k, Session::Part::v}) {
        for (const Layer& layer : layers_) {
            const auto& tensor = part == Session::Part::k ? layer.k : layer.v;
            if (tensor != nullptr) tensors.push_back(tensor.get());
        }
    }
    return tensors;
}

}  // namespace shoal::llama_cpp
