#!/usr/bin/env python3
"""A small model reads the opening of a novel, with its KV cache in Shoal, beside stock llama.cpp.

usage: demo.py --shoal PATH --model PATH --text-dir DIR [--out DIR] [--threads N] [--quick]
               [--disk DIR]

Four parts, about three minutes on two cores:
  1. the model continues the novel after about 8,000 tokens of it; the line at the bottom shows what
     a token costs. Then stock llama.cpp, Shoal with dense attention and Shoal as it is by default
     decode the same tokens in turns, and a table shows all three;
  2. the model answers a question about the text;
  3. a sweep over depths to 131,072 tokens. Rows of the text are repeated to get there, so it is a
     test of speed and of nothing else;
  4. a plot of the sweep, OUT/depth.png and OUT/depth.svg, beside the figures as JSON.

With --disk, instead: all K and V lie in a file under DIR (3 GiB; not tmpfs) and a part of them in
RAM; the model continues the novel, once from a sequence that was read before and saved, and a sweep
to 131,072 tokens. The line at the bottom tells what a token reads from disk and how long it waits.
"""

import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Made by `shoal calibrate` from another novel than the one that is read here; it says which.
PROFILE = os.path.join(HERE, "smollm2-135m.profile")
NOVEL = "persuasion.txt"
QUESTION = "Who is Sir Walter Elliot, and what is he like? Answer in two sentences."
DEPTHS = (2048, 8192, 32768, 131072)
QUICK_DEPTHS = (1024, 4096)
DISK_RAM = "64MiB"    # of 188 MiB at 8,192 tokens
DISK_DEPTH_RAM = "512MiB"    # of 2.8 GiB at 131,072 tokens
SPEED_TEST = "a speed test only: the rows of a shorter text, repeated"


def say(title):
    print(f"\n=== {title}", flush=True)


def opening(path, characters):
    """The first chapters, cut at the end of a paragraph."""
    with open(path, encoding="utf-8") as file:
        text = file.read(characters)
    # The model was trained on 8,192 tokens; 3.8 characters of this prose are one token.
    return text[:text.rfind("\n\n")] + "\n\n"


class Shoal:
    def __init__(self, options):
        self.program = options.shoal
        self.out = options.out
        self.common = ["-m", options.model]
        if options.threads:
            self.common += ["-t", str(options.threads)]
        if os.path.exists(PROFILE):
            self.common += ["--profile.path", PROFILE]
        if options.quick:    # so that there is something to select from
            self.common += ["--budget.rows", "256"]

    def __call__(self, command, name, *arguments):
        """Runs a command with its output on the screen; returns what it measured."""
        report = os.path.join(self.out, name + ".json")
        line = [self.program, command, *self.common, *arguments, "--report", report]
        finished = subprocess.run(line, check=False)
        if finished.returncode != 0:
            sys.exit(finished.returncode)
        with open(report, encoding="utf-8") as file:
            return json.load(file)


def plot(sweep, out):
    try:
        import matplotlib
    except ImportError:
        print("no plot: python3-matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot
    depths = [row["depth"] for row in sweep["depths"]]
    figure, (time_axes, byte_axes) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for side, name, marker in (("stock", "stock llama.cpp", "o"), ("shoal", "Shoal", "s")):
        rows = [row[side] for row in sweep["depths"]]
        time_axes.plot(depths, [row["ms_per_token_median"] for row in rows], marker=marker,
                       label=name)
        byte_axes.plot(depths, [(row["kv_bytes_per_token"] + row["label_bytes_per_token"]) / 2**20
                                for row in rows], marker=marker, label=name)
    for axes, title in ((time_axes, "milliseconds per token"), (byte_axes, "MiB read per token")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
        axes.set_xlabel("tokens of context")
        axes.set_title(title)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    model = sweep["model"]
    figure.suptitle(f"{model['name']}, {sweep['threads']} threads, "
                    f"{sweep['config']['budget.rows']} rows ({SPEED_TEST})", fontsize=9)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(os.path.join(out, f"depth.{kind}"), dpi=150)
    print(f"plot: {os.path.join(out, 'depth.png')} and .svg")


def on_disk(shoal, options, text_file):
    disk = ("--kv-disk", options.disk)
    saved = os.path.join(options.out, "opening.kv")
    ram = ("--kv-ram", "48MiB" if options.quick else DISK_RAM)
    say(f"the model continues {NOVEL[:-4]}, K and V on disk, {ram[1]} of RAM for its KV cache")
    shoal("run", "disk", "-f", text_file, "-n", "64", "--temp", "0.7", "--seed", "1",
          "--ignore-eos", "--save-kv", saved, *disk, *ram)
    say("again, from the sequence that was saved")
    shoal("run", "disk-again", "-c", "16384", "-n", "64", "--temp", "0.7", "--seed", "1",
          "--ignore-eos", "--load-kv", saved, *disk, *ram)
    depths = QUICK_DEPTHS if options.quick else (8192, 32768, 131072)
    say(f"speed at depths to {max(depths):,} tokens, {DISK_DEPTH_RAM} of RAM ({SPEED_TEST})")
    shoal("bench", "disk-bench", "-f", os.path.join(options.text_dir, NOVEL), "-d",
          ",".join(map(str, depths)), "--read-max", "1024", "-n", "16", "--repeats", "2",
          "--no-stock", "--kv-ram", DISK_DEPTH_RAM, *disk)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shoal", required=True, help="the tool")
    parser.add_argument("--model", required=True, help="model file (GGUF)")
    parser.add_argument("--text-dir", required=True, help=f"folder with {NOVEL}")
    parser.add_argument("--out", default="build/demo", help="where plot and figures go")
    parser.add_argument("--threads", type=int, default=0, help="0 is every core")
    parser.add_argument("--quick", action="store_true", help="2,000 tokens and small depths")
    parser.add_argument("--plugin", help=argparse.SUPPRESS)     # the tool finds it beside itself
    parser.add_argument("--llama-bin", help=argparse.SUPPRESS)  # not needed: libllama is linked
    parser.add_argument("--disk", metavar="DIR", help="K and V in a file under DIR")
    options = parser.parse_args()
    started = time.monotonic()
    os.makedirs(options.out, exist_ok=True)
    shoal = Shoal(options)
    text = opening(os.path.join(options.text_dir, NOVEL), 7_000 if options.quick else 30_000)
    text_file = os.path.join(options.out, "opening.txt")
    with open(text_file, "w", encoding="utf-8") as file:
        file.write(text)

    if options.disk:
        on_disk(shoal, options, text_file)
        print(f"\ndone in {time.monotonic() - started:.0f} s; figures in {options.out}")
        return
    say(f"the model continues {NOVEL[:-4]}; then stock llama.cpp decodes the same tokens")
    shoal("run", "run", "-f", text_file, "-n", "64", "--temp", "0.7", "--seed", "1",
          "--ignore-eos", "--compare")

    say(f"a question about the text: {QUESTION}")
    shoal("run", "question", "-f", text_file, "-p", QUESTION, "--chat", "-n", "60", "--temp", "0")

    depths = QUICK_DEPTHS if options.quick else DEPTHS
    say(f"speed at depths to {max(depths):,} tokens ({SPEED_TEST})")
    sweep = shoal("bench", "bench", "-f", os.path.join(options.text_dir, NOVEL), "-d",
                  ",".join(map(str, depths)), "--read-max", "1024", "-n", "8", "--repeats", "2",
                  "--seconds-max", "10")
    plot(sweep, options.out)
    print(f"\ndone in {time.monotonic() - started:.0f} s; figures in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"demo.py: {error}")
