#!/usr/bin/env bash
# Builds bench/gpu and runs it: what a GPU, its link and its memory give to Shoal's decode step.
# Needs nvcc 13, CMake and a driver; nothing else.
#
# usage: bench/gpu.sh [--build-only] [option of gpu_facts...]
#   --build-only       for every architecture, on a machine with or without a GPU
#   --only NAME,...    these parts
#   --json FILE        every figure; default build/gpu/facts.json
#   --small            small sizes, for compute-sanitizer
#   --list, --help     of gpu_facts
#
# SHOAL_GPU_RUNNER: a command to run gpu_facts under, e.g. "compute-sanitizer".
# Exit code: 0 all checks passed, 1 a check or the build failed, 2 wrong use, 3 no GPU, no driver,
# too old a driver or no nvcc.
set -u
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tree="$root/build/gpu"

fail() { printf 'bench/gpu.sh: %s\n' "$2" >&2; exit "$1"; }

# A driver answers, or the reason why nothing can run. Asked before the build, which takes minutes.
has_gpu() {
    [ -e /dev/nvidia0 ] && return
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q "^GPU"
}

find_nvcc() {
    local place
    for place in "${CUDACXX:-}" "$(command -v nvcc)" /usr/local/cuda/bin/nvcc; do
        if [ -n "$place" ] && [ -x "$place" ]; then echo "$place"; return; fi
    done
}

build_only=0 wants_json=1 options=()
for option in "$@"; do
    case "$option" in
        --build-only) build_only=1 ;;
        --json | --list | --help | -h) wants_json=0; options+=("$option") ;;
        *) options+=("$option") ;;
    esac
done

nvcc="$(find_nvcc)"
[ -n "$nvcc" ] || fail 3 "no nvcc (looked at CUDACXX, PATH, /usr/local/cuda): nothing built"
release="$("$nvcc" --version | sed -n 's/.*release \([0-9]*\).*/\1/p')"
[ "${release:-0}" -ge 13 ] || fail 3 "nvcc ${release:-?} at $nvcc: 13 or newer is needed"
command -v cmake >/dev/null || fail 3 "no cmake on this machine: nothing built"

# For this machine's GPU alone where there is one: a quarter of the time. Time with a GPU is dear: a
# warning of a compiler that nobody has tried does not stop the build there.
settings=()
if [ $build_only = 0 ] && has_gpu; then
    settings=(-DSHOAL_CUDA_ARCHITECTURES=native -DSHOAL_WERROR=OFF)
elif [ $build_only = 0 ] && [ ! -x "$tree/gpu_facts" ]; then
    fail 3 "no NVIDIA GPU on this machine: nothing measured (--build-only builds for all)"
fi
if [ $build_only = 1 ]; then
    settings=("-DSHOAL_CUDA_ARCHITECTURES=80-real;90-real;100-real;120" -DSHOAL_WERROR=ON)
fi

if [ $build_only = 1 ] || has_gpu; then
    mkdir -p "$tree"
    started=$SECONDS
    jobs="${SHOAL_GPU_JOBS:-$(nproc)}"
    if ! { cmake -S "$root/bench/gpu" -B "$tree" "-DCMAKE_CUDA_COMPILER=$nvcc" \
               "${settings[@]}" && cmake --build "$tree" -j "$jobs"; } >"$tree/build.log" 2>&1
    then
        tail -n 30 "$tree/build.log" >&2
        fail 1 "the build failed (all of it: build/gpu/build.log)"
    fi
    echo "built in $((SECONDS - started)) s (registers and spills: build/gpu/build.log)"
fi
[ $build_only = 0 ] || exit 0

[ $wants_json = 0 ] || options+=(--json "$tree/facts.json")
${SHOAL_GPU_RUNNER:-} "$tree/gpu_facts" "${options[@]}"
