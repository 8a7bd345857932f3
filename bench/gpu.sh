#!/usr/bin/env bash
# Builds bench/gpu and runs it: what a GPU, its link and its memory give to Shoal's decode step.
# Needs nvcc 13, CMake and a driver; nothing else.
#
# usage: bench/gpu.sh [--build-only | --build] [option of gpu_facts...]
#   --build-only       for every architecture, on a machine with or without a GPU
#   --build            for the GPU of this machine, and stop
#   --only NAME,...    these parts
#   --json FILE        every figure; default build/gpu/facts.json
#   --small            small sizes, for compute-sanitizer
#   --list, --help     what the parts measure; this text
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

# "NAME<tab>ABOUT<tab>SECONDS" of every part, from the program's own table: wrong use and --list are
# answered without a compiler, a build or a GPU.
list_parts() {
    sed -n 's/^    {"\([a-z_]*\)", "\(.*\)", \([0-9]*\)},$/\1\t\2\t\3/p' \
        "$root/bench/gpu/options.cpp"
}

check_names() {
    local names name
    names="$(list_parts | cut -f1)"
    while IFS= read -r name; do
        if [ -z "$name" ] || ! grep -qx -- "$name" <<<"$names"; then
            fail 2 "--only $1: no part \"$name\" (allowed: ${names//$'\n'/, })"
        fi
    done < <(tr ',' '\n' <<<"$1")
}

build_only=0 build=0 list=0 wants_json=1 options=()
while [ $# != 0 ]; do
    case "$1" in
        --build-only) build_only=1 ;;
        --build) build=1 ;;
        --list) list=1 ;;
        --help | -h) sed -n '/^set/q; 2,$s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --small) options+=("$1") ;;
        --only | --json)
            [ $# -ge 2 ] && [ -n "$2" ] || fail 2 "$1: needs a value"
            [ "$1" != --only ] || check_names "$2"
            [ "$1" != --json ] || wants_json=0
            options+=("$1" "$2")
            shift
            ;;
        *) fail 2 "$1: unknown option (--help names them)" ;;
    esac
    shift
done
if [ $list = 1 ]; then
    list_parts | awk -F '\t' '{ printf "%-16s%s, %s s\n", $1, $2, $3 }'
    exit 0
fi

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
elif [ $build_only = 0 ] && { [ $build = 1 ] || [ ! -x "$tree/gpu_facts" ]; }; then
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
[ $((build_only + build)) = 0 ] || exit 0

[ $wants_json = 0 ] || options+=(--json "$tree/facts.json")
${SHOAL_GPU_RUNNER:-} "$tree/gpu_facts" "${options[@]}"
