// What the host program, or SHOAL_CONFIG, chose for contexts that are made afterwards.
#pragma once

#include <string>

#include "shoal/config.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

// Configuration of the next context: the text given by shoal_llama_configure, else the file that
// SHOAL_CONFIG names (read at each call), else the defaults.
Result<Config> next_config();

// Null: as if it had never been called.
Status set_next_config(const char* text);

void set_next_model(const char* fingerprint);
std::string next_model();

void set_delegate(bool on);
bool delegate_on();

}  // namespace shoal::llama_cpp
