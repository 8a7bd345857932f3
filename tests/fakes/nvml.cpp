// Stands for libnvidia-ml.so.1 on a machine without one: a driver with a single device. Signatures
// are those that doctor_devices.cpp asks for by name.
#include <cstdio>

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }

int nvmlSystemGetDriverVersion(char* text, unsigned size) {
    std::snprintf(text, size, "999.11.22");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    static int handle = 0;
    *device = &handle;
    return index == 0 ? 0 : 2;
}

int nvmlDeviceGetName(void*, char* text, unsigned size) {
    std::snprintf(text, size, "Testbed 9000");
    return 0;
}

int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
    total_free_used[0] = 80ULL << 30;
    total_free_used[1] = 79ULL << 30;
    total_free_used[2] = 1ULL << 30;
    return 0;
}

}  // extern "C"
