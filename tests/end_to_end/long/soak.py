#!/usr/bin/env python3
"""Weeks in a quarter of an hour: `transmamba launch` has four ranks, of which a random one is killed again and again.

    soak.py PROGRAM SCRATCH_FOLDER [--kills 25] [--steps 2000] [--between 20 60] [--batch 320] [--seed 1]

Beside it the same run is left alone. The killed one has to end with the same losses in every step, to the bit, also in
those that it takes twice; to go on each time from the newest checkpoint that was there; and to leave nothing half-written.
Not part of ctest, for its length; --kills 2 --steps 150 --between 3 5 --batch 24 takes a quarter. A --batch
that is too small ends before the kills.
"""
import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import ENVIRONMENT, keys, losses, ranks_of_launch, succeeds
from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data

parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("program"), parser.add_argument("scratch")
parser.add_argument("--kills", type=int, default=25)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--between", type=float, nargs=2, default=[20, 60])
parser.add_argument("--batch", type=int, default=320)
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()
chance = random.Random(options.seed)

# A line of the log at least every 10 steps: by it `launch` knows that an attempt came anywhere, and that the next need not wait.
clean_scratch()
make_data(4000)
words = list(map(str, [make_config(), *keys("tp=2 dp=2"), "--train.steps", options.steps, "--train.global_batch", options.batch,
                       "--train.validate_every", 0, "--checkpoint.every", 10, "--checkpoint.keep", 3, "--log.every", 10,
                       "--parallel.timeout", 60]))


def checkpoints(folder="killed"):
    return sorted(int(path.name[5:]) for path in Path(folder).glob("step_*") if path.name[5:].isdigit())


def losses_so_far():
    """[(step, loss)] in the lines that the killed run has written whole."""
    path = Path("killed/metrics.jsonl")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


start = time.time()
alone = ThreadPoolExecutor(1).submit(lambda: (succeeds(4, "train", *words, "--checkpoint.path", "whole", timeout=36000),
                                              time.time() - start)[1])
process = subprocess.Popen([PROGRAM, "launch", words[0], "--local", "-n", "4", *words[1:], "--checkpoint.path", "killed",
                            "--train.max_restarts", str(options.kills)], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
killed, restarted = [], threading.Event()


def kill_ranks():
    """A rank of the four, each time, in whatever they are about, their start included."""
    for _ in range(options.kills):
        end = time.time() + chance.uniform(*options.between)
        while process.poll() is None and (time.time() < end or len(ranks_of_launch(process)) < 4):
            time.sleep(0.05)
        if process.poll() is not None:
            return
        restarted.clear()
        os.kill(chance.choice(ranks_of_launch(process)), signal.SIGKILL)
        killed.append(time.time())
        while process.poll() is None and not restarted.wait(0.05):
            pass


killer = threading.Thread(target=kill_ranks)
killer.start()
lost, detected, taken, newest, resumed_from, last = [], [], set(), 0, 0, collections.deque(maxlen=40)
for line in process.stdout:
    last.append(line)
    expect("warning" not in line, f"expected all checkpoints to be whole, got {line}")
    if found := re.match(r"resumed from \S+ after step (\d+)", line):
        resumed_from = int(found.group(1))
    elif line.startswith("step "):
        expect(resumed_from == newest, f"expected it to go on after step {newest}, the newest checkpoint, got {resumed_from}")
    elif found := re.match(r"launch: (.*?) after .*: restart (\d+) of ", line):
        # Now, that all ranks have ended and the next have not yet begun.
        so_far, newest = losses_so_far(), max(checkpoints(), default=0)
        resumed_from = -1 if newest else 0
        taken.update(so_far)
        lost.append(max((step for step, _ in so_far), default=0) - newest)
        killed_at = killed[-1] if killed else start
        detected.append(time.time() - killed_at)
        expect(found.group(1) == "exit code 137" and int(found.group(2)) == len(killed) == len(lost),
               f"expected each restart to be for a kill, got {line} after {len(killed)} kills: {''.join(last)}")
        print(f"kill {len(killed)} after {killed_at - start:.0f} s, in step {newest + lost[-1] + 1}: restart announced "
              f"{detected[-1]:.2f} s later, {lost[-1]} steps to be taken again", flush=True)
        restarted.set()
code = process.wait()
seconds = time.time() - start
killer.join()
expect(code == 0, f"expected the launcher to end well, got exit code {code}: {''.join(last)}")
expect(len(killed) == options.kills, f"expected {options.kills} kills before the end, got {len(killed)}: take a larger --batch")
print(f"left alone: {options.steps} steps in {alone.result():.0f} s", flush=True)
# What a checkpoint is written in counts too, so a few steps more than lie between two.
expect(not lost or max(lost) <= 20, f"expected no more than 20 steps to be lost at a time, got {lost}")
whole = losses("whole")
expect(len(whole[0]) == options.steps and losses("killed") == whole, "expected the losses of the run left alone, in every step")
expect(taken <= set(whole[0]), f"expected its losses in steps that were lost, too, got {sorted(taken - set(whole[0]))}")
expect(checkpoints() == [options.steps - 10 * i for i in (2, 1, 0)], f"expected three checkpoints, got {checkpoints()}")
expect(names("killed") == names("whole"), f"expected these files and no rest: {names('whole')}, got {names('killed')}")
for step in checkpoints():
    out = succeeds(4, "train", *words, "--checkpoint.resume", f"killed/step_{step:08}", "--checkpoint.path", f"from_{step}", timeout=600)
    expect(f"after step {step}\n" in out and losses(f"from_{step}")[0] == whole[0][step:],
           f"expected the checkpoint of step {step} to be whole, and the same losses after it, got {out}")
print(f"{len(killed)} kills in {seconds:.0f} s: {sum(lost)} of {options.steps} steps taken twice, at most {max(lost, default=0)} at a "
      f"time; all ranks ended within {max(detected, default=0):.2f} s; last loss {losses('killed')[0][-1][1]} as of the run left alone")
finish("soak")
