#!/usr/bin/env python3
"""One layer of decode attention against torch on the CPU, interleaved in one run.

32 query / 8 KV heads x 128, bf16, one query token, 2 threads both. Shoal: bench/one_layer.cpp,
1,024 selected rows (query to labels, scan, top-k, gathered attention) and every row. torch:
scaled_dot_product_attention with enable_gqa, and grouped bmm + softmax + bmm, over KV in torch's
own layout [KV head][token][128].

Needs torch 2.13 (pip install torch==2.13.0, the CPU build) and about 3 GiB of memory:
    python3 bench/torch_compare.py build/cpu/bench_one_layer
"""
import argparse
import os
import statistics
import subprocess
import sys
import time

# Huge pages for torch's tensors too, as Shoal's rows have them; read when torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

THREADS = 2
KV_HEADS, Q_PER_KV, DIM = 8, 4, 128
LAYERS = 2  # walked in turn, so that rows come from memory


class Shoal:
    def __init__(self, binary, tokens):
        self.process = subprocess.Popen([binary, str(tokens)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.target = self.process.stdout.readline().split()[1]

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Torch:
    def __init__(self, torch, tokens):
        self.torch = torch
        torch.manual_seed(1)
        shape = (1, KV_HEADS, tokens, DIM)
        self.layers = [tuple(torch.randn(shape).to(torch.bfloat16) for _ in "kv")
                       for _ in range(LAYERS)]
        self.q = torch.randn(1, KV_HEADS * Q_PER_KV, 1, DIM).to(torch.bfloat16)
        self.turn = 0

    def sdpa(self, k, v):
        attention = self.torch.nn.functional.scaled_dot_product_attention
        return attention(self.q, k, v, enable_gqa=True)

    def bmm(self, k, v):
        q = self.q.view(KV_HEADS, Q_PER_KV, DIM)
        scores = self.torch.bmm(q, k[0].transpose(1, 2)) * DIM ** -0.5
        weights = self.torch.softmax(scores, -1, dtype=self.torch.float32)
        return self.torch.bmm(weights.to(self.torch.bfloat16), v[0]).view(self.q.shape)

    def check(self):
        k, v = self.layers[0]
        a, b = self.sdpa(k, v).float(), self.bmm(k, v).float()
        difference = (a - b).abs().max().item()
        if not difference < 0.05:
            sys.exit(f"torch_compare: SDPA and bmm differ by {difference}")

    def median_us(self, attention, count):
        us = []
        for _ in range(count):
            k, v = self.layers[self.turn % LAYERS]
            self.turn += 1
            start = time.perf_counter()
            attention(k, v)
            us.append((time.perf_counter() - start) * 1e6)
        return statistics.median(us)


def measure(args, torch):
    shoal = Shoal(args.binary, args.tokens)
    other = Torch(torch, args.tokens)
    series = {name: [] for name in ("read", "torch SDPA", "torch bmm", "Shoal dense",
                                    "Shoal 1,024 rows")}
    with torch.inference_mode():
        other.check()
        for _ in range(args.rounds + 1):
            series["torch SDPA"].append(other.median_us(other.sdpa, 2))
            series["torch bmm"].append(other.median_us(other.bmm, 2))
            time.sleep(0.2)  # torch's threads spin for a while after their work
            series["read"].append(shoal.ask("read"))
            series["Shoal dense"].append(shoal.ask("dense 2"))
            series["Shoal 1,024 rows"].append(shoal.ask("sparse 16"))
    shoal.close()
    return shoal.target, {name: values[1:] for name, values in series.items()}  # first: warm-up


def report(args, version, target, series):
    median = {name: statistics.median(values) for name, values in series.items()}
    rounds = list(zip(series["torch SDPA"], series["torch bmm"]))
    print(f"torch {version}, Shoal {target}, {args.tokens} tokens, {THREADS} threads, medians of "
          f"{args.rounds} rounds; sequential read {median['read']:.1f} GB/s\n")
    print("| | us | times faster than the better of torch's |\n|---|---|---|")
    for name in ("torch SDPA", "torch bmm", "Shoal dense", "Shoal 1,024 rows"):
        ratio = statistics.median(min(pair) / own for pair, own in zip(rounds, series[name]))
        print(f"| {name} | {median[name]:,.0f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="bench_one_layer of a build")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("torch_compare: needs torch: pip install torch==2.13.0")
    torch.set_num_threads(THREADS)
    target, series = measure(args, torch)
    report(args, torch.__version__, target, series)


if __name__ == "__main__":
    main()
