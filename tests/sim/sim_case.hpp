// What a seed decides before a simulation begins.
#pragma once

#include <random>

#include "shoal/config.hpp"
#include "shoal/types.hpp"
#include "tests/sim/sim_disk.hpp"

namespace shoal::sim {

// Most seeds have one kind of fault, so that what it does is not hidden by others; some none, some
// all.
DiskPlan random_disk(std::mt19937_64& random);
ModelShape random_shape(std::mt19937_64& random);
Config random_config(std::mt19937_64& random);
// Another way to read ahead, hints among them often.
Config::Prefetch random_prefetch(std::mt19937_64& random);

}  // namespace shoal::sim
