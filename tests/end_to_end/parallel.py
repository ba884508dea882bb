#!/usr/bin/env python3
"""Ranks under the real mpirun train as one rank does, and say what they told each other.

    parallel.py PROGRAM SCRATCH_FOLDER
"""
import json
import re
from pathlib import Path

from support.mpi import expect_equal, keys, losses, succeeds
from support.program import clean_scratch, expect, finish, make_config, make_data, must

TP = {"embedding", "column linear: tokens", "column linear: token gradients", "row linear: sums",
      "row linear: token gradients", "norm gradients", "cross entropy: maximum", "cross entropy: sums"}
CP = {"conv halo", "conv halo gradients", "state handoff", "state handoff gradients", "prefix keys", "prefix values",
      "prefix key gradients", "prefix value gradients"}
PP = {"stage output", "stage output gradients"}
DATA = {"gradients", "parameters"}
WORLD = {"loss and gradient norm"}
# Ranks, mesh, and what each axis is used for at least; no other axis is.
MESHES = [
    (4, "tp=2 cp=2", {"tp": TP, "cp": CP, "data": DATA, "world": WORLD}),
    (4, "pp=2 virtual_stages=2 dp=2", {"pp": PP, "data": DATA, "world": WORLD}),
    (8, "tp=2 cp=2 pp=2", {"tp": TP, "cp": CP, "pp": PP, "data": DATA, "world": WORLD}),
]
STEPS = 4


def speech(output):
    """What a run says that does not depend on its ranks: lines of the configuration, and of which step."""
    return re.findall(r"^(?:\[\w+\]|\w+ =|step +\d+/\d+|step +\d+  (?:validation loss|saved))", output, re.MULTILINE)


def check_communication(mesh, ranks, purposes, output, report):
    """Table and JSON of one run."""
    lines, table = report["communication"], output[output.find("\naxis "):]
    expect((report["ranks"], report["steps"]) == (ranks, STEPS) and report["seconds_per_step"] > 0,
           f"{mesh}: expected {ranks} ranks and {STEPS} steps, got {report}")
    said = {axis: {line["purpose"] for line in lines if line["axis"] == axis} for axis in {line["axis"] for line in lines}}
    expect(said.keys() == purposes.keys(), f"{mesh}: expected communication on {sorted(purposes)}, got {sorted(said)}")
    for axis, names in purposes.items():
        expect(names <= said.get(axis, set()), f"{mesh}: expected {axis} to have {sorted(names)}, got {sorted(said.get(axis, []))}")
    for line in lines:
        time, exposed, hidden = (line[f"{kind}seconds_per_step"] for kind in ["", "exposed_", "hidden_"])
        expect(line["calls_per_step"] > 0 and line["bytes_per_step"] > 0, f"{mesh}: expected calls and bytes, got {line}")
        expect(min(time, exposed, hidden) >= 0 and abs(exposed + hidden - time) <= 1e-9 * time,
               f"{mesh}: expected exposed + hidden = time, got {line}")
        expect(line["longest_exposed_seconds_per_step"] >= exposed * (1 - 1e-9), f"{mesh}: expected a longest rank, got {line}")
        row = f"{line['axis']:<7} {line['purpose']:<34} "
        expect(len([text for text in table.splitlines() if text.startswith(row)]) == 1, f"{mesh}: expected one row '{row}' in {table}")
    exposed = sum(line["exposed_seconds_per_step"] for line in lines)
    expect(exposed <= report["seconds_per_step"], f"{mesh}: expected to wait less than a step takes, got {exposed} of {report}")
    expect(output.count("\naxis ") == 1 and output.count("\nall  ") == 1, f"{mesh}: expected one table, got {table}")


clean_scratch()
make_data()
config = make_config()
# Prefixes are long enough to lie on both context ranks.
# 4 micro-batches a step; 3 a validation, so that data ranks get different numbers of them.
words = ["train", config, "--train.dtype", "float64", "--train.global_batch", 4, "--train.micro_batch", 1, "--model.transpoints", "24,T",
         "--train.steps", STEPS, "--train.validate_every", 3, "--train.validate_sequences", 3]
alone = must(*words, "--checkpoint.path", "alone").stdout
expect("\naxis " not in alone and not Path("alone/communication.json").exists(), "expected one rank to report no communication")
for ranks, mesh, purposes in MESHES:
    folder = mesh.replace(" ", ".")
    output = succeeds(ranks, *words, *keys(mesh), "--checkpoint.path", folder)
    expect_equal(mesh, losses(folder), losses("alone"))
    expect(speech(output) == speech(alone) != [], f"{mesh}: expected one rank to speak, as alone, got {output}")
    check_communication(mesh, ranks, purposes, output, json.loads(Path(f"{folder}/communication.json").read_text()))
finish("ranks under mpirun")
