#!/usr/bin/env python3
"""Checkpoints of ranks under the real mpirun: any mesh goes on with them, and a killed rank costs none.

    parallel_checkpoints.py PROGRAM SCRATCH_FOLDER [SEED]
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.mpi import expect_equal, keys, losses, ranks_of, start_ranks, succeeds
from support.program import clean_scratch, expect, finish, make_config, make_data, must

chance = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
clean_scratch()
make_data()
words = ["train", make_config(), "--train.dtype", "float64", "--train.global_batch", 4, "--train.micro_batch", 1,
         "--train.validate_sequences", 3, "--checkpoint.resume", "auto"]

# ---- after two steps under one mesh, two more under another
A, STEP_2 = "tp=2 cp=2", "step_00000002"
four = [*words, "--train.steps", 4, "--checkpoint.every", 2]
succeeds(4, *four, *keys(A), "--checkpoint.path", "a")
(steps, validations) = losses("a")
rest = (steps[2:], validations)  # steps 3 and 4, and the validation after them
for ranks, mesh in [(4, A), (4, "pp=2 dp=2"), (2, "tp=2"), (1, "dp=1")]:
    folder = Path(mesh.replace(" ", "."))
    shutil.copytree(Path("a") / STEP_2, folder / STEP_2)
    said = succeeds(ranks, *four, *keys(mesh), "--checkpoint.path", folder)
    expect(said.count(f"resumed from {folder}/{STEP_2} after step 2") == 1, f"{mesh}: expected one line about step 2, got {said}")
    expect_equal(f"{A}, then {mesh}", losses(folder), rest, 0 if mesh == A else 1e-9)
# And back: what another mesh saved is as good.
shutil.rmtree("tp=2")
shutil.copytree(Path("pp=2.dp=2") / "step_00000004", Path("back") / "step_00000004")
shutil.copytree(Path("a") / "step_00000004", Path("on") / "step_00000004")
for folder in ["back", "on"]:
    succeeds(4, *words, "--train.steps", 6, *keys(A), "--checkpoint.path", folder)
expect_equal(f"{A}, then pp=2 dp=2, then {A}", losses("back"), losses("on"))

# ---- kills of one rank: while it starts, in a step, while it saves
STEPS = 24
long = [*words, *keys(A), "--train.steps", STEPS, "--checkpoint.every", 1, "--checkpoint.keep", 2]
succeeds(4, *long, "--checkpoint.path", "whole")


def folders():
    """Of checkpoints under their final names."""
    return sorted(path for path in Path("killed").glob("step_*") if path.name[5:].isdigit())


def progress():
    return max((int(path.name[5:]) for path in folders()), default=0)


def saving():
    return any(Path("killed").glob("*.partial"))


def wait_for(moment, process):
    """Until moment() is true; whether it came before the run's end."""
    while process.poll() is None and not moment():
        time.sleep(0.0005)
    return process.poll() is None


for how in ["step", "save", "start", "save"]:
    process, began = start_ranks(4, *long, "--checkpoint.path", "killed"), progress()
    wait_for(lambda: len(ranks_of(process)) == 4, process)
    if how == "start":
        time.sleep(0.2)
    else:
        wait_for(lambda: progress() >= began + chance.choice([1, 2, 3]), process)
        if how == "save":
            wait_for(saving, process)
        time.sleep(chance.uniform(0, 0.01))
    ranks = ranks_of(process)
    expect(process.poll() is None and len(ranks) == 4, f"{how}: expected 4 ranks to choose from, got {ranks}")
    os.kill(chance.choice(ranks), signal.SIGKILL)
    killed = time.time()
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"FAILED: {how}: the others still run 30 s after a rank was killed")
    seconds = time.time() - killed
    expect(process.returncode != 0 and seconds < 10, f"{how}: expected an end within 10 s, got {process.returncode} after {seconds:.1f} s")
    expect("warning" not in err, f"{how}: expected all that was there before to be whole, got {err}")
    for folder in folders():  # loads everything, on one rank, and has nothing to do
        must("train", "run.cfg", "--train.dtype", "float64", "--checkpoint.resume", folder, "--train.steps", int(folder.name[5:]),
             "--optimizer.warmup_steps", 0)
expect(0 < progress() < STEPS, f"expected the kills to come in mid-run, got to step {progress()}")
succeeds(4, *long, "--checkpoint.path", "killed")
expect_equal("killed and resumed", losses("killed"), losses("whole"), 0)
left = sorted(path.name for path in Path("killed").glob("step_*"))
expect(left == [f"step_{STEPS - 1:08}", f"step_{STEPS:08}"], f"expected two checkpoints and no rest, got {left}")
finish("checkpoints under mpirun")
