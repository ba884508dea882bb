#!/usr/bin/env python3
"""Memory grows with the sequence length, not with its square, for the SSM and for attention.

    memory.py PROGRAM SCRATCH_FOLDER

Takes memory_bytes of metrics.jsonl less parameters, gradients and the two moments, which do not depend on T.
"""
from support.program import clean_scratch, expect, finish, make_config, make_data, metrics, must

LENGTHS = [256, 512, 1024, 2048]

clean_scratch()
make_data(600)
config = make_config("[log]\nmetrics = metrics.jsonl\n")
for schedule in ["mamba", "transformer", "0.5"]:
    sizes = []
    for length in LENGTHS:
        done = must("train", config, "--model.transpoints", schedule, "--train.seq_len", length, "--train.steps", 2,
                    "--model.transpoint_unit", "fraction", "--train.micro_batch", 1, "--train.global_batch", 1)
        parameters = int(done.stdout.split(" parameters, TransPoints")[0].split()[-1])
        peak = metrics("metrics.jsonl")[0][-1]["memory_bytes"]
        sizes.append(peak - 4 * 4 * parameters)
    for short, long, length in zip(sizes, sizes[1:], LENGTHS[1:]):
        expect(1.8 <= long / short <= 2.2,
               f"{schedule}: expected memory at T = {length} to be 1.8 to 2.2 times that at half of it, "
               f"got {long / short:.3f}: {sizes}")
    print(f"{schedule}: {sizes} bytes at T = {LENGTHS}")
finish("memory")
