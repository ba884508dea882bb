#!/usr/bin/env python3
"""Does a training in bfloat16 on a GPU follow that in float32 on the CPU? The same small model, from the same numbers
and on the same tokens, is trained twice; of the loss of each step it prints how far the two are apart, relative to the
CPU's. Past 1 % (--limit) anywhere the exit code is 1.

    tools/compare_curves.py [--text FILE | --data TOKENS] [--steps 200] [--section.key VALUE ...]
    tools/compare_curves.py --only cpu ...    only that half, which leaves runs/curves/cpu.jsonl; as well --only gpu
    tools/compare_curves.py CPU.jsonl GPU.jsonl    halves that were made before, maybe on two machines

The model: 16 layers of width 256, so 8 mixers of 4 heads of 64, T 512, all TransPoints of V9 as fractions of T, on bytes.
The text is the King James Bible of Debian's package bible-kjv, unless --text or --data says another. Keys change any of
that in both halves. The CPU's half takes some minutes on two cores. Needs nothing beyond Python and our program.
"""
import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """[model]
hidden_size = 256
num_layers = 16
num_heads = 4
transpoints = V9
transpoint_unit = fraction
[train]
seq_len = 512
micro_batch = 4
global_batch = 4
[optimizer]
lr = 1e-3
min_lr = 1e-4
"""
HALVES = {"cpu": ("cpu", "float32"), "gpu": ("cuda", "bfloat16")}


def die(text):
    sys.exit(f"compare_curves: {text}")


def call(*words, show="\0"):
    """Runs it, prints lines of its output that begin with `show`, and gives all of them."""
    words, lines = [str(word) for word in words], []
    try:
        process = subprocess.Popen(words, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        die(f"{words[0]}: {error.strerror}")
    for line in process.stdout:
        lines.append(line)
        if line.startswith(show):
            print(line, end="", flush=True)
    if process.wait():
        die(f"{' '.join(words[:3])} .. ended with {process.returncode}")
    return lines


def prepare(a):
    """The tokens to train on."""
    if a.data:
        return a.data
    text, tokens = a.text, a.folder / "tokens.h5"
    if not text:
        text = a.folder / "bible.txt"
        text.write_text("".join(line.partition(" ")[2] for line in call("bible", "-f", "Gen1:1-Rev22:21")))
    call(a.program, "prepare", "--input", text, "--output", tokens)
    return tokens


def train(a, half, tokens):
    device, dtype = HALVES[half]
    config, curve = a.folder / "run.cfg", a.folder / f"{half}.jsonl"
    config.write_text(f"{CONFIG}warmup_steps = {a.steps // 10}\n")
    print(f"{half}: {a.steps} steps in {dtype}", flush=True)
    call(a.program, "train", config, "--data.path", tokens, "--train.device", device, "--train.dtype", dtype,
         "--train.steps", a.steps, "--log.metrics", curve, "--log.every", max(1, a.steps // 5), *a.keys, show="step ")
    return curve


def losses(path):
    """{step: loss}"""
    try:
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        die(f"{path}: {error}")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def compare(a, cpu, gpu):
    one, two = losses(cpu), losses(gpu)
    if not one or one.keys() != two.keys():
        die(f"expected the same steps in both, got {len(one)} in {cpu} and {len(two)} in {gpu}")
    apart = {step: abs(two[step] - loss) / abs(loss) for step, loss in one.items()}
    shown = sorted({*sorted(one)[::max(1, len(one) // 10)], max(one)})
    print(f"\n{'step':>6} {'CPU':>10} {'GPU':>10} {'apart':>9}")
    for step in shown:
        print(f"{step:6} {one[step]:10.5f} {two[step]:10.5f} {100 * apart[step]:8.4f}%")
    worst = max(apart, key=lambda step: math.inf if math.isnan(apart[step]) else apart[step])
    follows = apart[worst] <= a.limit / 100  # which NaN does not
    print(f"{len(one)} steps: {100 * sum(apart.values()) / len(apart):.4f} % apart in the mean, "
          f"{100 * apart[worst]:.4f} % at most, at step {worst}: {'within' if follows else 'NOT within'} {a.limit:g} %")
    return 0 if follows else 1


def split_keys(words):
    """The program's keys, --section.key VALUE or --section.key=VALUE, and all other words."""
    keys, others = [], []
    while words:
        word, *words = words
        if not (word.startswith("--") and "." in word.partition("=")[0]):
            others.append(word)
            continue
        keys.append(word)
        if "=" not in word:
            keys += words[:1]
            words = words[1:]
    return keys, others


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("curves", nargs="*", metavar="METRICS.jsonl", help="of the CPU and of the GPU, to compare without training")
    p.add_argument("--text", type=Path, help="a text, which becomes a token a byte")
    p.add_argument("--data", type=Path, help="tokens of `transmamba prepare`, or a Megatron pair")
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--limit", type=float, default=1, help="per cent (1)")
    p.add_argument("--only", choices=HALVES, help="train only this half")
    p.add_argument("--folder", type=Path, default=ROOT / "runs" / "curves", help="where all is left (runs/curves)")
    p.add_argument("--program", type=Path, help="build/cuda/transmamba, or for the CPU's half alone build/cpu/transmamba")
    keys, words = split_keys(sys.argv[1:])
    a = p.parse_args(words)
    a.keys = keys
    if len(a.curves) == 2 and not keys:
        return compare(a, *a.curves)
    if a.curves:
        p.error(f"expected two files to compare and no keys, got {' '.join(a.curves + keys)}")
    a.program = a.program or ROOT / "build" / ("cpu" if a.only == "cpu" else "cuda") / "transmamba"
    if not os.access(a.program, os.X_OK):
        die(f"there is no {a.program}: cmake --preset cuda && cmake --build build/cuda --target transmamba")
    a.folder.mkdir(parents=True, exist_ok=True)
    tokens = prepare(a)
    curves = [train(a, half, tokens) for half in HALVES if a.only in (None, half)]
    if a.only:
        print(f"written to {curves[0]}")
        return 0
    return compare(a, *curves)


if __name__ == "__main__":
    sys.exit(main())
