"""Samples for tests/tidy.py: what each rule must catch, and what it must let pass."""

COMMENTED = "#pragma once\n// A row.\n"
BODY = "    int x = 0;\n"


def cpp_function(lines, head="int f(int a)"):
    return head + " {\n" + BODY * (lines - 2) + "}\n"


# (path, text, rule that must be found or None, line of it)
SAMPLES = (
    # include direction
    ("kernels/a.cpp", '#include "kernels/b.hpp"\n#include "shoal/types.hpp"\n', None, 0),
    ("kernels/a.cpp", '#include <vector>\n#include "offload/tier.hpp"\n', "include", 2),
    ("kernels/a.cpp", "#include <offload/tier.hpp>\n", "include", 1),
    ("offload/a.cpp", '#include "runtime/step.hpp"\n', "include", 1),
    ("offload/a.cpp", '#include "kernels/topk.hpp"\n', None, 0),
    ("runtime/a.cpp", '#include "runtime/engines/llama_cpp/device.hpp"\n', "include", 1),
    ("runtime/a.cpp", '#include "calib/profile.hpp"\n', None, 0),
    ("calib/a.cpp", '#include "runtime/step.hpp"\n', "include", 1),
    ("runtime/include/shoal/a.hpp", '#pragma once\n#include "kernels/views.hpp"\n', "include", 2),
    ("runtime/engines/llama_cpp/a.cpp", '#include "kernels/views.hpp"\n', "include", 1),
    ("runtime/engines/llama_cpp/a.cpp", '#include "runtime/step.hpp"\n', "include", 1),
    ("runtime/engines/llama_cpp/a.cpp",
     '#include "ggml-impl.h"\n#include "device.hpp"\n#include "shoal/shoal.hpp"\n', None, 0),
    ("tests/runtime/a.cpp", '#include "runtime/engines/llama_cpp/device.hpp"\n', "include", 1),
    ("tests/engines/a.cpp", '#include "runtime/engines/llama_cpp/shoal_llama.h"\n', None, 0),
    ("runtime/tool/a.cpp", '#include "runtime/engines/llama_cpp/host/memory.hpp"\n', None, 0),
    ("runtime/engines/llama_cpp/host/a.cpp",
     '#include "runtime/engines/llama_cpp/device.hpp"\n', "include", 1),
    ("tests/runtime/a.cpp", '#include "tests/helpers.hpp"\n#include "runtime/step.hpp"\n', None, 0),
    ("examples/a.cpp", '#include "runtime/step.hpp"\n', "include", 1),
    ("bench/a.cpp", '#include "tests/helpers.hpp"\n', "include", 1),
    ("kernels/a.cpp", '#include "../offload/tier.hpp"\n', "include", 1),
    ("kernels/a.cpp", '#include "runtime/include/shoal/types.hpp"\n', "include", 1),
    # lengths
    ("runtime/a.cpp", cpp_function(70), None, 0),
    ("runtime/a.cpp", "\n" + cpp_function(71), "length", 2),
    ("runtime/a.cpp", "namespace shoal {\nclass A {\n" + cpp_function(71) + "};\n}\n", "length", 3),
    ("runtime/a.cpp", "namespace shoal {\n" + "int f();\n" * 90 + "}\n", None, 0),
    ("runtime/a.cpp", "A::A(int x)\n    : x_{x}, y_{1} " + cpp_function(71, ""), "length", 1),
    ("runtime/a.cpp", cpp_function(40) + cpp_function(40, "template <class T> T g()"), None, 0),
    ("runtime/a.cpp", "int f() {\n    // }\n    g(\"}\", '}');\n" + BODY * 70 + "}\n", "length", 1),
    ("runtime/a.cpp", "constexpr int kTable[] = {\n" + "    1,\n" * 90 + "};\n", None, 0),
    ("runtime/a.cpp", "struct [[nodiscard]] A {\n" + "    int x = f({1});\n" * 90 + "};\n",
     None, 0),
    ("tests/runtime/a.cpp", cpp_function(71, "TEST(A, b)"), "length", 1),
    ("kernels/cpu/a.cpp", cpp_function(120), None, 0),
    ("kernels/cpu/a.cpp", cpp_function(121), "length", 1),
    ("kernels/ref/a.cpp", cpp_function(71), "length", 1),
    ("kernels/cuda/a.cu", cpp_function(120, "__global__ void f()"), None, 0),
    ("runtime/a.cpp", "int x;\n" * 600, None, 0),
    ("runtime/a.cpp", "int x;\n" * 601, "length", 601),
    ("tests/a.py", "def f():\n" + "    x = 1\n" * 70, "length", 1),
    ("tests/run", "f() {\n" + "    true\n" * 69 + "}\n", "length", 1),
    # lines
    ("runtime/a.cpp", "// " + "x" * 97 + "\n", None, 0),
    ("runtime/a.cpp", "// " + "x" * 98 + "\n", "width", 1),
    ("README.md", "x" * 200 + "\n", None, 0),
    ("runtime/a.cpp", "// TO" "DO: later\n", "word", 1),
    ("runtime/a.cpp", "// TO" "DO(#12): later\n", None, 0),
    ("runtime/a.cpp", "// a ha" "ck\n", "word", 1),
    ("runtime/a.cpp", "// a hackney carriage\n", None, 0),
    ("runtime/a.cpp", "// X" "XX\n", "word", 1),
    ("runtime/a.cpp", 'open("/proc/self/status"); open("/sys/fs/cgroup");\n', None, 0),
    ("runtime/a.cpp", 'open("/ho' 'me/ann/x");\n', "path", 1),
    ("README.md", "see /wo" "rk/main\n", "path", 1),
    ("runtime/a.cpp", 'open("/tm' 'p/x/y");\n', "path", 1),
    ("runtime/a.cpp", 'char name[] = "/tm' 'p/shoal-XXXXXX";\n', None, 0),
    ("runtime/a.cpp", "int a = b / c / d;  // and/or/not, 1/2/3\n", None, 0),
    # format, comments
    ("runtime/a.cpp", "int x;", "format", 1),
    ("runtime/a.cpp", "int x; \n", "format", 1),
    ("runtime/a.cpp", "\tint x;\n", "format", 1),
    ("runtime/a.hpp", "int x;\n", "format", 1),
    ("runtime/include/shoal/a.hpp", COMMENTED + "struct Row {\n};\n", None, 0),
    ("runtime/include/shoal/a.hpp", COMMENTED + "template <class T>\nstruct Row {\n};\n", None, 0),
    ("runtime/include/shoal/a.hpp", "#pragma once\n\nstruct Row {\n};\n", "comment", 3),
    ("runtime/include/shoal/a.hpp", "// Rows.\n#pragma once\n\nstruct Row {\n};\n", None, 0),
    ("runtime/include/shoal/a.hpp",
     "// Rows.\n#pragma once\n\nstruct Row {\n};\n\nclass Rows {\n};\n", "comment", 7),
    ("runtime/include/shoal/a.hpp", "#pragma once\nstruct Row;\n", None, 0),
    ("runtime/include/shoal/a.hpp", "#pragma once\nenum class Kind { a };\n", None, 0),
    ("runtime/engines/llama_cpp/a.h", "\n#ifndef A_H\n#define A_H\n#endif\n", None, 0),
    ("kernels/cpu/a-inl.hpp", "#ifdef A_H\n#endif\n", None, 0),
)


def run(findings):
    failed = 0
    for path, text, rule, line in SAMPLES:
        found = [f for f in findings(path, text) if not f.warning]
        caught = any(f.rule == rule and f.line == line for f in found)
        if caught if rule else not found:
            continue
        failed += 1
        sample = text if len(text) < 200 else text[:200] + "..."
        wanted = f"{rule} at line {line}" if rule else "nothing"
        print(f"tidy self-test: {path}: wanted {wanted}, found {found}, in:\n{sample}\n")
    print(f"tidy self-test: {len(SAMPLES)} samples, {failed} failed")
    return failed == 0
