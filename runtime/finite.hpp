// Whether a tensor holds only finite numbers: checked before anything of it is stored or used.
#pragma once

#include "shoal/types.hpp"

namespace shoal {

// True for an empty tensor.
bool all_finite(const ConstTensor& tensor);

}  // namespace shoal
