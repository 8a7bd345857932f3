# -DSHOAL_CUDA=ON: the CUDA backend, a plugin of its own (libshoal_cuda.so) that libshoal.so opens
# at run time, and bench/gpu. libshoal.so itself has no CUDA symbol.

shoal_sources(cuda_host_sources FOLDERS kernels/cuda)
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu")
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
find_package(CUDAToolkit REQUIRED)

if(cuda_sources)
    add_library(shoal_cuda MODULE ${cuda_sources} ${cuda_host_sources})
    target_include_directories(shoal_cuda PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(shoal_cuda PRIVATE shoal_public CUDA::cudart_static)
    set_target_properties(shoal_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endif()
add_subdirectory("${PROJECT_SOURCE_DIR}/bench/gpu")
