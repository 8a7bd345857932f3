#include "runtime/label_source.hpp"

#include <fmt/format.h>

#include "calib/choose_channels.hpp"
#include "calib/profile_text.hpp"

namespace shoal {

LabelSource::LabelSource(const Config& config, const ModelShape& shape, std::string fingerprint)
    : label_bits_(config.selector.label_bits),
      row_bits_(config.selector.row_bits),
      tokens_wanted_(config.profile.tokens),
      path_(config.profile.path),
      fingerprint_(std::move(fingerprint)),
      shape_(shape) {}

Status LabelSource::load() {
    if (path_.empty()) {
        learnt_ = std::make_unique<calib::ChannelStatistics>(shape_);
        return Status::ok();
    }
    Result<calib::Profile> profile = calib::read_profile(path_);
    if (!profile) {
        return Status::error(profile.status().code(),
                             fmt::format("profile.path: {}", profile.status().message()));
    }
    const Status fits = calib::check_profile(*profile, shape_, fingerprint_);
    if (!fits) {
        return Status::error(fits.code(), fmt::format("profile.path = \"{}\": {}", path_,
                                                      fits.message()));
    }
    profile_ = std::move(*profile);
    return Status::ok();
}

void LabelSource::observe_keys(uint32_t layer, const ConstTensor& k) {
    if (learnt_ != nullptr && learnt_->key_token_count({layer}) < tokens_wanted_) {
        learnt_->observe_keys({layer}, k);
    }
}

void LabelSource::observe_queries(uint32_t layer, const ConstTensor& q) {
    if (learnt_ != nullptr && learnt_->query_token_count({layer}) < tokens_wanted_) {
        learnt_->observe_queries({layer}, q);
    }
}

bool LabelSource::ready(uint32_t layer) const {
    if (profile_) return true;
    return learnt_ != nullptr && learnt_->key_token_count({layer}) >= tokens_wanted_ &&
           learnt_->query_token_count({layer}) >= tokens_wanted_;
}

bool LabelSource::ready() const {
    for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
        if (shape_.layers[l].kind == LayerKind::full && !ready(l)) return false;
    }
    return true;
}

std::vector<kernels::LabelFormat> LabelSource::make_formats(const Group& group) const {
    std::vector<kernels::LabelFormat> formats;
    for (uint32_t i = 0; i < group.piece.kv_head_count; ++i) {
        const uint32_t kv_head = group.kv_head_first + i;
        const calib::ChannelMoments moments =
            profile_ ? profile_->layers[group.layer].heads[kv_head]
                     : learnt_->moments({group.layer}, kv_head);
        calib::ChooseInput in;
        in.moments = &moments;
        in.label_bits = label_bits_;
        in.bit_budget = calib::label_bit_budget(row_bits_, group.piece.k_head_dim);
        calib::ChannelChoice choice = calib::choose_channels(in);
        formats.push_back(kernels::make_label_format(
            std::move(choice.channels), std::move(choice.mean), group.piece.k_head_dim));
    }
    return formats;
}

Result<std::string> LabelSource::profile_text() const {
    if (!ready()) return std::string();
    if (profile_) return calib::profile_to_text(*profile_, "profile");
    return calib::profile_to_text(
        calib::profile_from(*learnt_, fingerprint_, "tokens of a saved sequence"), "profile");
}

void LabelSource::adopt(calib::Profile profile) {
    SHOAL_ASSERT(!ready());
    profile_ = std::move(profile);
    learnt_.reset();
}

Status LabelSource::write(const std::string& path, const std::string& source) const {
    if (profile_) return calib::write_profile(path, *profile_);
    const uint64_t seen = learnt_ == nullptr ? 0 : learnt_->token_count();
    if (seen < kTokensToWriteMin) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("profile: {} tokens seen: must be {} or more to write "
                                         "channel statistics",
                                         seen, kTokensToWriteMin));
    }
    return calib::write_profile(path, calib::profile_from(*learnt_, fingerprint_, source));
}

}  // namespace shoal
