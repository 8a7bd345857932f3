# One GoogleTest program per folder under tests/, and tests/tidy.py.
#
# Each program is one ctest test ("suite") with a budget in minutes, which is its time limit too.
# Suites and cases whose name begins with "Long" run apart, as <suite>_long with the label `long`;
# tests/run leaves that label out unless --full is given.

find_package(GTest REQUIRED)
find_package(Python3 REQUIRED COMPONENTS Interpreter)

set(results_dir "${PROJECT_BINARY_DIR}/results")
file(MAKE_DIRECTORY "${results_dir}")

function(shoal_budget test minutes)
    math(EXPR seconds "${minutes} * 60")
    if(SHOAL_SANITIZE OR CMAKE_CROSSCOMPILING)
        # Measured: sanitizers 2 to 4 times slower, on smaller inputs; emulation 6, on one target.
        math(EXPR seconds "${seconds} * 2")
    endif()
    set_tests_properties(${test} PROPERTIES TIMEOUT ${seconds} LABELS "${ARGN}")
endfunction()

# shoal_test(FOLDER BUDGET minutes LONG_BUDGET minutes LINK lib... [DEFINE d...] [DEPENDS t...]
#            [THREADED filter] [FOR_THREADS case...] [UNSANITIZED case...])
# THREADED: the cases that TSan is to see, those that share work among threads; all without it.
# FOR_THREADS: cases that ASan is not to see: they run others' paths with more threads.
# UNSANITIZED: cases that neither is to see: they compare figures, or take minutes, on paths that
# others run too.
function(shoal_test folder)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "BUDGET;LONG_BUDGET;THREADED"
        "LINK;DEFINE;DEPENDS;FOR_THREADS;UNSANITIZED")
    shoal_sources(sources FOLDERS tests/${folder})
    if(NOT sources)
        message(STATUS "test_${folder}: no sources yet")
        return()
    endif()
    set(target test_${folder})
    add_executable(${target} ${sources})
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}")
    target_compile_definitions(${target} PRIVATE ${arg_DEFINE})
    # What a test waits for is in the libraries: a third less time to compile.
    target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
    target_link_libraries(${target} PRIVATE ${arg_LINK} GTest::gmock GTest::gtest_main
        Threads::Threads ${CMAKE_DL_LIBS} shoal_flags)
    set_target_properties(${target} PROPERTIES SHOAL_IS_TEST ON
        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
    if(arg_DEPENDS)
        add_dependencies(${target} ${arg_DEPENDS})
    endif()
    set(long "Long*:*/Long*:*.Long*")
    set(quick "")
    set(left_out "${long}")
    if(SHOAL_SANITIZE STREQUAL "thread")
        set(quick "${arg_THREADED}")
    elseif(SHOAL_SANITIZE)
        list(APPEND arg_UNSANITIZED ${arg_FOR_THREADS})
    endif()
    if(SHOAL_SANITIZE)
        list(JOIN arg_UNSANITIZED ":" left_out)
        set(left_out "${left_out}:${long}")
    endif()
    add_test(NAME ${folder} COMMAND ${target}
        "--gtest_filter=${quick}-${left_out}" "--gtest_output=json:${results_dir}/${folder}.json")
    add_test(NAME ${folder}_long COMMAND ${target}
        "--gtest_filter=${long}" "--gtest_output=json:${results_dir}/${folder}_long.json")
    shoal_budget(${folder} ${arg_BUDGET} suite)
    shoal_budget(${folder}_long ${arg_LONG_BUDGET} long)
endfunction()

# The quick cases of a suite once more under configurations that its tests read from the
# environment (SHOAL_TEST_CONFIG), several of them joined by commas.
function(shoal_test_under folder configs)
    string(REPLACE "," "_" name "${folder}_under_${configs}")
    add_test(NAME ${name} COMMAND test_${folder} "--gtest_filter=-Long*:*/Long*:*.Long*"
        "--gtest_output=json:${results_dir}/${name}.json")
    shoal_budget(${name} 4 full)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "SHOAL_TEST_CONFIG=${configs}")
endfunction()

