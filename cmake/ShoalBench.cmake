# One program per file of bench/: bench/topk.cpp -> bench_topk. A bench may use Google Benchmark
# (without its main) or be plain; one that needs llama.cpp is named llama_*.cpp.

find_package(benchmark REQUIRED)
file(GLOB bench_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/*.cpp")
foreach(source IN LISTS bench_sources)
    cmake_path(GET source STEM stem)
    if(stem MATCHES "^llama_" AND NOT SHOAL_HAVE_LLAMA_CPP)
        message(STATUS "bench_${stem}: left out, no llama.cpp")
        continue()
    endif()
    add_executable(bench_${stem} ${source})
    target_include_directories(bench_${stem} PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(bench_${stem} PRIVATE benchmark::benchmark Threads::Threads shoal_flags)
    if(stem MATCHES "^llama_")
        target_link_libraries(bench_${stem} PRIVATE shoal llama_cpp::host)
    else()
        target_link_libraries(bench_${stem} PRIVATE shoal_core)
    endif()
    set_target_properties(bench_${stem} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endforeach()
