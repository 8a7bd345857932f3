// A profile: the channel statistics of a model in a file, so that labels exist from token one.
//
// The file is JSON: the moments themselves rather than chosen channels, so that one profile
// serves every label_bits and row_bits. It ends with a checksum over everything before it.
// Errors are one sentence: "file: field = value: what is allowed".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calib/channel_statistics.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::calib {

struct LayerProfile {
    uint32_t k_head_dim = 0;            // 0 when there are no heads
    std::vector<ChannelMoments> heads;  // [kv_head_count]; empty: the layer keeps no labels
    bool operator==(const LayerProfile&) const = default;
};

struct Profile {
    static constexpr uint32_t kVersion = 1;
    std::string model_fingerprint;  // SessionOptions::model_fingerprint; "" = not known
    std::string source;             // the text that the statistics were learnt from
    uint64_t token_count = 0;       // 1 ..
    uint32_t q_head_count = 0;      // 1 ..
    std::vector<LayerProfile> layers;
    // Layers better served dense; ascending. Absent: no recommendation.
    std::optional<std::vector<uint32_t>> dense_layers;
    bool operator==(const Profile&) const = default;
};

Profile profile_from(const ChannelStatistics& statistics, const std::string& model_fingerprint,
                     const std::string& source);

// The whole file is read and verified before anything is returned. not_found: no such file;
// corrupt: damaged, cut, edited, or numbers that cannot be; unsupported: another version;
// invalid_argument: not a regular file, or larger than kProfileBytesMax.
inline constexpr uint64_t kProfileBytesMax = uint64_t{64} << 20;
Result<Profile> read_profile(const std::string& path);
// The same for text in memory; `name` stands for the path in messages.
Result<Profile> parse_profile(const std::string& text, const std::string& name);

// Writes a temporary file beside `path`, syncs it and renames it: `path` holds the old content
// or the new, never a part. A profile with NaN, Inf or wrong counts is refused.
Status write_profile(const std::string& path, const Profile& profile);

// Whether the profile was made for this model: invalid_argument names the field and both values.
// Fingerprints are compared when neither is empty.
Status check_profile(const Profile& profile, const ModelShape& shape,
                     const std::string& model_fingerprint);

}  // namespace shoal::calib
