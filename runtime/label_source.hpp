// Where the label channels of each group come from: a profile, or the first tokens seen.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "calib/profile.hpp"
#include "kernels/label.hpp"
#include "runtime/groups.hpp"
#include "shoal/config.hpp"

namespace shoal {

class LabelSource {
public:
    LabelSource(const Config& config, const ModelShape& shape, std::string fingerprint);

    // Reads config.profile.path when it is set: every layer is ready then, or the reason why not.
    Status load();

    // Adds keys and queries of a layer while its channels are not known. Cheap afterwards.
    void observe_keys(uint32_t layer, const ConstTensor& k);
    void observe_queries(uint32_t layer, const ConstTensor& q);
    // Whether the channels of the layer can be chosen now.
    bool ready(uint32_t layer) const;
    bool ready() const;

    // Label formats of one group, [kv_head_count]. The layer is ready.
    std::vector<kernels::LabelFormat> make_formats(const Group& group) const;
    Status write(const std::string& path, const std::string& source) const;
    // The profile of the labels that are made here, as text; "" while there is none.
    Result<std::string> profile_text() const;
    // Labels are made from this profile from now on. Only while not ready().
    void adopt(calib::Profile profile);

private:
    static constexpr uint64_t kTokensToWriteMin = 256;

    LabelBits label_bits_;
    uint32_t row_bits_;
    uint64_t tokens_wanted_;
    std::string path_;
    std::string fingerprint_;
    ModelShape shape_;
    std::optional<calib::Profile> profile_;
    std::unique_ptr<calib::ChannelStatistics> learnt_;  // null once a profile is loaded
};

}  // namespace shoal
