# -DSHOAL_CUDA=ON: the CUDA backend, a plugin of its own (libshoal_cuda.so) that libshoal.so opens
# at run time, and the GPU benches. libshoal.so itself has no CUDA symbol.

shoal_sources(cuda_host_sources FOLDERS kernels/cuda)
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu")
file(GLOB cuda_bench_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/gpu/*.cu")
if(NOT cuda_sources AND NOT cuda_bench_sources)
    message(STATUS "SHOAL_CUDA: nothing to build yet (no kernels/cuda/*.cu, no bench/gpu/*.cu)")
    return()
endif()

enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
find_package(CUDAToolkit REQUIRED)

if(cuda_sources)
    add_library(shoal_cuda MODULE ${cuda_sources} ${cuda_host_sources})
    target_include_directories(shoal_cuda PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(shoal_cuda PRIVATE shoal_public CUDA::cudart_static)
    set_target_properties(shoal_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endif()
foreach(source IN LISTS cuda_bench_sources)
    cmake_path(GET source STEM stem)
    add_executable(bench_gpu_${stem} ${source})
    target_include_directories(bench_gpu_${stem} PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(bench_gpu_${stem} PRIVATE shoal_public CUDA::cudart)
    set_target_properties(bench_gpu_${stem} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endforeach()
