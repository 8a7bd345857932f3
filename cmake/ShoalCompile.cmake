# How everything of Shoal is compiled. Targets link `shoal_flags` (privately).

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# RelWithDebInfo is what is shipped and measured. Shoal's own asserts (SHOAL_ASSERT) stay on in
# every build; NDEBUG only silences those of other libraries.
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Debug or RelWithDebInfo" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_DEBUG "-Og -g")

add_library(shoal_flags INTERFACE)
target_compile_options(shoal_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 sees an overlap in `"text" + std::string` that is not there (its bug 105651).
    target_compile_options(shoal_flags INTERFACE -Wno-restrict)
endif()
target_link_options(shoal_flags INTERFACE -Wl,-z,defs)

# Narrowing is an error in library and tool code. Tests, benches and kernels (where a packed
# uint16_t is shifted and masked at every turn) are not bothered with it.
add_library(shoal_narrowing INTERFACE)
target_compile_options(shoal_narrowing INTERFACE -Wconversion -Wno-sign-conversion)

if(SHOAL_FUZZ)
    if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang" OR SHOAL_SANITIZE)
        message(FATAL_ERROR "SHOAL_FUZZ: needs clang (CMAKE_CXX_COMPILER=clang++) and an empty \
SHOAL_SANITIZE: it brings its own")
    endif()
    set(fuzz_flags -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined)
    string(REPLACE "-O3" "-O1" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")
    target_compile_options(shoal_flags INTERFACE ${fuzz_flags} -fno-omit-frame-pointer)
    add_link_options(-fsanitize=address,undefined)
    set_property(TARGET shoal_flags PROPERTY INTERFACE_LINK_OPTIONS "")
endif()

set(sanitize_link_flags "")
if(SHOAL_SANITIZE STREQUAL "address")
    set(sanitize_flags -fsanitize=address)
    set(sanitize_link_flags -fsanitize=undefined)
    # Checks of undefined behaviour are 40 % of the compiling. A test's own sources go without.
    set(no_test "$<NOT:$<BOOL:$<TARGET_PROPERTY:SHOAL_IS_TEST>>>")
    target_compile_options(shoal_flags INTERFACE
        "$<${no_test}:-fsanitize=undefined;-fno-sanitize-recover=undefined>")
elseif(SHOAL_SANITIZE STREQUAL "thread")
    set(sanitize_flags -fsanitize=thread)
elseif(NOT SHOAL_SANITIZE STREQUAL "")
    message(FATAL_ERROR "SHOAL_SANITIZE = ${SHOAL_SANITIZE}: must be empty, address or thread")
endif()
if(SHOAL_SANITIZE)
    string(REPLACE "-O3" "-O1" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")
    # Sanitized code is far larger and says "may be uninitialized" where it is not.
    target_compile_options(shoal_flags INTERFACE ${sanitize_flags} -fno-omit-frame-pointer
        -Wno-maybe-uninitialized)
    target_compile_definitions(shoal_flags INTERFACE SHOAL_SANITIZED=1)
    # The sanitizer's runtime is in the executable; a shared library leaves it undefined.
    add_link_options(${sanitize_flags} ${sanitize_link_flags})
    set_property(TARGET shoal_flags PROPERTY INTERFACE_LINK_OPTIONS "")
endif()
