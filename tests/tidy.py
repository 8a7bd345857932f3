#!/usr/bin/env python3
"""The house rules that a machine can check.

usage: tidy.py [--self-test]

Reads every file of the repository that git does not ignore (without git: all but build/). A
finding is one line, `file:line: rule: text`; warnings say so and do not fail the run.
`--self-test` checks small samples that must be caught and samples that must pass.

rules
  include    public types <- kernels <- {offload, calib} <- runtime <- the rest; nothing upward
  length     a file: 400 lines aimed (warning), 600 hard; a function: 70, kernels 120
  width      100 columns; prose (.md) and licences are exempt
  word       task marks without an issue number, words we do not use
  path       no path of somebody's machine
  comment    every class of a public header says what it is; the comment at the top of the file
             may speak for the first
  format     no tabs, trailing blanks, missing last newline; headers are guarded
  blob       no file over 1 MiB
"""

import ast
import collections
import os
import re
import subprocess
import sys

FILE_LINES_AIM, FILE_LINES_MAX = 400, 600
FUNCTION_LINES_MAX, KERNEL_LINES_MAX = 70, 120
LINE_COLUMNS_MAX = 100
FILE_BYTES_MAX = 1 << 20

CPP = (".cpp", ".hpp", ".h", ".c", ".cc", ".cu", ".cuh")
HEADERS = (".hpp", ".h", ".cuh")
PROSE = (".md", "LICENSE")
BINARY = (".png", ".gguf", ".pdf", ".bin", ".shoal", ".profile")
SHELL_COMMANDS = ("examples/demo", "tests/run", ".ci/run")

Finding = collections.namedtuple("Finding", "line rule text warning", defaults=(False,))


# --- include direction ------------------------------------------------------------------------

# A file belongs to the first part whose folder it lies in. `may` names the parts that it may
# include besides its own; parts that nobody lists are never included.
Part = collections.namedtuple("Part", "name folder may")
CORE = ("public", "kernels", "offload", "runtime", "calib")
PARTS = (
    Part("public", "runtime/include/", ()),
    Part("host", "runtime/engines/llama_cpp/host/", ("public",)),
    Part("engines", "runtime/engines/", ("public",)),
    Part("python", "runtime/python/", ("public",)),
    Part("tool", "runtime/tool/", CORE + ("host",)),
    Part("runtime", "runtime/", ("public", "kernels", "offload", "calib")),
    Part("offload", "offload/", ("public", "kernels")),
    Part("kernels", "kernels/", ("public",)),
    Part("calib", "calib/", ("public", "kernels")),
    Part("examples", "examples/", ("public",)),
    Part("tests of engines", "tests/engines/", CORE + ("bench", "engines", "tests")),
    Part("tests", "tests/", CORE + ("bench",)),
    Part("bench", "bench/", CORE),
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def part_of(path):
    return next((part for part in PARTS if path.startswith(part.folder)), None)


# What any host program includes: public, though it lies beside the plugin.
PUBLIC_HEADERS = ("runtime/engines/llama_cpp/shoal_llama.h",
                  "runtime/engines/llama_cpp/shoal_llama_host.h")


def included_part(target):
    if target.startswith("shoal/") or target in PUBLIC_HEADERS:
        return PARTS[0]
    return part_of(target)


def check_includes(path, text):
    part = part_of(path)
    if part is None or not path.endswith(CPP):
        return
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        target = match.group(2)
        if target.startswith("runtime/include/"):
            yield Finding(number, "include", f'{target}: write it as "shoal/..."')
            continue
        if target.startswith("..") or "/../" in target:
            yield Finding(number, "include", f"path with ..: {target}; write it from the root")
            continue
        other = included_part(target)
        if other in (None, part) or other.name in part.may:
            continue
        allowed = ", ".join(part.may) or "nothing of ours"
        yield Finding(number, "include",
                      f"{part.name} includes {other.name} ({target}); it may include {allowed}")


# --- lengths ----------------------------------------------------------------------------------

def check_file(path, text):
    lines = text.count("\n")
    if path.endswith(PROSE):
        return
    if lines > FILE_LINES_MAX:
        yield Finding(lines, "length", f"file of {lines} lines; at most {FILE_LINES_MAX}")
    elif lines > FILE_LINES_AIM:
        yield Finding(lines, "length", f"file of {lines} lines; {FILE_LINES_AIM} is aimed at", True)


# Comments, strings, characters and preprocessor lines, which may hold braces of no meaning.
NOISE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^(\s]*)\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'|^[ \t]*#(?:\\\n|[^\n])*", re.S | re.M)
CONTAINER = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b[^()=]*$")


