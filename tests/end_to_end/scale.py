#!/usr/bin/env python3
"""A scaling experiment with the real mpirun: what it writes is what its runs measured.

    scale.py PROGRAM SCRATCH_FOLDER
"""
import json
import os
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from support.mpi import ENVIRONMENT, mpirun
from support.program import clean_scratch, expect, finish, make_config, run

SVG = "{http://www.w3.org/2000/svg}"
STEPS, WARMUP = 4, 2


def scale(*words, env=ENVIRONMENT):
    return run("scale", "run.cfg", "--train.global_batch", 4, "--steps", STEPS, "--warmup", WARMUP, *words, env=env)


def read(folder):
    return json.loads(Path(f"{folder}/scale.json").read_text())


def check_run(one):
    """Against the files of the run itself."""
    name, folder = one["name"], Path("out/runs") / one["name"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens = one["global_batch"] * one["seq_len"]
    seconds = [tokens / line["tokens_per_second"] for line in lines]
    expect(len(seconds) == STEPS and one["rounds"][0]["seconds"] == seconds, f"{name}: expected {seconds}, got {one['rounds']}")
    got, kept = one["measured"], seconds[WARMUP:]
    expect(abs(got["seconds_median"] - statistics.median(kept)) < 1e-12 and got["seconds_least"] == min(kept)
           and got["seconds_most"] == max(kept), f"{name}: expected the median and range of {kept}, got {got}")
    expect(got["memory_bytes"] == max(line["memory_bytes"] for line in lines), f"{name}: expected its memory, got {got}")
    expect(0.8 < one["predicted"]["memory_bytes_rank0"] / got["memory_bytes"] < 1.25, f"{name}: expected its memory, predicted, got {one}")
    if one["ranks"] > 1:
        table = json.loads((folder / "communication.json").read_text())
        expect((table["steps"], table["ranks"]) == (STEPS - WARMUP, one["ranks"]), f"{name}: expected steps without warm-up, got {table}")
        for axis, exposed in got["exposed_seconds"].items():
            sums = sum(line["exposed_seconds_per_step"] for line in table["communication"] if line["axis"] == axis)
            expect(abs(sums - exposed) < 1e-12, f"{name}: expected {sums} on {axis}, got {exposed}")
    for key, axis in [("dp", "data"), ("cp", "cp")]:
        expect((axis in got["exposed_seconds"]) == (one["mesh"][key] > 1 or (axis == "data" and one["ranks"] > 1)),
               f"{name}: expected communication on {axis} where there is any, got {got}")


def check_page(text, runs_of_a_plot):
    """Well-formed, of one piece, with a mark for each run in each plot, measured and predicted."""
    page = ElementTree.fromstring(text)
    for bad in ("http://", "https://"):
        found = text.replace("http://www.w3.org/", "").count(bad)
        expect(found == 0 and "<script" not in text, f"expected a page that fetches nothing, got {found} x {bad}")
    plots = [plot for plot in page.iter(f"{SVG}svg") if plot.find(f".//{SVG}circle") is not None]
    expect(len(plots) == 4 + 2, f"expected four plots of runs and two of the cluster, got {len(plots)}")
    for plot in plots[:4]:
        marks = [len(list(group.iter(f"{SVG}circle"))) for style in ("measured", "predicted")
                 for group in plot.iter(f"{SVG}g") if style in group.get("class")]
        expect(marks == runs_of_a_plot, f"expected {runs_of_a_plot} marks in the lines of a plot, got {marks}")


clean_scratch()
make_config(data="none.h5")  # so that it trains on random tokens
words = ["--ranks", "1,2", "--axis", "dp,cp", "--output", "out", "--mesh", "tp=4", "--cluster",
         Path(__file__).resolve().parents[2] / "configs/clusters/cpu-10gbe.json"]

done = scale(*words, "--dry-run")
expect(done.returncode == 0 and "mpirun -np 2" in done.stdout and "predicted:" in done.stdout and not Path("out").exists(),
       f"expected a dry run to print and to write nothing, got {done}")

done = scale(*words)
expect(done.returncode == 0 and not done.stderr, f"expected success, got {done}")
result = read("out")
states = {one["name"]: one["state"] for one in result["runs"]}
expect(sorted(states.values()) == ["impossible"] + 3 * ["measured"], f"expected 3 runs and one that is impossible, got {states}")
for one in result["runs"]:
    if one["state"] == "measured":
        check_run(one)
    else:
        expect("does not divide" in one["problem"], f"expected a reason, got {one}")
points = {(p["series"], p["ranks"]): p for p in result["points"]}
rate = {one["name"]: one["measured"]["tokens_per_second"] for one in result["runs"] if "measured" in one}
for series in ["dp", "cp"]:
    first, second = points[series, 1], points[series, 2]
    expect(abs(second["efficiency"] - rate[second["run"]] / rate[first["run"]] / 2) < 1e-9 and first["efficiency"] == 1,
           f"expected the efficiency of {rate}, got {first}, {second}")
expect([c["ranks"] for c in result["carried_on"]] == [2 ** i for i in range(11)], f"expected the cluster's ranks, got {result['carried_on']}")
page = Path("out/scale.html").read_text()
check_page(page, [2, 2, 1, 2, 2, 1])
expect("does not divide" in page, "expected the page to say what is not possible")
expect(not Path("out/random-tokens.h5").exists(), "expected the random tokens to be gone")
expect(not list(Path("out").rglob("step_*")), "expected no checkpoints")

# ---- what is there is kept, and what is missing is run
untouched = Path("out/runs") / points["cp", 2]["run"] / "metrics.jsonl"
before = untouched.stat().st_mtime_ns
result["runs"] = [one for one in result["runs"] if one["name"] != points["dp", 2]["run"]]
Path("out/scale.json").write_text(json.dumps(result))
shutil.rmtree(Path("out/runs") / points["dp", 2]["run"])
done = scale(*words, "--resume")
again = {one["name"]: one for one in read("out")["runs"]}
expect(done.returncode == 0 and untouched.stat().st_mtime_ns == before and done.stdout.count("round 1 of 1") == 1,
       f"expected one run, got {done}")
expect(again[points["dp", 2]["run"]]["state"] == "measured", f"expected the missing run, got {again}")

# ---- a run that dies is shown, and the others are run
Path("killer").write_text('#!/bin/sh\n[ "$2" = 1 ] || { echo "transmamba: [test] rank 1 is gone" >&2; kill -9 $$; }\nexec mpirun "$@"\n')
os.chmod("killer", 0o755)
done = scale("--ranks", "1,2", "--output", "killed", "--launcher", "./killer -np {ranks}")
runs = read("killed")["runs"]
expect(done.returncode == 1 and [one["state"] for one in runs] == ["measured", "failed"], f"expected the second to fail, got {done}, {runs}")
expect("signal 9" in runs[1]["problem"] and "rank 1 is gone" in runs[1]["problem"], f"expected its error, got {runs[1]['problem']}")
expect("rank 1 is gone" in Path("killed/scale.html").read_text(), "expected the page to say so")

# ---- under mpirun it says that it must not be
done = mpirun(1, "scale", "run.cfg", "--ranks", "1,2")
expect(done.returncode == 1 and "[scale] expected to be started without mpirun" in done.stderr, f"expected a refusal, got {done}")
finish("scaling experiment")
