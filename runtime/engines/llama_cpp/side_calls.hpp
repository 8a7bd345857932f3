// shoal_llama.h, by name.
#pragma once

namespace shoal::llama_cpp {

// The function of shoal_llama.h that is called `name`, or null.
void* side_call(const char* name);

}  // namespace shoal::llama_cpp