def cpp_functions(text):
    """(first line, last line, name and arguments) of every function body, lambdas inside not
    apart; None at the end if the braces do not add up."""
    code = NOISE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    code = re.sub(r"\[\[[^\]]*\]\]|\balignas\s*\([^)]*\)", lambda m: " " * len(m.group()), code)
    open_braces = []      # True: holds declarations
    header_start = 0
    function_start = None
    for match in re.finditer(r"[{};]", code):
        at, mark = match.start(), match.group()
        in_container = all(open_braces)
        if mark == "{":
            header = code[header_start:at]
            container = in_container and bool(CONTAINER.search(header))
            if in_container and not container and "(" in header:
                function_start = header_start
            open_braces.append(container)
            if container:
                header_start = at + 1
        elif mark == "}":
            if not open_braces:
                yield None
                return
            open_braces.pop()
            if not all(open_braces):
                continue
            # `member_{x}, other_{y} {` of a constructor: the function goes on.
            if re.match(r"\s*[,{]", code[at + 1:at + 200]):
                continue
            if function_start is not None:
                start = function_start + len(code[function_start:]) - len(
                    code[function_start:].lstrip())
                name = " ".join(code[start:at].split("{")[0].split())
                yield code.count("\n", 0, start) + 1, code.count("\n", 0, at) + 1, name
                function_start = None
            header_start = at + 1
        elif in_container:
            header_start = at + 1
            function_start = None
    if open_braces:
        yield None


def shell_functions(text):
    start, name = None, None
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"(\w+)\(\) *\{ *(#.*)?$", line)
        if match:
            start, name = number, match.group(1)
        elif line == "}" and start:
            yield start, number, name
            start = None


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.end_lineno, node.name


def check_functions(path, text):
    if path.endswith(CPP):
        functions = cpp_functions(text)
    elif path.endswith(".py"):
        functions = python_functions(text)
    elif path.endswith(".sh") or path in SHELL_COMMANDS:
        functions = shell_functions(text)
    else:
        return
    for function in functions:
        if function is None:
            yield Finding(1, "length", "braces do not add up: function lengths not checked", True)
            return
        first, last, name = function
        is_kernel = path.startswith("kernels/cpu/") or "__global__" in name
        limit = KERNEL_LINES_MAX if is_kernel else FUNCTION_LINES_MAX
        if last - first + 1 > limit:
            yield Finding(first, "length",
                          f"function of {last - first + 1} lines; at most {limit}: {name[:60]}")


# --- lines ------------------------------------------------------------------------------------

# Spelled so that this file does not contain them.
WORDS = (
    (re.compile(r"\b(?:TO" r"DO|FIX" r"ME)\b(?!.*(?:#|issue )\d+)"),
     "task mark without an issue number"),
    (re.compile(r"\bX" r"XX\b"), "say what is wrong, or open an issue"),
    (re.compile(r"\bha" r"ck(?:s|y|ed)?\b", re.I), "say what it does and why it must"),
)
SYSTEM_ROOTS = ("bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var",
                "path", "nonexistent")
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'`=(:,\[])/([A-Za-z_][\w-]+)/""")
TEMPORARY = re.compile(r"X{6}|mkstemp|mkdtemp")


