#!/usr/bin/env python3
"""Weeks in half an hour: four ranks of which a random one is killed again and again, and the run started again.

    soak.py PROGRAM SCRATCH_FOLDER [--kills 25] [--steps 2000] [--between 20 60] [--batch 400] [--seed 1]

First the same run is left alone. The killed one has to end with the same losses in every step, to the bit, to go on each
time from the newest checkpoint that was there, and to leave nothing half-written. Not part of ctest, for its length;
--kills 3 --steps 400 --between 2 4 --batch 24 takes half a minute. A --batch that is too small ends before the kills.
"""
import argparse
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import keys, losses, ranks_of, start_ranks, succeeds
from support.program import clean_scratch, expect, finish, make_config, make_data

parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("program"), parser.add_argument("scratch")
parser.add_argument("--kills", type=int, default=25)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--between", type=float, nargs=2, default=[20, 60])
parser.add_argument("--batch", type=int, default=400)
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()
chance = random.Random(options.seed)

clean_scratch()
make_data(4000)
words = ["train", make_config(), *keys("tp=2 dp=2"), "--train.steps", options.steps, "--train.global_batch", options.batch,
         "--train.validate_every", 0, "--checkpoint.every", 10, "--checkpoint.keep", 3, "--checkpoint.resume", "auto",
         "--log.every", 100, "--parallel.timeout", 60]
start = time.time()
succeeds(4, *words, "--checkpoint.path", "whole", timeout=36000)
print(f"left alone: {options.steps} steps in {time.time() - start:.0f} s", flush=True)


def checkpoints():
    return sorted(int(path.name[5:]) for path in Path("killed").glob("step_*") if path.name[5:].isdigit())


def last_step():
    path = Path("killed/metrics.jsonl")
    return path.read_text().count('"loss"') if path.exists() else 0


kills, lost, detected, newest, resumed_from = 0, [], [], 0, []
start = time.time()
while True:
    process = start_ranks(4, *words, "--checkpoint.path", "killed")
    if kills < options.kills:
        end = time.time() + chance.uniform(*options.between)
        while time.time() < end and process.poll() is None:
            time.sleep(0.05)
        ranks = ranks_of(process)
        if process.poll() is None and ranks:
            os.kill(chance.choice(ranks), signal.SIGKILL)
            killed = time.time()
    out, err = process.communicate(timeout=36000)
    found = re.search(r"resumed from \S+ after step (\d+)", out)
    at = int(found.group(1)) if found else 0
    expect(at == newest, f"start {kills}: expected it to go on after step {newest}, the newest checkpoint, got {at}: {err}")
    expect("warning" not in err, f"start {kills}: expected all checkpoints to be whole, got {err}")
    if process.returncode == 0:
        break
    expect(process.returncode == 128 + signal.SIGKILL, f"start {kills}: expected the kill to end it, got {process.returncode}: {err}")
    if process.returncode != 128 + signal.SIGKILL:
        break
    kills += 1
    detected.append(time.time() - killed)
    newest = max(checkpoints(), default=0)
    lost.append(last_step() - newest)
    print(f"kill {kills} after {killed - start:.0f} s: all ended {detected[-1]:.2f} s later, {lost[-1]} steps to be taken again", flush=True)

seconds = time.time() - start
expect(kills >= options.kills, f"expected {options.kills} kills before the end of the run, got {kills}: take a larger --batch")
# What a checkpoint is written in counts too, so a few steps more than lie between two.
expect(not lost or max(lost) <= 20, f"expected no more than 20 steps to be lost at a time, got {lost}")
expect(losses("killed") == losses("whole"), "expected the losses of the run that was left alone, in every step")
left = sorted(path.name for path in Path("killed").glob("step_*"))
expect(left == [f"step_{options.steps - 10 * i:08}" for i in (2, 1, 0)], f"expected three checkpoints and no rest, got {left}")
print(f"{kills} kills in {seconds:.0f} s: {sum(lost)} of {options.steps} steps taken twice, at most {max(lost, default=0)} at a time; "
      f"ended within {max(detected, default=0):.2f} s; last loss {losses('killed')[0][-1][1]} as of the run left alone")
finish("soak")
