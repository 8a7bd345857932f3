# Toolchain: aarch64 by Debian's cross compiler, programs run by qemu-user. Used by the preset
# `neon`.
#
# Highway and GoogleTest for aarch64 are Debian's own packages, unpacked into one folder (the
# system's list of architectures stays as it is): examples/setup.sh, shoal_prepare_aarch64.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(shoal_aarch64_root "${CMAKE_CURRENT_LIST_DIR}/../build/deps/aarch64")
cmake_path(NORMAL_PATH shoal_aarch64_root)
set(CMAKE_FIND_ROOT_PATH "${shoal_aarch64_root}" /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} "${shoal_aarch64_root}/usr/lib/aarch64-linux-gnu/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${shoal_aarch64_root}")

# The loader and libc of the cross compiler; everything else has its full path.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
