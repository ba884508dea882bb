#!/usr/bin/env python3
"""Trains one model with each layout of context parallelism and prints what a step takes beside what `transmamba plan`
says it takes. The machine is measured first (transmamba bench), with as many ranks. Runs of the layouts take turns, so
that what else the machine does meanwhile meets them all alike.

usage: tools/compare_layouts.py [--program build/cpu/transmamba] [--config configs/long-cpu.cfg] [--ranks 2]
                                [--rounds 5] [--steps 4] [--machine FILE] [--folder FOLDER] [--section.key value ...]
"""
import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile

LAYOUTS = ["contiguous", "zigzag", "striped", "balanced"]
ENVIRONMENT = {  # more ranks than cores, root, one machine
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "self,vader,tcp", "OPENBLAS_NUM_THREADS": "1",
}


def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env={**ENVIRONMENT, **os.environ})
    if done.returncode != 0:
        sys.exit(f"compare_layouts: {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=True)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--program", default=here / "build/cpu/transmamba")
    parser.add_argument("--config", default=here / "configs/long-cpu.cfg")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--machine", help="measured before; otherwise bench runs first")
    parser.add_argument("--folder", help="where to leave the machine file and the runs' metrics")
    a, keys = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(a.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        compare(a, keys, folder)


def predictions(a, keys, layout):
    """Seconds of a step, busiest/mean and waiting of a layout, as plan prints them; and the tokens of a step."""
    text = run(a.program, "plan", a.config, "--ranks", a.ranks, *keys, "--parallel.cp_layout", layout)
    batches, batch, length = map(int, re.search(r"(\d+) micro-batches of (\d+) x (\d+) tokens", text).groups())
    speed = float(re.search(r"^step .* (\d+) tokens/s", text, re.M).group(1))
    row = re.search(rf"^  {layout} +(\d+) +([\d.]+) +([\d.]+)$", text, re.M)
    tokens = batches * batch * length * int(re.search(r" x dp (\d+)", text).group(1))
    return {"tokens": tokens, "seconds": tokens / speed, "segments": int(row[1]), "busiest": float(row[2]),
            "waiting": float(row[3])}


def compare(a, keys, folder):
    mpirun = ["mpirun", "-np", a.ranks, a.program]
    machine = a.machine or folder / "machine.json"
    if not a.machine:
        run(*mpirun, "bench", "--quick", "--config", a.config, "--output", machine, *keys)
    text = folder / "text.txt"  # what it says does not matter for time
    text.write_text("".join(chr(97 + i * i % 23) for i in range(400_000)))
    run(a.program, "prepare", "--input", text, "--output", folder / "tokens.h5")
    keys = [*keys, "--parallel.machine", machine]
    predicted = {layout: predictions(a, keys, layout) for layout in LAYOUTS}
    seconds, waited = {layout: [] for layout in LAYOUTS}, {layout: [] for layout in LAYOUTS}  # of each run
    for turn in range(a.rounds):
        for layout in LAYOUTS[turn % 4:] + LAYOUTS[:turn % 4]:
            metrics, traffic = folder / f"{layout}-{turn}.jsonl", folder / f"{layout}-{turn}.json"
            run(*mpirun, "train", a.config, *keys, "--parallel.cp_layout", layout, "--train.steps", a.steps + 1,
                "--optimizer.warmup_steps", 1, "--train.validate_every", 0, "--data.path", folder / "tokens.h5",
                "--log.metrics", metrics, "--log.communication", traffic)
            steps = [json.loads(line) for line in metrics.read_text().splitlines()]
            # The first step maps memory; others may be disturbed, so the fastest counts.
            seconds[layout].append(min(predicted[layout]["tokens"] / s["tokens_per_second"] for s in steps[1:]))
            waited[layout].append(sum(line["longest_exposed_seconds_per_step"]
                                      for line in json.loads(traffic.read_text())["communication"]))

    print(f"{a.ranks} ranks, {a.rounds} runs a layout; seconds of a run's fastest step, and over those of balanced")
    print(f"{'':<11}{'-- predicted --':^41}    {'-- measured --':^42}")
    print(f"{'layout':<11}{'segments':>8}{'busiest':>9}{'waiting':>9}{'step':>8}{'ratio':>7}"
          f"{'least':>10}{'ratio':>7}{'median':>10}{'ratio':>7}{'waited':>8}")
    base = predicted["balanced"]["seconds"], min(seconds["balanced"]), statistics.median(seconds["balanced"])
    for layout in LAYOUTS:
        p, least, median = predicted[layout], min(seconds[layout]), statistics.median(seconds[layout])
        print(f"{layout:<11}{p['segments']:>8}{p['busiest']:>9.4f}{p['waiting']:>9.4f}"
              f"{p['seconds']:>8.3f}{p['seconds'] / base[0]:>7.3f}{least:>10.3f}{least / base[1]:>7.3f}"
              f"{median:>10.3f}{median / base[2]:>7.3f}{min(waited[layout]):>8.3f}")
    print("busiest, waiting: over the mean, all layers together and mixer by mixer; waited: seconds of a step in\n"
          "communication, on the rank where that is most, in the quietest run")


if __name__ == "__main__":
    main()
