# llama.cpp, which is never built nor changed from here: imported targets on a finished build.
#
#   llama_cpp::plugin  libggml-base.so and the backend headers: all that the plugin may need
#   llama_cpp::host    libllama.so with ggml: what a host program links
#
# Sets SHOAL_HAVE_LLAMA_CPP and, where it is OFF, SHOAL_NO_LLAMA_CPP with the reason.

set(llama_dir "${SHOAL_LLAMA_CPP_DIR}")
set(llama_build_dir "${SHOAL_LLAMA_CPP_BUILD_DIR}")
if(NOT llama_build_dir AND llama_dir STREQUAL "${PROJECT_SOURCE_DIR}/build/deps/llama.cpp")
    set(llama_build_dir "${PROJECT_SOURCE_DIR}/build/llama")
elseif(NOT llama_build_dir)
    set(llama_build_dir "${llama_dir}/build")
endif()
set(llama_lib_dirs "${llama_build_dir}/bin" "${llama_build_dir}/lib" "${llama_build_dir}")
set(SHOAL_HAVE_LLAMA_CPP ON)

foreach(header include/llama.h ggml/include/ggml.h ggml/src/ggml-backend-impl.h)
    if(NOT EXISTS "${llama_dir}/${header}")
        set(SHOAL_HAVE_LLAMA_CPP OFF)
        set(SHOAL_NO_LLAMA_CPP "SHOAL_LLAMA_CPP_DIR = ${llama_dir}: no ${header} there")
    endif()
endforeach()

foreach(name ggml-base ggml-cpu ggml llama)
    # A plain search at every configure: the library may appear or go after this tree was made.
    unset(library)
    find_library(library ${name} PATHS ${llama_lib_dirs} NO_DEFAULT_PATH NO_CACHE)
    if(NOT library)
        set(SHOAL_HAVE_LLAMA_CPP OFF)
        set(SHOAL_NO_LLAMA_CPP
            "SHOAL_LLAMA_CPP_BUILD_DIR = ${llama_build_dir}: no lib${name}.so there")
    endif()
    set(llama_${name} "${library}")
endforeach()

if(SHOAL_HAVE_LLAMA_CPP)
    foreach(name ggml-base ggml-cpu ggml llama)
        add_library(llama_cpp::${name} SHARED IMPORTED)
        set_target_properties(llama_cpp::${name} PROPERTIES
            IMPORTED_LOCATION "${llama_${name}}")
        target_include_directories(llama_cpp::${name} INTERFACE
            "${llama_dir}/include" "${llama_dir}/ggml/include")
    endforeach()
    # A plugin needs the backend's inner header too, which no installation has.
    add_library(llama_cpp::plugin INTERFACE IMPORTED)
    target_include_directories(llama_cpp::plugin INTERFACE "${llama_dir}/ggml/src")
    target_link_libraries(llama_cpp::plugin INTERFACE llama_cpp::ggml-base)
    add_library(llama_cpp::host INTERFACE IMPORTED)
    target_link_libraries(llama_cpp::host INTERFACE
        llama_cpp::llama llama_cpp::ggml llama_cpp::ggml-cpu llama_cpp::ggml-base)
else()
    message(STATUS "llama.cpp: not used (${SHOAL_NO_LLAMA_CPP}); "
        "the plugin ggml-shoal and the tool are left out. examples/setup.sh builds it")
endif()
