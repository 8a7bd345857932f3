// A session: the KV cache of one model, held by Shoal, and attention over it.
//
// The six calls of an engine, per forward pass:
//
//   begin_step(which slots are written)
//     for each layer:  append(k, v), or append(k, {}) and append({}, v)
//                      attend(q) -> out
//   end_step()
//
// The engine never picks tokens or moves data: which tokens a query attends, and where they come
// from, is decided inside attend() by the configuration.
//
// Thread safety: calls on one session come from one thread at a time. Different sessions are
// independent. stats() may be called between steps.
// Memory: address space is reserved and accounted at create(); pages are touched as the context
// grows. Between begin_step() and end_step() the calling thread allocates nothing, but in the first
// step, in that which makes labels without a profile, in the first exact attend() with lse, and for
// a line that it logs.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "shoal/config.hpp"
#include "shoal/stats.hpp"
#include "shoal/status.hpp"
#include "shoal/trace.hpp"
#include "shoal/types.hpp"

namespace shoal {

// Bytes that create() would take at most, by tier and purpose; and what the machine offers.
struct MemoryPlan {
    uint64_t kv_bytes = 0;         // K and V rows in RAM, whole blocks
    uint64_t label_bytes = 0;      // labels, ranges, open spans, page bounds
    uint64_t index_bytes = 0;      // block tables, stamps, span masks, lists of visible slots
    uint64_t workspace_bytes = 0;  // scores, candidates, partial states, prefill tiles
    uint64_t total_bytes = 0;      // of RAM
    uint64_t least_bytes = 0;      // of RAM that would do: less than total_bytes with a disk
    uint64_t disk_bytes = 0;       // of the file under disk.dir: every row
    uint64_t disk_available_bytes = 0;  // free there now; at most what disk.kv_bytes allows
    uint64_t machine_bytes = 0;    // cgroup limit and MemAvailable, the least
    uint64_t available_bytes = 0;  // of those, what host.kv_bytes allows
    uint32_t slots_fit = 0;        // largest slots_per_store that would fit
    uint64_t bytes_per_slot = 0;
    std::vector<std::string> notes;  // e.g. sliding layers served dense
};

enum class LogLevel : uint8_t { debug, info, warning, error };

// What a session is created for: how many stores, how large, on whose threads.
struct SessionOptions {
    uint32_t store_count_max = 1;
    uint32_t slots_per_store = 0;     // 1 .. 2^30
    uint32_t queries_per_step_max = 512;  // 1 .. 2^20
    // The engine's own workers. Without: oneTBB, pinned, host.threads of them.
    Executor executor;
    // Called for every degraded mode and every decision worth a line. May be empty.
    std::function<void(LogLevel, const std::string&)> log;
    // Written into profiles and compared with them, e.g. the model's name and tensor count.
    std::string model_fingerprint;
    // Written into saved sequences and compared with theirs: how keys were rotated, e.g. base and
    // scaling of RoPE. Empty: not known, not compared; likewise model_fingerprint.
    std::string rope_fingerprint;
    // Files that the engine keeps mapped besides, such as weights. With disk.dir and without
    // host.kv_bytes, room is left for them.
    uint64_t mapped_bytes = 0;
};

// Tokens that a step writes. Slots are named by engines that manage them; others append.
struct StepInput {
    std::span<const StoreId> stores;             // stores of this step, each once
    std::span<const uint32_t> token_offsets;     // CSR: tokens of store i are [o[i], o[i + 1])
    std::span<const int64_t> slots;  // [token_count] slot of each token; empty: next free
    std::span<const int32_t> token_ids;          // [token_count]; optional
    std::span<const int32_t> positions;          // [token_count]; optional
};

// Which slots each query may attend. Queries are ordered by store as in StepInput.
struct Visibility {
    std::span<const uint32_t> query_offsets;   // CSR: queries of store i are [o[i], o[i + 1])
    std::span<const uint32_t> range_offsets;   // [query_count + 1]
    std::span<const SlotRange> ranges;         // ascending and disjoint per query
    // Two calls of one step with the same non-zero version carry the same content: what follows
    // from it is computed once.
    uint64_t version = 0;
};

// What an engine wants back with a saved sequence; Shoal keeps it as it is. Any of it may be empty.
struct SequenceNotes {
    std::vector<int32_t> token_ids;  // one per slot that holds a token, slots ascending
    std::vector<int32_t> positions;  // likewise
    std::vector<float> logits;       // of the next token; at most 2^24
    std::vector<uint32_t> slots;     // load(): those slots, ascending. save() does not look at it
};

// The KV cache of one model and attention over it; see the top of this file.
class Session {
public:
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Checks everything, then reserves. On failure nothing was taken and the message says which
    // field to change.
    static Result<std::unique_ptr<Session>> create(const Config& config, const ModelShape& shape,
                                                   const SessionOptions& options);
    // What create() would take: the same code with an allocator that only counts.
    static Result<MemoryPlan> plan(const Config& config, const ModelShape& shape,
                                   const SessionOptions& options);

    Result<StoreId> open();
    // Opens a store that holds what `store` holds and answers as it would, bit for bit. Rows are
    // shared until one of the two writes near them (64 KiB at a time), with a disk copied; labels
    // and order are copied.
    Result<StoreId> fork(StoreId store);
    Status close(StoreId store);
    // Forgets everything in the store: as just opened. It, truncate(), fork() and copy() end a step
    // that is open, in all stores.
    Status clear(StoreId store);
    // Forgets slots [slot_count, ...). Their rows are never read again. With a disk it may fail
    // (rows that stay could not be read for their labels); nothing is forgotten then.
    Status truncate(StoreId store, uint32_t slot_count);

