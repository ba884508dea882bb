#!/usr/bin/env python3
"""Every kind of model that the configuration can name trains: its loss is finite and falls.

    baselines.py PROGRAM SCRATCH_FOLDER
"""
import math

from support.program import clean_scratch, expect, finish, make_config, make_data, metrics, run

VARIANTS = [
    *(["--model.transpoints", name] for name in ["transformer", "mamba", "hybrid"]),
    *(["--model.transpoints", f"V{i}", "--model.transpoint_unit", "fraction"] for i in range(1, 10)),
    ["--model.transpoints", "V9"],
    ["--model.transpoints", "0.25,0.75", "--model.transpoint_unit", "fraction"],
    ["--model.transpoints", "1,31,T"],
    ["--model.gate", "all"],
    ["--model.gate", "none"],
    ["--model.memory_converter", "off", "--model.transpoints", "8"],
    ["--model.tie_embeddings", "true"],
    ["--model.layer_pattern", "TT-"],
    ["--model.layer_pattern", "-T"],
    ["--model.layer_pattern", "T"],
    ["--model.num_layers", "1"],
    ["--model.conv_width", "1"],
    ["--model.conv_width", "2"],
    ["--model.qk_head_dim", "6", "--model.v_head_dim", "10"],
    ["--train.dtype", "float64"],
    ["--train.micro_batch", "1", "--train.global_batch", "3"],
    ["--train.seq_len", "31"],
]

clean_scratch()
make_data()
config = make_config("[log]\nmetrics = metrics.jsonl\n")
curves = {}
for words in VARIANTS:
    name = " ".join(words)
    done = run("train", config, *words)
    expect(done.returncode == 0 and done.stderr == "",
           f"{name}: expected exit code 0 and a silent stderr, got {done.returncode}: {done.stderr}")
    if done.returncode != 0:
        continue
    steps, validations = metrics("metrics.jsonl")
    losses = [step["loss"] for step in steps]
    expect(len(losses) == 6 and all(math.isfinite(x) for x in losses), f"{name}: expected 6 finite losses, got {losses}")
    expect(abs(losses[0] - math.log(257)) < 0.3, f"{name}: expected a first loss near ln 257, got {losses[0]}")
    expect(losses[-1] < losses[0] - 0.3, f"{name}: expected the loss to fall by 0.3, got {losses}")
    expect(len(validations) == 1 and math.isfinite(validations[0]["validation_loss"]),
           f"{name}: expected one finite validation loss, got {validations}")
    same = curves.setdefault(tuple(losses), name)
    both_ends = {"--model.transpoints", "V9"} <= set(words)  # V9 at 32 tokens is the hybrid: 0, T
    expect(same == name or both_ends, f"{name}: expected losses of its own, got those of {same}")
finish(f"{len(VARIANTS)} kinds of model")
