#!/usr/bin/env python3
"""Counts test cases and prints budgets, for tests/run.

usage: tally.py cases RESULTS_DIR    prints "passed failed skipped" of one ctest run
       tally.py budgets PRESET       prints the budget of each suite of a test preset

RESULTS_DIR holds ctest.xml (JUnit, from ctest) and one <suite>.json per GoogleTest program. A
suite that left no file, because it crashed or ran out of time, is one failed case; one that is
no GoogleTest program is one case.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree


def google_cases(path):
    with open(path, encoding="utf-8") as file:
        suites = json.load(file)["testsuites"]
    cases = [case for suite in suites for case in suite["testsuite"]]
    failed = sum("failures" in case for case in cases)
    skipped = sum(case["result"] == "SKIPPED" for case in cases)
    ran = sum(case["result"] != "SUPPRESSED" for case in cases)
    return ran - failed - skipped, failed, skipped


def suite_cases(results_dir, suite):
    is_ok = suite.get("status") == "run"
    path = os.path.join(results_dir, suite.get("name") + ".json")
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return (1, 0, 0) if is_ok else (0, 1, 0)
    passed, failed, skipped = google_cases(path)
    # A program may fail after its last case: a leak, a race, a crash at exit.
    return passed, max(failed, 0 if is_ok else 1), skipped


def print_cases(results_dir):
    tree = xml.etree.ElementTree.parse(os.path.join(results_dir, "ctest.xml"))
    totals = [0, 0, 0]
    for suite in tree.getroot().iter("testcase"):
        if suite.get("status") == "disabled":
            continue
        totals = [a + b for a, b in zip(totals, suite_cases(results_dir, suite))]
    print(*totals)


def print_budgets(preset):
    command = ["ctest", "--preset", preset, "--show-only=json-v1"]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    # ctest may print a line about the preset first.
    for suite in json.loads(output[output.index(b"{"):])["tests"]:
        limit = [p["value"] for p in suite["properties"] if p["name"] == "TIMEOUT"]
        print(f"suite {suite['name']:<16} budget {limit[0] / 60:.0f} min")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("cases", "budgets"):
        sys.exit(__doc__.split("\n\n")[1])
    (print_cases if sys.argv[1] == "cases" else print_budgets)(sys.argv[2])
