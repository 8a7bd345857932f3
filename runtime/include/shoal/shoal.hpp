// The public C++ interface of Shoal, in one include.
#pragma once

#include "shoal/config.hpp"
#include "shoal/session.hpp"
#include "shoal/stats.hpp"
#include "shoal/status.hpp"
#include "shoal/trace.hpp"
#include "shoal/types.hpp"
