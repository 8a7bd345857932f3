#!/usr/bin/env python3
"""Stock llama-server with its KV cache in Shoal, beside itself without: the same requests.

Several clients at once, slots with prompt cache and context shift, prompts of mixed length; some
go on where an earlier one ended, some grow past their slot's context. Each server answers the same
requests in the same order; what it answers greedily, and the log-probabilities of each token's
candidates up to the first token that differs, are compared with the first run of the stock server.
How far stock is from itself is shown by a second run (requests meet in other batches) and by one
without flash attention (another attention kernel): weights of few bits make either visible.

With --depth N instead: a prompt of N tokens in each slot, then all slots decode at once; tokens per
second of Shoal's default policy beside stock's.

    ninja -C build/llama llama-server
    python3 bench/llama_server.py --llama-bin build/llama/bin --plugin build/cpu/libggml-shoal.so \\
        --model build/deps/SmolLM2-135M-Instruct.Q4_1.gguf --text build/deps/austen/emma.txt

Exit code 1 if a request failed, if Shoal attending everything is further from stock than 1.5 times
stock without flash attention is, or if Shoal's memory grew by more than 2 % in the second half.
"""
import argparse
import concurrent.futures
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HOST = "127.0.0.1"


def make_requests(text, count, seed, slot_tokens):
    """Prompts of 20 to 900 bytes, a third go on with an earlier one; one in 40 outgrows a slot."""
    draw = random.Random(seed)
    requests = []
    for index in range(count):
        at = draw.randrange(len(text) - 8000)
        if requests and draw.random() < 0.33:
            earlier = draw.choice(requests[-8:])["prompt"]
            prompt = earlier + " " + text[at:at + draw.randrange(20, 200)]
        else:
            prompt = text[at:at + draw.randrange(20, 900)]
        predict = draw.randrange(4, 16)
        if index % 40 == 20:    # four bytes a token, so this leaves some 60 tokens of the slot
            prompt = text[at:at + 4 * (slot_tokens - 60)]
            predict = 100
        requests.append({"prompt": prompt[-4 * (slot_tokens - 20):], "n_predict": predict})
    return requests


