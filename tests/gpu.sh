#!/usr/bin/env bash
# What to run first on a machine with a GPU.
#
# usage: tests/gpu.sh [check] [measure] [FOLDER]     both by default; FOLDER: build/gpu/results
#   check     builds bench/gpu and runs it at small sizes, then under compute-sanitizer where there
#             is one: about six minutes
#   measure   the whole of bench/gpu.sh: about eight minutes
#
# Exit code: 0 everything passed; 1 something failed; 3 no GPU, no driver or no nvcc.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
results=build/gpu/results check=0 measure=0 failed=0
for argument in "$@"; do
    case "$argument" in
        check) check=1 ;;
        measure) measure=1 ;;
        -*) sed -n '2,10s/^# \{0,1\}//p' tests/gpu.sh; exit 2 ;;
        *) results="$argument" ;;
    esac
done
[ $((check + measure)) != 0 ] || check=1 measure=1
mkdir -p "$results"

# run NAME COMMAND...: output to the terminal and to a file; 3 ends the script.
run() {
    local name="$1" status
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$results/$name.txt"
    status=${PIPESTATUS[0]}
    [ "$status" != 3 ] || exit 3
    [ "$status" = 0 ] || { echo "== $name: FAILED ($status)"; failed=1; }
}

if [ $check = 1 ]; then
    run small timeout -k 10 240 bench/gpu.sh --small --json "$results/small.json"
    if sanitizer="$(command -v compute-sanitizer)"; then
        # Not link and write_back: they time the driver and a kernel that waits for the host.
        for tool in memcheck racecheck; do
            export SHOAL_GPU_RUNNER="$sanitizer --tool $tool --error-exitcode 1"
            run "sanitizer-$tool" timeout -k 10 120 bench/gpu.sh --small \
                --only gather,label_scan,select,resolve_attend,step_graph \
                --json "$results/sanitizer-$tool.json"
        done
        unset SHOAL_GPU_RUNNER
    else
        echo "no compute-sanitizer on this machine: left out"
    fi
fi
if [ $measure = 1 ]; then
    run facts bench/gpu.sh --json "$results/facts.json"
fi
exit $failed
