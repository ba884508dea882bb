#!/usr/bin/env python3
"""A signal to any rank stops all after their step: they save, exit with 75, and the run goes on to the same losses.

    parallel_signals.py PROGRAM SCRATCH_FOLDER
"""
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from support.mpi import keys, losses, ranks_of, start_ranks, succeeds
from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data

STOPPED, STEPS = 75, 40
clean_scratch()
make_data()
words = ["train", make_config(), "--train.steps", STEPS, "--train.global_batch", 4, "--checkpoint.resume", "auto"]


def wait_for_steps(folder, count, process):
    """Until the run has written so many lines of metrics."""
    path = Path(folder) / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= count):
        time.sleep(0.002)
    expect(process.poll() is None, f"{folder}: expected it to run when it gets a signal, got exit code {process.poll()}")


def end_of(name, process, code, seconds=10):
    start = time.time()
    out, err = process.communicate(timeout=60)
    took = time.time() - start
    expect(process.returncode == code and took < seconds,
           f"{name}: expected exit code {code} within {seconds} s, got {process.returncode} after {took:.1f} s: {out[-500:]} {err}")
    return out


def saved(folder):
    return sorted(int(path.name[5:]) for path in Path(folder).glob("step_*") if path.name[5:].isdigit())


# ---- several ranks: one that is not rank 0 gets it; or mpirun, which passes it on to all
succeeds(4, *words, *keys("tp=2 cp=2"), "--checkpoint.path", "whole")
for name, number, at in [("one rank", signal.SIGTERM, 3), ("mpirun", signal.SIGUSR1, None), ("one rank", signal.SIGINT, 1)]:
    shutil.rmtree("run", ignore_errors=True)
    process = start_ranks(4, *words, *keys("tp=2 cp=2"), "--checkpoint.path", "run", "--log.every", STEPS)
    wait_for_steps("run", 5, process)
    os.kill(ranks_of(process)[at] if at is not None else process.pid, number)
    out = end_of(f"{number.name} to {name}", process, STOPPED)
    expect(out.count("stopped by a signal after step") == 1, f"{number.name} to {name}: expected one line about it, got {out[-500:]}")
    steps = saved("run")
    expect(len(steps) == 1 and 5 <= steps[0] < STEPS and len(losses("run")[0]) == steps[0],
           f"{number.name} to {name}: expected its last step to be saved, got {steps} after {len(losses('run')[0])} steps")
succeeds(4, *words, *keys("tp=2 cp=2"), "--checkpoint.path", "run")
expect(losses("run") == losses("whole"), "stopped and resumed: expected the losses of a run that was left alone")


# ---- one process
def start(*more):
    command = [PROGRAM, "train", "run.cfg", "--train.steps", STEPS, "--checkpoint.path", "alone", *more]
    return subprocess.Popen(list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


process = start()
wait_for_steps("alone", 5, process)
process.send_signal(signal.SIGINT), process.send_signal(signal.SIGTERM)  # as a launcher and a process group do
end_of("twice at once", process, STOPPED)
steps = saved("alone")
expect(len(steps) == 1 and len(losses("alone")[0]) == steps[0], f"expected its last step to be saved, got {steps}")

# One step takes half a minute.
process = start("--fault.kind", "slow", "--fault.seconds", 30, "--log.metrics", "long.jsonl")
until = time.time() + 20
while "tokens a step" not in process.stdout.readline() and time.time() < until:
    pass
time.sleep(0.5)
process.send_signal(signal.SIGTERM)
time.sleep(1)
expect(process.poll() is None, f"expected one signal to wait for the end of the step, got exit code {process.poll()}")
process.send_signal(signal.SIGTERM)
end_of("a second signal", process, 128 + signal.SIGTERM, 1)
expect(Path("long.jsonl").read_text() == "", "expected the second signal in the first step")
finish("signals")
