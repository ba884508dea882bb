#!/usr/bin/env python3
"""A short training in bfloat16 on a GPU: the same losses again, with and without CUDA graphs, and where it goes on
from a checkpoint. The same in float32.

    training.py PROGRAM SCRATCH_FOLDER [cpu]     `cpu` tries the script where there is no GPU, in float32 alone
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.program import clean_scratch, expect, finish, make_data, metrics, must

STEPS, HALF = 10, 5
DEVICE = "cpu" if sys.argv[3:] == ["cpu"] else "cuda"

clean_scratch()
make_data(2000)
Path("run.cfg").write_text(f"""
[model]
hidden_size = 128
num_layers = 4
num_heads = 2
transpoints = 0,100,T
[data]
path = tokens.h5
[train]
device = {DEVICE}
seq_len = 192
micro_batch = 2
global_batch = 4
steps = {STEPS}
validate_every = {HALF}
validate_sequences = 4
[optimizer]
lr = 3e-3
min_lr = 3e-4
warmup_steps = 2
[checkpoint]
every = {HALF}
keep = 0
""")


def train(folder, dtype, *words):
    """Losses of the steps that it did, and of validations: numbers as they are printed, which give each bit."""
    must("train", "run.cfg", "--checkpoint.path", folder, "--train.dtype", dtype, *words, timeout=120)
    steps, validations = metrics(f"{folder}/metrics.jsonl")
    return [(m["step"], m["loss"], m["grad_norm"]) for m in steps], [(m["step"], m["validation_loss"]) for m in validations]


def last(curve):
    """What of it comes after the checkpoint half-way."""
    return tuple([point for point in part if point[0] > HALF] for part in curve)


for dtype in ["bfloat16", "float32"] if DEVICE == "cuda" else ["float32"]:
    whole = train(dtype, dtype)
    losses = [loss for _, loss, _ in whole[0]]
    expect([m[0] for m in whole[0]] == list(range(1, STEPS + 1)) and [m[0] for m in whole[1]] == [HALF, STEPS],
           f"{dtype}: expected steps 1 to {STEPS} and two validations, got {whole}")
    expect(losses[-1] < 0.8 * losses[0], f"{dtype}: expected the loss to fall by a fifth, got {losses}")
    for name, words in {"again": [], "without graphs": ["--train.cuda_graphs", "false"]}.items():
        other = train(f"{dtype} {name}", dtype, *words)
        expect(other == whole, f"{dtype} {name}: expected {whole}, got {other}")
    for name, words in {"resumed": [], "resumed without graphs": ["--train.cuda_graphs", "false"]}.items():
        other = train(f"{dtype} {name}", dtype, "--checkpoint.resume", f"{dtype}/step_{HALF:08}", *words)
        expect(last(other) == last(whole), f"{dtype} {name}: expected {last(whole)}, got {last(other)}")
finish(f"training on {DEVICE}")