class Server:
    """One llama-server; a context manager."""

    def __init__(self, args, name, config, flash="on"):
        self.name = name
        self.url = f"http://{HOST}:{args.port}"
        environment = dict(os.environ)
        environment.pop("GGML_BACKEND_PATH", None)
        command = [os.path.join(args.llama_bin, "llama-server"), "-m", args.model, "-fa", flash,
                   "-np", str(args.slots), "-c", str(args.slots * args.slot_tokens), "-t",
                   str(args.threads), "--host", HOST, "--port", str(args.port),
                   "--context-shift", "--cache-ram", "64", "-lv", "4"]
        if args.depth:    # a slot holds no more than the model was trained with: say it was more
            command += ["--override-kv", f"llama.context_length=int:{args.slot_tokens}"]
        if config is not None:
            self.config = tempfile.NamedTemporaryFile("w", suffix=".toml")
            self.config.write(config)
            self.config.flush()
            environment["GGML_BACKEND_PATH"] = os.path.abspath(args.plugin)
            environment["SHOAL_CONFIG"] = self.config.name
            command += ["-dev", "SHOAL0"]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                pass
            time.sleep(0.2)
        sys.exit(f"{self.name}: llama-server did not start:\n{self.tail()}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def tokens_of(self, text, count):
        """The first `count` tokens of a text, as ids."""
        body = json.dumps({"content": text[:count * 8]}).encode()
        call = urllib.request.Request(self.url + "/tokenize", body,
                                      {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=600) as answer:
            return json.load(answer)["tokens"][:count]

    def tail(self):
        self.log.seek(0)
        return self.log.read()[-1000:]

    def count(self, text):
        self.log.seek(0)
        return self.log.read().count(text)

    def complete(self, request):
        body = {**request, "temperature": 0, "cache_prompt": True, "n_probs": 8}
        call = urllib.request.Request(self.url + "/completion", json.dumps(body).encode(),
                                      {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=3600) as answer:
            found = json.load(answer)
        return {"timings": found["timings"], "text": found["content"],
                "tokens": [entry["id"] for entry in found["completion_probabilities"]],
                "logprobs": [{top["id"]: top["logprob"] for top in entry["top_logprobs"]}
                             for entry in found["completion_probabilities"]]}


def run(args, name, config, requests, flash="on"):
    with Server(args, name, config, flash) as server:
        resident = []
        answers = []
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(args.slots) as clients:
            try:
                for answer in clients.map(server.complete, requests):
                    answers.append(answer)
                    if len(answers) % max(1, len(requests) // 10) == 0:
                        resident.append(server.resident_mib())
            except OSError as error:
                print(f"{name}: {error} after {len(answers)} answers: "
                      f"{server.process.poll()}\n{server.tail()}", file=sys.stderr)
                if config is not None or not answers:
                    raise
        seconds = time.monotonic() - start
        shifts = server.count("context shift")
        if config is not None and server.count("shoal: holding") == 0:
            sys.exit(f"{name}: Shoal is not in use")
    return {"name": name, "answers": answers, "resident_mib": resident, "seconds": seconds,
            "context_shifts": shifts}


def run_depth(args, name, config, text):
    """Fills every slot, then decodes in all of them at once; tokens per second of all together."""
    with Server(args, name, config) as server:
        prompts = []
        start = time.monotonic()
        for slot in range(args.slots):
            # Prompts differ, so that no slot's cache serves another.
            ids = server.tokens_of(text[slot * 8 * args.depth // 2:], args.depth)
            prompts.append({"prompt": ids, "id_slot": slot})
            server.complete({**prompts[-1], "n_predict": 1})
        filled = time.monotonic() - start
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(args.slots) as clients:
            answers = list(clients.map(
                lambda prompt: server.complete({**prompt, "n_predict": args.predict}), prompts))
        # The cached prompts' last tokens are read again before the first token: what the server
        # itself reports of each slot's decoding leaves that out.
        rate = sum(answer["timings"]["predicted_per_second"] for answer in answers)
        return {"name": name, "depth": [len(p["prompt"]) for p in prompts], "fill_seconds": filled,
                "tokens_per_second": rate, "wall_seconds": time.monotonic() - start,
                "resident_mib": server.resident_mib()}


def depth_main(args, text):
    args.slot_tokens = (args.depth + args.predict + 511) // 256 * 256
    profile = f'[profile]\npath = "{os.path.abspath(args.profile)}"\n' if args.profile else ""
    figures = [run_depth(args, "stock", None, text), run_depth(args, "Shoal", profile, text)]
    print(f"{args.slots} slots of {figures[0]['depth']} tokens, all decoding {args.predict}\n"
          f"{'':8}{'tokens/s':>10}{'fill, s':>10}{'RSS MiB':>10}")
    for figure in figures:
        print(f"{figure['name']:8}{figure['tokens_per_second']:10.2f}{figure['fill_seconds']:10.0f}"
              f"{figure['resident_mib']:10.0f}")
    ratio = figures[1]["tokens_per_second"] / figures[0]["tokens_per_second"]
    print(f"ratio {ratio:.2f}")
    write_json(args, figures)
    return 0


def write_json(args, figures):
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


def memory_grew(resident):
    """By more than 2 % between the middle and the end."""
    return resident[-1] > 1.02 * resident[len(resident) // 2]


def compare(ours, stock):
    """Share of equal answers; mean difference of log-probabilities that both name."""
    same = [a["text"] == b["text"] for a, b in zip(ours, stock)]
    apart = []
    for a, b in zip(ours, stock):
        for position in range(min(len(a["tokens"]), len(b["tokens"]))):
            mine, theirs = a["logprobs"][position], b["logprobs"][position]
            apart += [abs(mine[t] - theirs[t]) for t in mine.keys() & theirs.keys()]
            if a["tokens"][position] != b["tokens"][position]:
                break
    return {"same_text": statistics.mean(same), "logprob_apart": statistics.mean(apart),
            "compared": len(apart)}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--llama-bin", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--yardstick", type=int,
                        help="requests of the two runs that show how far stock is from itself")
    parser.add_argument("--depth", type=int, help="tokens of each slot's prompt: measures speed")
    parser.add_argument("--predict", type=int, default=48, help="tokens to decode with --depth")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--slot-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=128, help="budget.rows of the sparse run")
    parser.add_argument("--profile", help="channel statistics for the sparse run")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


def main():
    args = parse_args()
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    if args.depth:
        return depth_main(args, text)
    requests = make_requests(text, args.requests, args.seed, args.slot_tokens)
    some = requests[:args.yardstick]
    sparse = f"[budget]\nrows = {args.rows}\ndense_below = {args.rows}\n"
    if args.profile:
        sparse += f'[profile]\npath = "{os.path.abspath(args.profile)}"\n'
    dense = '[selector]\nkind = "dense"\n'
    runs = [run(args, "stock", None, requests), run(args, "stock again", None, some),
            run(args, "stock, no flash att.", None, some, flash="off"),
            run(args, "Shoal, everything", dense, requests),
            run(args, f"Shoal, {args.rows} rows", sparse, requests)]
    figures = []
    print(f"{args.requests} requests, {args.slots} slots of {args.slot_tokens} tokens, seed "
          f"{args.seed}\n{'':22}{'same text':>10}{'log p apart':>13}{'shifts':>8}{'s':>7}"
          f"{'RSS MiB, first and last tenth':>32}")
    for found in runs:
        figure = {**compare(found["answers"], runs[0]["answers"]), **found}
        del figure["answers"]
        figures.append(figure)
        first, last = (found["resident_mib"] or [0])[0], (found["resident_mib"] or [0])[-1]
        print(f"{found['name']:22}{figure['same_text']:10.3f}{figure['logprob_apart']:13.4f}"
              f"{found['context_shifts']:8}{found['seconds']:7.0f}"
              f"{first:22.1f}{last:10.1f}")
    write_json(args, figures)
    if any(memory_grew(figure["resident_mib"]) for figure in figures[3:]):
        print("memory grew")
        return 1
    return 1 if figures[3]["logprob_apart"] > 1.5 * figures[2]["logprob_apart"] else 0


if __name__ == "__main__":
    sys.exit(main())
