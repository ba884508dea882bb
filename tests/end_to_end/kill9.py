#!/usr/bin/python3
"""A run killed by SIGKILL again and again, and resumed each time, ends with the bits of one that was left alone.

    kill9.py PROGRAM SCRATCH_FOLDER [SEED]
"""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py

from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data, metrics, must

STEPS, SECONDS = 60, 25
chance = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)

clean_scratch()
make_data()
config = make_config("[checkpoint]\nevery = 1\nkeep = 2\nresume = auto\n")
words = ["train", config, "--train.steps", str(STEPS), "--train.validate_every", "7", "--model.hidden_size", "32"]
must(*words, "--checkpoint.path", "whole")


def partial_there():
    return any(path.name.endswith(".partial") for path in Path("killed").glob("step_*"))


def wait_for(moment, process, until):
    """Until the process is over or moment() is true."""
    while process.poll() is None and time.time() < until and not moment():
        time.sleep(0.0005)


def progress():
    folders = [p.name for p in Path("killed").glob("step_*") if p.name[5:].isdigit()]
    return max((int(name[5:]) for name in folders), default=0)


start, kills, mid_save, resumed = time.time(), 0, 0, 0
errors = []
while True:
    log = open("out.txt", "w+")
    process = subprocess.Popen([PROGRAM, *words, "--checkpoint.path", "killed"], stdout=log, stderr=subprocess.PIPE)
    if time.time() - start < SECONDS - 8:
        how, began = chance.choice(["start", "save", "save", "step"]), progress()
        soon = time.time() + 10
        if how == "start":  # while it reads the checkpoint, or cuts its metrics
            time.sleep(chance.uniform(0, 0.4))
        else:
            wait_for(lambda: progress() >= began + chance.choice([1, 2, 3]), process, soon)
            if how == "save":
                wait_for(partial_there, process, soon)
            time.sleep(chance.choice([0, chance.uniform(0, 0.02)]))
        process.send_signal(signal.SIGKILL)
    stderr = process.communicate()[1].decode()
    log.seek(0)
    resumed += "resumed from" in log.read()
    log.close()
    if process.returncode == 0:
        break
    if process.returncode != -signal.SIGKILL or "warning" in stderr or "transmamba:" in stderr:
        errors.append(f"exit code {process.returncode}, {stderr}")
        break
    kills += 1
    mid_save += partial_there()
    for folder in Path("killed").glob("step_*"):
        whole = folder.name.endswith(".partial") or {"index.cksum", "index.h5", "shard_00000.h5"} <= set(os.listdir(folder))
        expect(whole, f"expected {folder} to be whole after a kill, got {os.listdir(folder)}")

expect(not errors, f"expected only kills to end runs, and no complaint, got {errors}")
# About 40 on a quiet machine.
expect(kills >= 6 and mid_save >= 2, f"expected at least 6 kills, 2 of them while saving, got {kills} and {mid_save}")
expect(resumed >= 4, f"expected at least 4 resumed runs, got {resumed}")


def tensors(root):
    """Every dataset of the last checkpoint, as bytes, and where it stands."""
    found = {}
    with h5py.File(Path(root) / f"step_{STEPS:08}" / "index.h5") as index:
        index.visititems(lambda name, item: found.update({name: item[()].tobytes()}) if hasattr(item, "dtype") else None)
        state = {name: int(index.attrs[name]) for name in ["step", "consumed_sequences", "seed"]}
    return found, state


(whole, whole_state), (killed, killed_state) = tensors("whole"), tensors("killed")
expect(whole_state == killed_state == {"step": STEPS, "consumed_sequences": 2 * STEPS, "seed": 0},
       f"expected the same state, got {whole_state} and {killed_state}")
expect(len(whole) > 30 and whole.keys() == killed.keys(), f"expected the same datasets, got {sorted(whole)} and {sorted(killed)}")
different = [name for name in whole if whole[name] != killed.get(name)]
expect(not different, f"expected the same bits, got others in {different}")


def losses(root):
    steps, validations = metrics(f"{root}/metrics.jsonl")
    return ([(m["step"], m["loss"], m["grad_norm"], m["lr"]) for m in steps],
            [(m["step"], m["validation_loss"]) for m in validations])


expect([m[0] for m in losses("whole")[0]] == list(range(1, STEPS + 1)), "expected one line a step in metrics.jsonl")
expect(losses("whole") == losses("killed"),
       f"expected the same losses in metrics.jsonl, got {losses('whole')} and {losses('killed')}")
left = sorted(p.name for p in Path("killed").iterdir())
expect(left == ["lock", "metrics.jsonl", f"step_{STEPS - 1:08}", f"step_{STEPS:08}"], f"expected two checkpoints and no rest, got {left}")
finish(f"{kills} kills, {mid_save} of them while saving, {resumed} resumed runs in {time.time() - start:.1f} s")
