# What stands on libshoal.so: the plugin for llama.cpp (libggml-shoal.so), the library for programs
# that embed llama.cpp (libshoal_llama_host.so) with its example, and the tool (shoal).

set(SHOAL_HAVE_PLUGIN OFF)
set(SHOAL_HAVE_TOOL OFF)
if(NOT SHOAL_HAVE_LLAMA_CPP)
    return()
endif()

shoal_sources(plugin_sources FOLDERS runtime/engines/llama_cpp
    EXCLUDE runtime/engines/llama_cpp/host)
if(plugin_sources)
    set(SHOAL_HAVE_PLUGIN ON)
    add_library(ggml-shoal MODULE ${plugin_sources})
    target_include_directories(ggml-shoal PRIVATE "${PROJECT_SOURCE_DIR}/runtime/engines/llama_cpp")
    target_link_libraries(ggml-shoal PRIVATE shoal llama_cpp::plugin llama_cpp::ggml fmt::fmt
        ${CMAKE_DL_LIBS} shoal_flags shoal_narrowing)
    # ggml's own switches for a backend that is loaded at run time.
    target_compile_definitions(ggml-shoal PRIVATE GGML_BACKEND_DL GGML_BACKEND_BUILD
        GGML_BACKEND_SHARED)
    # What it is built against, compared with what is loaded: ggml promises no stable ABI.
    file(STRINGS "${SHOAL_LLAMA_CPP_DIR}/ggml/CMakeLists.txt" ggml_version_lines
        REGEX "^set\\(GGML_VERSION_(MAJOR|MINOR|PATCH) [0-9]+\\)")
    list(TRANSFORM ggml_version_lines REPLACE "[^0-9]" "")
    list(JOIN ggml_version_lines "." ggml_version)
    target_compile_definitions(ggml-shoal PRIVATE
        "SHOAL_GGML_VERSION=\"${ggml_version}\"" "SHOAL_VERSION=\"${PROJECT_VERSION}\"")
    # Found beside libshoal.so wherever the two are put; ggml is the one the engine has loaded.
    set_target_properties(ggml-shoal PROPERTIES
        LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}"
        BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN")
else()
    message(STATUS "ggml-shoal: no sources yet")
endif()

shoal_sources(host_sources FOLDERS runtime/engines/llama_cpp/host)
add_library(shoal_llama_host SHARED ${host_sources})
target_include_directories(shoal_llama_host PUBLIC "${PROJECT_SOURCE_DIR}")
target_link_libraries(shoal_llama_host PUBLIC llama_cpp::host
    PRIVATE shoal fmt::fmt ${CMAKE_DL_LIBS} shoal_flags shoal_narrowing)
set_target_properties(shoal_llama_host PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")

add_executable(shoal_simple examples/simple.cpp)
target_link_libraries(shoal_simple PRIVATE shoal_llama_host shoal_flags)
set_target_properties(shoal_simple PROPERTIES OUTPUT_NAME simple
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
add_dependencies(shoal_simple ggml-shoal)

shoal_sources(tool_sources FOLDERS runtime/tool)
if(tool_sources)
    set(SHOAL_HAVE_TOOL ON)
    add_executable(shoal_tool ${tool_sources})
    target_include_directories(shoal_tool PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(shoal_tool PRIVATE shoal shoal_llama_host llama_cpp::host
        CLI11::CLI11 fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json
        tomlplusplus::tomlplusplus Threads::Threads ${CMAKE_DL_LIBS} shoal_flags shoal_narrowing)
    # Its headers are large and its loops short: a third less time to compile than with -O3.
    target_compile_options(shoal_tool PRIVATE
        $<$<CONFIG:RelWithDebInfo>:$<IF:$<BOOL:${SHOAL_SANITIZE}>,-O0,-O1>>)
    set_target_properties(shoal_tool PROPERTIES OUTPUT_NAME shoal
        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
    if(SHOAL_HAVE_PLUGIN)
        add_dependencies(shoal_tool ggml-shoal)
    endif()
else()
    message(STATUS "shoal_tool: no sources yet")
endif()