    // Writes what `store` holds to a file that any session of the same model and row format can
    // load, whatever its configuration: rows, the order of tokens, `notes`, and the channel
    // statistics that labels were made from. Every token has all its rows, and no step is open.
    // `path` holds the old file or the whole new one, whatever happens; a process that is killed
    // leaves at most PATH.*.tmp beside it. Mode 0600. Takes a few MiB.
    Status save(StoreId store, const std::string& path, const SequenceNotes& notes = {}) const;
    // Opens a store that holds what the file holds. Labels are made again from its rows; without
    // channel statistics of its own the session takes those of the file. Attention is then, bit for
    // bit, that of the store that was saved, as far as that had not selected before. `notes`:
    // filled in when not null. invalid_argument: a file of another model, row format or shape,
    // with both values; unsupported: another version; corrupt: damaged. A refused file leaves the
    // session as it was. No step is open.
    Result<StoreId> load(const std::string& path, SequenceNotes* notes = nullptr);

    Status begin_step(const StepInput& input);
    Status end_step();

    // Writes rows of the step's tokens, post-RoPE, in StepInput order.
    // k, v: [token_count, kv_head_count, head_dim]; either may be empty (written by another call).
    // Values are converted to what rows are kept as: ModelShape::rows, or q8 with host.rows = "q8".
    // NaN or Inf is refused.
    // Rows of a refused call, those beside the bad one included, count as never written.
    Status append(LayerId layer, const ConstTensor& k, const ConstTensor& v,
                  StreamRef stream = {});
    // Writes rows outside a step (state restore): slots of one store, with new stamps in order.
    Status put(LayerId layer, StoreId store, std::span<const int64_t> slots, const ConstTensor& k,
               const ConstTensor& v, StreamRef stream = {});
    // Writes rows again that hold the same tokens (rotated keys): as put(), but the slots, which
    // must have been written, keep their stamps, and no statistics are taken.
    Status replace(LayerId layer, StoreId store, std::span<const int64_t> slots,
                   const ConstTensor& k, const ConstTensor& v, StreamRef stream = {});
    // Reads rows back as ModelShape::rows, however they are kept: out is [slots, kv_head_count,
    // head_dim], dense. Slots never written read as zero. A row kept as q8, read as f16 or f32 and
    // written again is the same row, but for numbers that f16 cannot hold.
    enum class Part : uint8_t { k, v };
    Status read(LayerId layer, StoreId store, std::span<const int64_t> slots, Part part,
                std::span<std::byte> out) const;
    // Makes one part of a layer in `to` what it is in `from`: rows that `from` lacks are forgotten.
    // Stamps come with the keys of the first layer. Outside a step.
    Status copy(LayerId layer, Part part, StoreId from, StoreId to);

    // q: [query_count, q_head_count, k_head_dim] f32, post-RoPE; out: [query_count, q_head_count,
    // v_head_dim]. lse: [query_count, q_head_count] natural log of the sum of exp over the
    // attended tokens, or null. Sparse when a store brings at most budget.sparse_queries_max
    // queries, exact otherwise. NaN or Inf in q is refused. Under sharing.kind = "tidal" a layer
    // that reuses a selection comes after its anchor in every step, with the same visibility.
    Status attend(LayerId layer, const ConstTensor& q, const Visibility& visibility,
                  const Tensor& out, float* lse = nullptr, StreamRef stream = {});

    // Whether a hint for this layer would be of use now: rows lie on disk, prefetch.kind is "query"
    // and pays, and the layer selects. Ask before a hint is computed: whether guesses pay is found
    // by timing whole steps, begin_step() to end_step(), with and without them, so that what hints
    // cost the engine counts, wherever they are computed.
    bool wants_hint(LayerId layer) const;
    // What the layer's query will be about, known before it: rows that it selects are read while
    // the layer before it is served. Of use when given before attend() of that layer, in the same
    // step; q as attend() will get it. An answer never depends on it. At most
    // kHintQueries queries of each store count; NaN or Inf is refused.
    static constexpr uint32_t kHintQueries = 4;
    Status hint_query(LayerId layer, const ConstTensor& approximate_q, StreamRef stream = {});

    // Slots, of the query's store, that the last sparse attend of this layer attended for one
    // query (row of q) and KV head, ascending: safety set and selection. For tests and tools.
    std::vector<uint32_t> attended_slots(LayerId layer, uint32_t query, uint32_t kv_head) const;

    // Changes the policy between steps: selector.kind, selector.combine, budget.*, safety.*,
    // stats.*, sharing.*, prefetch.*. Anything that would change what is stored, or needs what is
    // not stored, is refused.
    Status reconfigure(const Config& config);
    const Config& config() const;

    // Channel statistics: whether labels can be made, and the profile file they came from or
    // can be written to. `source` names the text they were learnt from.
    bool has_channel_statistics() const;
    Status write_profile(const std::string& path, const std::string& source) const;

    Stats stats() const;
    void reset_stats();

    // Records events of the steps that follow, at most `event_capacity` (up to kTraceEventsMax)
    // that nobody has read, and forgets those recorded before; 0 ends it. Takes sizeof(TraceEvent)
    // for each at once, besides what plan() says. Between steps.
    Status trace(uint32_t event_capacity);
    // Moves events out, in the order in which they ended; returns how many. Between steps.
    size_t read_trace(std::span<TraceEvent> out);
    // Events lost since trace(): read more often, or ask for more room.
    uint64_t trace_dropped() const;

private:
    class Impl;
    friend struct SessionMaker;  // runtime/session_maker.hpp
    explicit Session(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
