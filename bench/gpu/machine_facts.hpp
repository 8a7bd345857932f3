// What a reader must know of the machine to compare figures: driver, link, clocks. Asked of the
// driver's management library if it is there; nothing of it is needed to measure.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace shoal::gpu {

// `pci_bus_id` as cudaDeviceGetPCIBusId gives it. What cannot be found out is "unknown".
std::vector<std::pair<std::string, std::string>> machine_facts(const std::string& pci_bus_id);

// Contents of a file, "" if it cannot be read.
std::string file_text(const std::string& path);

}  // namespace shoal::gpu