def check_lines(path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LINE_COLUMNS_MAX and not path.endswith(PROSE + (".json", ".svg")):
            yield Finding(number, "width", f"{len(line)} columns; at most {LINE_COLUMNS_MAX}")
        for pattern, why in WORDS:
            match = pattern.search(line)
            if match:
                yield Finding(number, "word", f"{match.group()}: {why}")
        for match in ABSOLUTE_PATH.finditer(line):
            root = match.group(1)
            is_version = re.fullmatch(r"v\d+", root)       # a path of a URL
            if root in SYSTEM_ROOTS or is_version or (root == "tmp" and TEMPORARY.search(line)):
                continue
            if path.endswith(".gitignore"):                # there / is the repository's root
                continue
            yield Finding(number, "path", f"/{root}/...: a path of somebody's machine")


def check_format(path, text):
    if text and not text.endswith("\n"):
        yield Finding(text.count("\n") + 1, "format", "no newline at the end of the file")
    # Highway's -inl.hpp files are meant to be read several times; a C header has its own guard.
    guarded = "#pragma once" in text or (path.endswith(".h") and "\n#ifndef " in text)
    if path.endswith(HEADERS) and not path.endswith("-inl.hpp") and not guarded:
        yield Finding(1, "format", "header without #pragma once")
    if path.endswith(PROSE + (".svg",)):
        return
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line or "\r" in line:
            yield Finding(number, "format", "tab or carriage return")
        if line != line.rstrip():
            yield Finding(number, "format", "blanks at the end of the line")


CLASS = re.compile(r"^(?:class|struct|union)\s+(?:\[\[\w+\]\]\s*)?(\w+)")


def check_comments(path, text):
    if not path.startswith("runtime/include/shoal/") or not path.endswith(HEADERS):
        return
    lines = text.splitlines()
    is_comment = [line.lstrip().startswith(("//", "*", "/*")) for line in lines]
    described_by_top = bool(lines) and is_comment[0]
    for index, line in enumerate(lines):
        match = CLASS.match(line)
        if not match or line.rstrip().endswith(";") and "{" not in line:
            continue
        above = index - 1
        while above >= 0 and lines[above].startswith(("template", "requires")):
            above -= 1
        if not described_by_top and (above < 0 or not is_comment[above]):
            yield Finding(index + 1, "comment", f"{match.group(1)} has no comment above it")
        described_by_top = False


CHECKS = (check_includes, check_file, check_functions, check_lines, check_format, check_comments)


def findings(path, text):
    for check in CHECKS:
        yield from check(path, text)


# --- the repository ---------------------------------------------------------------------------

def repository_files(root):
    command = ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        return sorted(set(path for path in listed.split("\0") if path))
    except (OSError, subprocess.CalledProcessError):      # no git, or not a checkout
        return walked_files(root)


def walked_files(root):
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("build", ".git", "__pycache__")]
        paths += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return sorted(paths)


def check_repository(root):
    errors = warnings = count = 0
    for path in repository_files(root):
        full = os.path.join(root, path)
        if not os.path.isfile(full) or os.path.islink(full):
            continue
        count += 1
        if os.path.getsize(full) > FILE_BYTES_MAX:
            errors += 1
            print(f"{path}:1: blob: {os.path.getsize(full)} bytes; at most {FILE_BYTES_MAX}")
            continue
        with open(full, "rb") as file:
            data = file.read()
        if path.endswith(BINARY) or b"\0" in data[:4096]:
            continue
        for finding in findings(path, data.decode("utf-8")):
            mark = "warning: " if finding.warning else ""
            print(f"{path}:{finding.line}: {finding.rule}: {mark}{finding.text}")
            warnings += finding.warning
            errors += not finding.warning
    print(f"tidy: {count} files, {errors} errors, {warnings} warnings")
    return errors == 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        import tidy_samples
        sys.exit(0 if tidy_samples.run(findings) else 1)
    if sys.argv[1:]:
        sys.exit(f"tidy.py: unknown option {sys.argv[1]} (allowed: --self-test)")
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(0 if check_repository(repository) else 1)
