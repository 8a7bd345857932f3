// The text of a profile and its rules. For files that hold one.
#pragma once

#include <string>

#include "calib/profile.hpp"

namespace shoal::calib {

// Counts, ranges and finiteness of every field. `name` begins the message, `code` is the error's.
Status check_fields(const Profile& profile, const std::string& name, StatusCode code);

// JSON, one line per array of numbers, the checksum last. The profile has passed check_fields().
Result<std::string> profile_to_text(const Profile& profile, const std::string& name);

}  // namespace shoal::calib