# The portable target is compiled from the sources of the others.
shoal_test(kernels BUDGET 2 LONG_BUDGET 3 LINK shoal_kernels
    THREADED "*Thread*:*InParts*:*AttendBackend*"
    UNSANITIZED "*PassesDoNotChangeABit/ref" "*/SCALAR" "*/SCALAR_*")

# The quick cases of every op on a processor that this machine is not. COMMAND runs test_kernels.
function(shoal_test_emulated target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "COMMAND")
    set(filter "*Dispatch*")
    foreach(cases Append Attend Merge Topk InParts EncodeOf ThreadCount)
        string(APPEND filter ":*${cases}*/${target}*")
    endforeach()
    add_test(NAME kernels_emulated_${target} COMMAND ${arg_COMMAND} "--gtest_filter=${filter}"
        "--gtest_output=json:${results_dir}/kernels_emulated_${target}.json")
    shoal_budget(kernels_emulated_${target} 2 full)
endfunction()

if(SHOAL_KERNELS_ONLY)
    if(CMAKE_CROSSCOMPILING)
        shoal_test_emulated(NEON COMMAND test_kernels)    # the toolchain file names the emulator
    endif()
    return()
endif()
find_program(SHOAL_QEMU_X86_64 qemu-x86_64)
if(SHOAL_QEMU_X86_64 AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64" AND NOT SHOAL_SANITIZE)
    # It has no AVX-512.
    shoal_test_emulated(AVX2
        COMMAND "${SHOAL_QEMU_X86_64}" -cpu max $<TARGET_FILE:test_kernels>)
endif()
shoal_test(offload BUDGET 1 LONG_BUDGET 2 LINK shoal_offload)
shoal_test(calib BUDGET 1 LONG_BUDGET 2 LINK shoal_core)
shoal_test(runtime BUDGET 3 LONG_BUDGET 3 LINK shoal_core
    THREADED "*Threads*:*SessionOnDisk*:*SessionS*:*SessionLabels*:*SessionRe*:*Executor*:*Plain*"
    FOR_THREADS "*ThreadsDoNotChangeABit*" "AdaptiveRows.A*"
    UNSANITIZED "*SessionOnDisk*/few_rows" "SessionOnDiskRefuses.NoDescriptorsAreLeft"
        "Summaries.PlanIsWhatIsTaken" "*SessionOnDisk*/token_of_one_block"
        "*SessionOnDisk*/head" "*SessionOnDisk*/dense" "*SessionOnDisk*/f32"
        "*SessionOnDisk*/hybrid" "*SessionOnDisk*/tidal" "*SessionOnDisk*/pages"
        "PrefetchOf.*" "*Prefetch*/known" "*Prefetch*/steps" "*Prefetch*/last_query"
        "*Prefetch*/query_of_heads" "*Prefetch*/none" "PrefetchTrial*.*" "FilePlaces.*"
        "*SessionOnDisk*/q8")
if(NOT SHOAL_SANITIZE)
    foreach(configs "one-thread,tiny-budget" head-sharing disk)
        shoal_test_under(runtime "${configs}")
    endforeach()
endif()

# A session whose disk, clock and queue follow from one seed; and once more over a block cache that
# does not wait for what it reads, which the simulation must find.
# More seeds: SHOAL_TEST_RUNS=100000 SHOAL_TEST_SEED=1 build/cpu/test_sim
shoal_test(sim BUDGET 3 LONG_BUDGET 1 LINK shoal_core)
shoal_sources(sim_sources FOLDERS tests/sim)
add_executable(test_sim_of_bug ${sim_sources} offload/block_cache.cpp)
target_compile_definitions(test_sim_of_bug PRIVATE SHOAL_BUG_MISSING_WAIT)
target_include_directories(test_sim_of_bug PRIVATE "${PROJECT_SOURCE_DIR}")
target_link_libraries(test_sim_of_bug PRIVATE shoal_core GTest::gtest_main Threads::Threads
    shoal_flags)
set_target_properties(test_sim_of_bug PROPERTIES SHOAL_IS_TEST ON
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
add_test(NAME sim_finds_a_missing_wait
    COMMAND test_sim_of_bug "--gtest_filter=Simulation.AnswersAsInRam*")
shoal_budget(sim_finds_a_missing_wait 1 suite)
set_tests_properties(sim_finds_a_missing_wait PROPERTIES
    PASS_REGULAR_EXPRESSION "attention differs from RAM|use-after-poison")

set(test_data
    "SHOAL_TEST_MODEL=\"${SHOAL_TEST_DATA_DIR}/SmolLM2-135M-Instruct.Q4_1.gguf\""
    "SHOAL_TEST_TEXT_DIR=\"${SHOAL_TEST_DATA_DIR}/austen\""
    "SHOAL_TEST_PROFILE=\"${PROJECT_SOURCE_DIR}/examples/smollm2-135m.profile\""
    "SHOAL_TEST_LLAMA_BIN_DIR=\"${llama_build_dir}/bin\"")
if(SHOAL_HAVE_PLUGIN)
    shoal_test(engines BUDGET 5 LONG_BUDGET 4 LINK shoal shoal_llama_host llama_cpp::host
        llama_cpp::plugin fmt::fmt nlohmann_json::nlohmann_json DEPENDS ggml-shoal shoal_simple
        DEFINE ${test_data} "SHOAL_TEST_PLUGIN=\"$<TARGET_FILE:ggml-shoal>\""
        "SHOAL_TEST_EXAMPLE=\"$<TARGET_FILE:shoal_simple>\""
        UNSANITIZED "Types/*" "*AsCloseToStock*" "*SparseAlone*" "Visible.SparseInA*"
            "Attention.*" "*OnDisk.*" "*Q8*" "SavedSequence.ARefused*" "SavedSequence.WhatDoesNot*"
            "SavedSequence.LogitsAre*" "Identity.StateThroughFile" "*Sequences*4Streams*"
            "NoteBatch.WhatIsRead*" "NoteBatch.FollowsShifts*")
    set_tests_properties(engines PROPERTIES COST 1000)  # the longest begins first
    # Parts of the plugin that are tested by themselves.
    target_sources(test_engines PRIVATE
        "${PROJECT_SOURCE_DIR}/runtime/engines/llama_cpp/query_chain.cpp"
        "${PROJECT_SOURCE_DIR}/runtime/engines/llama_cpp/cpu_backend.cpp")
    target_include_directories(test_engines PRIVATE
        "${PROJECT_SOURCE_DIR}/runtime/engines/llama_cpp")
endif()
if(SHOAL_HAVE_TOOL)
    # Stands for a GPU driver's library on a machine that has none.
    add_library(test_fake_nvml MODULE tests/fakes/nvml.cpp)
    set_target_properties(test_fake_nvml PROPERTIES PREFIX "" OUTPUT_NAME "libnvidia-ml"
        SUFFIX ".so.1" LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fakes")
    shoal_test(tool BUDGET 3 LONG_BUDGET 4 LINK shoal fmt::fmt nlohmann_json::nlohmann_json
        DEPENDS shoal_tool test_fake_nvml
        DEFINE ${test_data} "SHOAL_TEST_TOOL=\"$<TARGET_FILE:shoal_tool>\""
        "SHOAL_TEST_FAKES=\"${PROJECT_BINARY_DIR}/fakes\""
        UNSANITIZED "*CompareMeasures*" "*EvalReports*")
    set_tests_properties(tool PROPERTIES RUN_SERIAL ON)  # it compares speeds
endif()

if(NOT SHOAL_SANITIZE)
    add_test(NAME tidy COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/tests/tidy.py")
    add_test(NAME tidy_self_test
        COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/tests/tidy.py" --self-test)
    # Without tests and benches, which need no second opinion.
    add_test(NAME clang_accepts COMMAND Python3::Interpreter
        "${PROJECT_SOURCE_DIR}/tests/clang_check.py" "${PROJECT_BINARY_DIR}" --without tests bench)
    shoal_budget(clang_accepts 5 full)
    set_tests_properties(clang_accepts PROPERTIES PROCESSORS 2)
    shoal_budget(tidy 1 suite)
    shoal_budget(tidy_self_test 1 suite)
endif()
