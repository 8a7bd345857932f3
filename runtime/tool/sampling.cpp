#include "runtime/tool/sampling.hpp"

#include <cmath>
#include <limits>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/tool/exit.hpp"

namespace shoal::tool {
namespace {

Status check_part(const char* flag, float value) {
    if (value >= 0.0F && value <= 1.0F) return Status::ok();
    return input_error(fmt::format("{} {}: must be 0 to 1", flag, value));
}

}  // namespace

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
    const char* group = "Sampling";
    command.add_option("--temp", flags.temperature, "temperature; 0 takes the likeliest token")
        ->capture_default_str()->group(group);
    command.add_option("--top-k", flags.top_k, "keep the k likeliest tokens; 0 is off")
        ->capture_default_str()->group(group);
    command.add_option("--top-p", flags.top_p, "keep the likeliest tokens up to this probability")
        ->capture_default_str()->group(group);
    command.add_option("--min-p", flags.min_p, "drop tokens below this part of the likeliest")
        ->capture_default_str()->group(group);
    command.add_option("--seed", flags.seed, "-1 is another every time")
        ->capture_default_str()->group(group);
}

Status check_sampling(const SamplingFlags& flags) {
    if (!std::isfinite(flags.temperature) || flags.temperature < 0.0F) {
        return input_error(fmt::format("--temp {}: must be 0 or more", flags.temperature));
    }
    if (flags.top_k < 0) {
        return input_error(fmt::format("--top-k {}: must be 0 or more", flags.top_k));
    }
    if (flags.seed < -1 || flags.seed > std::numeric_limits<uint32_t>::max()) {
        return input_error(fmt::format("--seed {}: must be -1 to 4294967295", flags.seed));
    }
    SHOAL_TRY(check_part("--top-p", flags.top_p));
    return check_part("--min-p", flags.min_p);
}

SamplerPtr make_sampler(const SamplingFlags& flags) {
    SamplerPtr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (flags.temperature == 0.0F) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
        return chain;
    }
    const uint32_t seed = flags.seed < 0 ? LLAMA_DEFAULT_SEED : static_cast<uint32_t>(flags.seed);
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(flags.top_k));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(flags.top_p, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(flags.min_p, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(flags.temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(seed));
    return chain;
}

llama_token sample_from(llama_sampler* sampler, std::span<const float> logits) {
    std::vector<llama_token_data> candidates;
    candidates.reserve(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
        candidates.push_back({static_cast<llama_token>(i), logits[i], 0.0F});
    }
    llama_token_data_array all = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(sampler, &all);
    const llama_token token = all.data[all.selected].id;
    llama_sampler_accept(sampler, token);
    return token;
}

}  // namespace shoal::tool
