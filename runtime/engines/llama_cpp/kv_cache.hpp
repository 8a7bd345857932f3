// A KV cache of a llama_context: the tensors that llama.cpp believes to hold it, and the Session
// that does. A context has one, or, of models with sliding-window layers, two: first that of the
// layers that see everything, then a small one of the windowed layers, which are served dense.
//
// Life: llama.cpp allocates the tensors (adopt), shows one attention op per layer while it
// reserves its graphs (observe_attention), asks for compute memory (create_session: the last
// moment at which making a context can still fail cleanly), then decodes.
//
// Used by one thread at a time, as its llama_context is.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention_op.hpp"
#include "batch_notes.hpp"
#include "cpu_backend.hpp"
#include "delegate.hpp"
#include "ggml.h"
#include "kv_tensor.hpp"
#include "mask.hpp"
#include "omp_executor.hpp"
#include "query_chain.hpp"
#include "shoal/session.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

class KvCache {
public:
    // `context` tells llama_contexts apart; 0: not known, this cache is taken to be alone.
    explicit KvCache(uint64_t context);
    ~KvCache();
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;

    // Takes a tensor of the cache: sets its `extra`. Refuses what cannot be held.
    Status adopt(ggml_tensor& tensor);

    // Learns a layer's head counts and sizes from its attention op. What cannot be served is
    // remembered and refused in create_session().
    void observe_attention(const ggml_tensor& op);
    // Remembers why no session can be made.
    void refuse(std::string reason);
    // Makes the sessions of all caches of this context. Without effect once there is one.
    Status create_session();
    bool has_session() const { return session_ != nullptr; }
    // Null without a session.
    Session* session() { return session_.get(); }

    // The engine's thread count of the graph that runs now.
    void set_thread_count(uint32_t count);

    // Ops of a running graph, in its order. `op` is SET_ROWS into, or FLASH_ATTN_EXT over, tensors
    // of this cache. finish_split() comes when the engine takes control back: sources of
    // earlier ops are not read after it.
    Status store_rows(const ggml_tensor& op);
    Status attend(const ggml_tensor& op);
    Status finish_split();
    // A ROPE op over keys of this cache: the engine moves tokens to other positions.
    Status shift_keys(const ggml_tensor& op, const KvTensor& tensor);

    // Bytes [offset, offset + size) of a tensor, read and written as the engine saves and restores
    // states. Ranges need not be whole rows.
    Status write_bytes(const KvTensor& tensor, size_t offset, const std::byte* data, size_t size);
    Status read_bytes(const KvTensor& tensor, size_t offset, std::byte* data, size_t size);
    // Saves the one stream of a context with one cache to a file. `notes`: of its tokens.
    Status save(const std::string& path, const SequenceNotes& notes);
    // Fills the one stream, empty so far, from a file. The engine then restores a state that says
    // which cells hold tokens: what it writes as rows until finish_load() is taken to be the rows
    // that are here, and not read. finish_load() fails, and forgets them, when the engine did not
    // put them in the first cells of every layer.
    Status load(const std::string& path, SequenceNotes& notes);
    Status finish_load();
    // Types and row sizes of the tensors, in the order in which the engine's states have them.
    std::vector<const KvTensor*> tensors_in_state_order() const;
    // Copies a whole stream of a tensor into another of the same tensor, both given as views. False
    // when `from` and `to` are anything else: nothing was done.
    bool copy_stream(const ggml_tensor& from, const ggml_tensor& to, Status& status);
    // Forgets everything, a failure included.
    Status clear();

    // Makes every later graph fail with `reason` until clear(): the rows are no longer what the
    // engine thinks they are, and it does not always look at what a device answers.
    void fail_until_cleared(const std::string& reason);

    // What was noted of a slot that query `query` of the last step read.
    NotedToken noted(uint32_t query, uint32_t slot) const;

    // One line for a person: what the context's caches hold, under which policy, by whose threads.
    std::string describe() const;

    // The cache made last among those alive that have a session, or null. Of a context with two,
    // that of the layers that see everything.
    static KvCache* newest();
    // Whether `cache` is alive.
    static bool is_alive(const KvCache* cache);

private:
    struct Layer {
        std::unique_ptr<KvTensor> k;
        std::unique_ptr<KvTensor> v;
        std::optional<LayerShape> shape;  // once its attention was seen
    };

    struct SessionPlan {
        Config config;
        ModelShape shape;
        SessionOptions options;
    };

