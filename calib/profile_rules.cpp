// What a profile must be like, whatever it came from.
#include <fmt/format.h>

#include <cmath>

#include "calib/profile_text.hpp"

namespace shoal::calib {
namespace {

constexpr uint32_t kLayersMax = 4096;
constexpr uint32_t kHeadDimMax = 256;
constexpr uint32_t kQueryHeadsPerKvMax = 16;

class Rules {
public:
    Rules(const std::string& name, StatusCode code) : name_(name), code_(code) {}

    Status error(const std::string& field, const std::string& value,
                 const std::string& allowed) const {
        return Status::error(code_, fmt::format("{}: {} = {}: {}", name_, field, value, allowed));
    }

    Status check_numbers(const std::string& field, const std::vector<float>& values,
                         uint32_t count, bool may_be_negative) const {
        if (values.size() != count) {
            return error(field, fmt::format("{} numbers", values.size()),
                         fmt::format("must be {}, one per key channel", count));
        }
        for (size_t i = 0; i < values.size(); ++i) {
            if (std::isfinite(values[i]) && (may_be_negative || values[i] >= 0)) continue;
            return error(fmt::format("{}[{}]", field, i), fmt::format("{}", values[i]),
                         may_be_negative ? "must be a finite number"
                                         : "must be a finite number, 0 or more");
        }
        return Status::ok();
    }

    Status check_layer(const std::string& field, const LayerProfile& layer,
                       uint32_t q_head_count) const {
        if (layer.heads.empty()) {
            if (layer.k_head_dim == 0) return Status::ok();
            return error(field + ".k_head_dim", fmt::to_string(layer.k_head_dim),
                         "must be 0 for a layer without heads");
        }
        const uint32_t dim = layer.k_head_dim;
        if (dim < 32 || dim > kHeadDimMax || dim % 16 != 0) {
            return error(field + ".k_head_dim", fmt::to_string(dim),
                         "must be 32 to 256 in steps of 16");
        }
        const size_t heads = layer.heads.size();
        if (q_head_count % heads != 0 || q_head_count / heads > kQueryHeadsPerKvMax) {
            return error(field + ".heads", fmt::format("{} KV heads", heads),
                         fmt::format("must divide q_head_count = {}, at most {} to one",
                                     q_head_count, kQueryHeadsPerKvMax));
        }
        for (size_t h = 0; h < heads; ++h) {
            const std::string head = fmt::format("{}.heads[{}]", field, h);
            const ChannelMoments& moments = layer.heads[h];
            SHOAL_TRY(check_numbers(head + ".key_mean", moments.key_mean, dim, true));
            SHOAL_TRY(
                check_numbers(head + ".key_variance", moments.key_variance, dim, false));
            SHOAL_TRY(
                check_numbers(head + ".query_square", moments.query_square, dim, false));
        }
        return Status::ok();
    }

    Status check_dense_layers(const std::vector<uint32_t>& layers, size_t layer_count) const {
        for (size_t i = 0; i < layers.size(); ++i) {
            const std::string field = fmt::format("dense_layers[{}]", i);
            if (layers[i] >= layer_count) {
                return error(field, fmt::to_string(layers[i]),
                             fmt::format("must be less than the number of layers, {}",
                                         layer_count));
            }
            if (i > 0 && layers[i] <= layers[i - 1]) {
                return error(field, fmt::to_string(layers[i]),
                             fmt::format("must be more than the one before it, {}", layers[i - 1]));
            }
        }
        return Status::ok();
    }

private:
    const std::string& name_;
    StatusCode code_;
};

}  // namespace

Status check_fields(const Profile& profile, const std::string& name, StatusCode code) {
    const Rules rules(name, code);
    if (profile.token_count == 0) return rules.error("token_count", "0", "must be 1 or more");
    if (profile.q_head_count == 0) return rules.error("q_head_count", "0", "must be 1 or more");
    if (profile.layers.empty() || profile.layers.size() > kLayersMax) {
        return rules.error("layers", fmt::format("{} layers", profile.layers.size()),
                           fmt::format("must be 1 to {}", kLayersMax));
    }
    for (size_t l = 0; l < profile.layers.size(); ++l) {
        SHOAL_TRY(rules.check_layer(fmt::format("layers[{}]", l), profile.layers[l],
                                    profile.q_head_count));
    }
    if (profile.dense_layers) {
        return rules.check_dense_layers(*profile.dense_layers, profile.layers.size());
    }
    return Status::ok();
}

}  // namespace shoal::calib
