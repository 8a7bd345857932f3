#!/usr/bin/env python3
"""Checks that clang accepts every source, with the warnings as errors, without making code.

usage: clang_check.py BUILD_DIR [--without FOLDER...]

BUILD_DIR is a configured build (of any compiler): its compile_commands.json says what is compiled
and how. FOLDERs of the repository are left out. Prints clang's messages and one closing line; exit
code 1 if a source was refused.
"""

import concurrent.futures
import json
import os
import shlex
import shutil
import subprocess
import sys

CLANG = ("clang++", "clang++-14", "clang++-15", "clang++-16", "clang++-17", "clang++-18")


def clang_command(clang, entry):
    words = iter(shlex.split(entry["command"])[1:])
    kept = []
    for word in words:
        if word == "-o":
            next(words)
        elif word != "-c":
            kept.append(word)
    return [clang, "-fsyntax-only", "-Wno-unknown-warning-option", *kept]


def refused(clang, entry):
    command = clang_command(clang, entry)
    result = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)
    sys.stderr.write(result.stderr)
    return result.returncode != 0


def main(build_dir, without):
    clang = next((name for name in CLANG if shutil.which(name)), None)
    if clang is None:
        sys.exit("clang_check: no clang++ on this machine")
    with open(os.path.join(build_dir, "compile_commands.json"), encoding="utf-8") as file:
        entries = [entry for entry in json.load(file) if entry["file"].endswith(".cpp")]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    left_out = tuple(os.path.join(root, folder, "") for folder in without)
    entries = [entry for entry in entries if not entry["file"].startswith(left_out)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(pool.map(lambda entry: refused(clang, entry), entries))
    print(f"clang_check: {clang}: {len(entries)} sources, {failed} refused")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[2:3] not in ([], ["--without"]):
        sys.exit(__doc__.split("\n\n")[1])
    sys.exit(main(sys.argv[1], sys.argv[3:]))