    bool holds(size_t layer) const;
    const Layer& any_layer() const;
    std::string missing_reason(const std::vector<KvCache*>& caches) const;
    Status check_rows() const;
    RowFormat engine_rows() const;
    Result<SessionPlan> session_plan(const Config& config, size_t layer_count);
    Status make_session(const SessionPlan& plan);
    // The caches of this one's context, in the order in which they were made.
    std::vector<KvCache*> of_context() const;
    Status begin_step(uint32_t layer, Session::Part part, const ggml_tensor& slots);
    // Cuts the engine's slot numbers, which run through all streams, by stream.
    Status place_tokens(std::span<const int64_t> numbers);
    // Ends a step whose graph was not completed (an error, an abort).
    void abandon_step();
    Status append_pending();
    Status read_mask(const AttentionOp& attention);
    Status attend_here(const ggml_tensor& op);
    ConstTensor query_tensor(const ggml_tensor& q, uint32_t layer) const;
    void hint_next_layer(const AttentionOp& attention);
    template <typename Part, typename Run>
    Status for_each_run(const KvTensor& tensor, size_t offset, size_t size, Part do_part,
                        Run do_run);
    // Rows run_slots_ of stream run_stream_ of a tensor.
    ConstTensor run_rows(const KvTensor& tensor, const std::byte* data) const;
    // Whether notes follow what happens to this tensor: one of all, since all hold the same tokens.
    bool leads_notes(const KvTensor& tensor) const;
    Status put_run(const KvTensor& tensor, const std::byte* data);
    Status read_run(const KvTensor& tensor, std::byte* data);
    Status check_one_stream(const char* what) const;
    Status fill_store(const std::string& path, SequenceNotes& notes);
    Status skip_loaded(const KvTensor& tensor, size_t offset, size_t size);
    Status rotate_stream(const ggml_tensor& op, const KvTensor& tensor, uint32_t stream);
    Status rotate_run(const ggml_tensor& op, const KvTensor& tensor);
    LayerShape shape_of(uint32_t layer) const { return *layers_[layer].shape; }

    const uint64_t context_;
    bool is_windowed_ = false;   // not the first of its context
    std::vector<Layer> layers_;  // by layer of the model; empty ones lie in another cache
    std::string refusal_;
    std::string failure_;
    uint32_t q_head_count_ = 0;
    float attention_scale_ = 0.0F;
    uint32_t queries_max_ = 1;

    std::unique_ptr<OmpExecutor> omp_;  // outlives the session that uses it
    std::unique_ptr<Session> session_;
    std::vector<StoreId> stores_;  // one per stream
    uint32_t engine_threads_ = 1;
    Delegate delegate_;
    CpuBackend cpu_;  // rotates keys, computes hints
    std::vector<QueryChain> chains_;  // by layer; empty ones give no hint
    bool told_no_hints_ = false;

    // The step under way.
    bool in_step_ = false;
    uint64_t step_number_ = 0;
    uint32_t step_layer_ = 0;           // layer of the last SET_ROWS
    bool step_has_part_[2] = {};        // parts of step_layer_ that were written
    std::vector<int64_t> step_numbers_;  // as the engine gave them: stream x slots + slot
    std::vector<int64_t> step_slots_;    // each in its stream
    uint32_t step_stream_first_ = 0;
    std::vector<StoreId> step_stores_;   // of consecutive streams
    std::vector<uint32_t> step_offsets_;  // CSR: tokens of each
    const ggml_tensor* pending_k_ = nullptr;  // rows of step_layer_, not yet appended
    const ggml_tensor* pending_v_ = nullptr;

    // Visibility of this step: the mask is the same tensor in all layers, so it is read once.
    const void* mask_data_ = nullptr;
    uint64_t mask_step_ = 0;
    uint64_t mask_version_ = 0;
    MaskRanges mask_ranges_;
    std::vector<uint32_t> mask_query_offsets_;

    BatchNotes notes_;

    // Between load() and finish_load().
    bool is_loading_ = false;
    size_t loaded_tokens_ = 0;
    size_t tensors_restored_ = 0;

    std::vector<std::byte> row_;         // one row, for partial writes and reads
    uint32_t run_stream_ = 0;
    std::vector<int64_t> run_slots_;     // slots of the run that is put, read or rotated
    std::vector<int32_t> run_shifts_;    // of run_slots_
    std::vector<std::byte> run_keys_;
};

}  // namespace shoal::llama_cpp
