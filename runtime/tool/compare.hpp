// Stock llama.cpp beside Shoal: the same prompt, the same tokens, in one process.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "runtime/tool/generate.hpp"

namespace shoal::tool {

struct Agreement {
    double kl_mean = 0;        // KL(reference || this), nats
    double kl_max = 0;
    uint32_t same_top = 0;     // positions where both find the same token likeliest
    uint32_t positions = 0;
};

struct Column {
    std::string name;
    PrefillTiming prefill;     // 0 tokens: not measured
    DecodeCost cost;
    uint64_t context_bytes = 0;  // memory that the context took, caches and buffers
    Agreement to_stock;        // of Shoal's columns
    Agreement to_dense;        // of the sparse column
};

struct Comparison {
    Column stock;
    Column dense;
    Column sparse;
    Status status = Status::ok();  // interrupted_status(): what is here was measured before
};

// `shoal` holds the prompt and whatever it generated after it. Replays `generated` token by token
// in both engines, in turns of four tokens: first with Shoal's configured policy, then with
// selector.kind = "dense".
Comparison compare_with_stock(Engine& shoal, const PrefillTiming& prefill,
                              uint64_t shoal_context_bytes, std::span<const llama_token> prompt,
                              std::span<const llama_token> generated);

std::string comparison_text(const Comparison& comparison);
nlohmann::ordered_json comparison_json(const Comparison& comparison);

}  // namespace shoal::tool
