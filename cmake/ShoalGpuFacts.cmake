# What bench/gpu decides on the host, and its kernels run by the emulator: tested without nvcc and
# without a GPU. The program itself: bench/gpu.sh, or -DSHOAL_CUDA=ON.

file(GLOB gpu_facts_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/gpu/*.cpp")
add_library(shoal_gpu_facts STATIC ${gpu_facts_sources})
target_include_directories(shoal_gpu_facts PUBLIC "${PROJECT_SOURCE_DIR}")
target_link_libraries(shoal_gpu_facts PUBLIC shoal_kernels PRIVATE shoal_flags ${CMAKE_DL_LIBS})

shoal_test(gpu_facts BUDGET 2 LONG_BUDGET 4 LINK shoal_gpu_facts nlohmann_json::nlohmann_json
    THREADED "RegisteredMemory*:PartWriteBack*:PartLink*")
