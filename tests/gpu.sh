#!/usr/bin/env bash
# What to run first on a machine with a GPU.
#
# usage: tests/gpu.sh [check] [measure] [FOLDER]     both by default; FOLDER: build/gpu/results
#   check     builds bench/gpu and runs it at small sizes, then under compute-sanitizer where there
#             is one: about six minutes
#   measure   every part at full size: about eight minutes
#
# Every part is a process of its own, with a time limit: a fault in one loses no other. Figures:
# FOLDER/NAME-PART.json, output beside it; NAME is small, memcheck, racecheck or facts.
# Exit code: 0 everything passed; 1 something failed; 3 no GPU, no driver or no nvcc.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
results=build/gpu/results check=0 measure=0 failed=0 left_out=""
for argument in "$@"; do
    case "$argument" in
        check) check=1 ;;
        measure) measure=1 ;;
        -*) sed -n '2,11s/^# \{0,1\}//p' tests/gpu.sh; exit 2 ;;
        *) results="$argument" ;;
    esac
done
[ $((check + measure)) != 0 ] || check=1 measure=1
mkdir -p "$results"

# run NAME SECONDS COMMAND...: output to the terminal and to a file; 3 ends the script.
run() {
    local name="$1" limit="$2" status
    shift 2
    printf '\n== %s\n' "$name"
    timeout -k 10 "$limit" "$@" 2>&1 | tee "$results/$name.txt"
    status=${PIPESTATUS[0]}
    [ "$status" != 3 ] || exit 3
    [ "$status" = 0 ] && return
    [ "$status" != 124 ] || echo "== $name: ended after $limit s"
    echo "== $name: FAILED ($status)"
    failed=1
}

# run_part NAME PART SECONDS OPTION...
run_part() {
    local name="$1" part="$2" limit="$3"
    shift 3
    run "$name-$part" "$limit" bench/gpu.sh --only "$part" --json "$results/$name-$part.json" "$@"
}

find_sanitizer() {
    local nvcc place
    nvcc="$(command -v "${CUDACXX:-nvcc}")"
    for place in "$(command -v compute-sanitizer)" "${nvcc:+$(dirname "$nvcc")/compute-sanitizer}" \
            /usr/local/cuda/bin/compute-sanitizer; do
        if [ -n "$place" ] && [ -x "$place" ]; then echo "$place"; return; fi
    done
}

# The build comes first and outside of every limit but its own; then the parts, with their budgets.
run build 540 bench/gpu.sh --build
[ $failed = 0 ] || exit 1
parts=() budgets=()
while read -r part budget; do
    parts+=("$part") budgets+=("$budget")
done < <(bench/gpu.sh --list | sed -n 's/^\([a-z_]*\) .*, \([0-9]*\) s$/\1 \2/p')
[ ${#parts[@]} != 0 ] || { echo "gpu_facts lists no parts"; exit 1; }

if [ $check = 1 ]; then
    for part in "${parts[@]}"; do run_part small "$part" 60 --small; done
    sanitizer="$(find_sanitizer)"
    if [ -n "$sanitizer" ]; then
        for tool in memcheck racecheck; do
            export SHOAL_GPU_RUNNER="$sanitizer --tool $tool --error-exitcode 1"
            for part in "${parts[@]}"; do
                # Racecheck looks at shared memory: link has none, and write_back waits for the
                # host, which it would slow down beyond its limit.
                case "$tool-$part" in racecheck-link | racecheck-write_back) continue ;; esac
                run_part "$tool" "$part" 120 --small
            done
        done
        unset SHOAL_GPU_RUNNER
    else
        left_out="compute-sanitizer: NOT RUN: none in PATH, beside nvcc, in /usr/local/cuda"
        echo "$left_out"
    fi
fi
if [ $measure = 1 ]; then
    # A part leaves cases out when it has spent its budget; one that hangs is ended.
    for i in "${!parts[@]}"; do
        run_part facts "${parts[$i]}" $((3 * budgets[i] + 60))
    done
fi
# Said once more where it is seen.
[ -z "$left_out" ] || printf '\n%s\n' "$left_out"
exit $failed
