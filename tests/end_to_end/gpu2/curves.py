#!/usr/bin/env python3
"""Training on two GPUs by each axis: the losses of one GPU, and the same bits again. With validation between steps, whose
shapes are new to the GPU, in float32 and bfloat16; in the latter by NCCL too, and with more segments.

    curves.py PROGRAM SCRATCH_FOLDER [cpu]     `cpu` tries the script where there is no GPU, in float32 alone
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import keys, succeeds
from support.program import clean_scratch, expect, finish, make_data, metrics, must

DEVICE = "cpu" if sys.argv[3:] == ["cpu"] else "cuda"
# A step moves every parameter, and so what rounding changed in one step changes the next: relative differences of losses
# after 12 steps, of sums in another order (float32) and of products rounded elsewhere (bfloat16).
ALLOWED = {"float32": 2e-5, "bfloat16": 5e-3}
AXES = ["dp=2", "tp=2", "cp=2", "pp=2 virtual_stages=2"]
OTHERS = ["dp=2 copy_engines=false", "tp=2 copy_engines=false", "cp=2 cp_layout=zigzag", "cp=2 copy_engines=false", "pp=2 virtual_stages=2 copy_engines=false"]
clean_scratch()
make_data(2000)
Path("run.cfg").write_text(f"""
[model]
hidden_size = 256
num_layers = 4
num_heads = 4
transpoints = 100,T
[data]
path = tokens.h5
[train]
device = {DEVICE}
seq_len = 384
micro_batch = 1
global_batch = 4
steps = 12
validate_every = 5
validate_sequences = 3
[optimizer]
lr = 3e-3
min_lr = 3e-4
warmup_steps = 2
""")


def curve(name, dtype, train):
    words = ["train", "run.cfg", "--train.dtype", dtype, "--log.metrics", f"{name}.jsonl"]
    train(words)
    steps, validations = metrics(f"{name}.jsonl")
    return [m["loss"] for m in steps], [m["validation_loss"] for m in validations]


for dtype in ["float32", "bfloat16"] if DEVICE == "cuda" else ["float32"]:
    alone = curve(f"{dtype} alone", dtype, lambda words: must(*words, timeout=120))
    expect(len(alone[0]) == 12 and len(alone[1]) == 3 and alone[0][-1] < 0.9 * alone[0][0],
           f"{dtype}: expected 12 falling losses and 3 validations, got {alone}")
    curves = {}
    for mesh in AXES if dtype == "float32" and DEVICE == "cuda" else AXES + OTHERS:
        def both(words):
            succeeds(2, *words, *keys(mesh), timeout=120)
        here = curve(f"{dtype} {mesh}", dtype, both)
        again = curve(f"{dtype} {mesh} again", dtype, both) if mesh in AXES else here
        expect(here == again, f"{dtype} {mesh}: expected the same bits again, got {here} and {again}")
        curves[mesh] = here
        same = curves[mesh.replace(" copy_engines=false", "")]
        expect(here == same, f"{dtype} {mesh}: expected the bits that copy engines give, got {here} and {same}")
        off = max(abs(a / b - 1) for x, y in zip(here, alone) for a, b in zip(x, y))
        print(f"{dtype} {mesh}: losses as on one GPU but for {off:.1e}")
        expect(off < ALLOWED[dtype], f"{dtype} {mesh}: expected the losses of one GPU, got {here} and {alone}")
finish(f"losses of two ranks on {DEVICE}")
