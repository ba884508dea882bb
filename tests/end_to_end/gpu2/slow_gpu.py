#!/usr/bin/env python3
"""One of two ranks has a slow GPU, which another process uses too, or a slow host: the step line says which.

    slow_gpu.py PROGRAM SCRATCH_FOLDER
"""
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import keys, succeeds
from support.program import PROGRAM, clean_scratch, expect, finish, make_data, metrics

STEPS, EVERY = 45, 20  # Pace::kGpuSteps
clean_scratch()
make_data(4000)
Path("run.cfg").write_text(f"""
[model]
hidden_size = 1536
num_layers = 4
num_heads = 16
transpoints = 1024,T
[data]
path = tokens.h5
[train]
device = cuda
dtype = bfloat16
seq_len = 4096
micro_batch = 2
global_batch = 8
steps = {STEPS}
""")


def train(name, mesh, *more):
    """Steps whose lines name a rank, which, and by how much in the mean."""
    out = succeeds(2, "train", "run.cfg", *keys(mesh), "--log.metrics", f"{name}.jsonl", *more, timeout=120)
    steps = metrics(f"{name}.jsonl")[0]
    named = [m for m in steps if m["slowest_excess"] > 0.25]
    expect(len(re.findall(r"rank \d slower by \d+%", out)) == len(named), f"{name}: expected a word for each slow rank, got {out}")
    print(f"{name}: {len(named)} of {len(steps)} steps name ranks {sorted({m['slowest_rank'] for m in named})}, the last "
          f"{steps[-1]['slowest_rank']} by {steps[-1]['slowest_excess']:.2f}; {steps[-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    return {m["step"] for m in named}, {m["slowest_rank"] for m in named}


@contextmanager
def another_run_on_gpu_1():
    lines = Path("other.jsonl")
    lines.unlink(missing_ok=True)
    other = subprocess.Popen([PROGRAM, "train", "run.cfg", "--train.steps", "1000000", "--log.metrics", lines], stdout=subprocess.DEVNULL,
                             env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"})
    try:
        deadline = time.time() + 60
        while other.poll() is None and time.time() < deadline and (not lines.exists() or lines.read_text().count("\n") < 5):
            time.sleep(0.1)
        expect(other.poll() is None and time.time() < deadline, f"expected the other run to go on, got {other.returncode}")
        yield
    finally:
        other.kill()
        other.wait()


for mesh in ["dp=2", "tp=2", "cp=2"]:
    steps, ranks = train(f"even-{mesh}", mesh)
    expect(len(steps) <= EVERY, f"{mesh}, two GPUs alike: expected hardly a line to name one, got {sorted(steps)}")
    with another_run_on_gpu_1():
        steps, ranks = train(f"shared-{mesh}", mesh)
    expect(ranks == {1} and len(steps) >= STEPS - 5, f"{mesh}, GPU 1 shared: expected most lines to name rank 1, got {ranks} in {steps}")

# In the steps with events from the second on: 2, 22, 42; known a step later, sent, and said in the line after that.
steps, ranks = train("host", "dp=2", "--fault.kind", "slow", "--fault.rank", 0, "--fault.step", 22, "--fault.steps", EVERY,
                     "--fault.seconds", 0.3)
expect(ranks == {0} and {24, 43} <= steps and not {22, 45} & steps, f"slow host: expected lines 24 to 43 to name rank 0, got {ranks} in {steps}")
finish("slow ranks on GPUs")
