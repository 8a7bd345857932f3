# Fuzz targets, with libFuzzer: everything is instrumented, so a build folder of their own
# (cmake --preset fuzz). Run: build/fuzz/fuzz_make_seeds SEEDS, then
# build/fuzz/fuzz_saved_sequence CORPUS SEEDS.

find_package(GTest REQUIRED)
# No kernel is fuzzed: one instruction set is quicker to build.
target_compile_definitions(shoal_kernels PRIVATE HWY_COMPILE_ONLY_SCALAR)

add_executable(fuzz_saved_sequence tests/fuzz/saved_sequence_fuzz.cpp)
target_link_libraries(fuzz_saved_sequence PRIVATE shoal_core shoal_flags)
target_link_options(fuzz_saved_sequence PRIVATE -fsanitize=fuzzer)

add_executable(fuzz_make_seeds tests/fuzz/make_seeds.cpp)
target_link_libraries(fuzz_make_seeds PRIVATE shoal_core GTest::gtest shoal_flags)

foreach(target fuzz_saved_sequence fuzz_make_seeds)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}")
endforeach()
