#!/usr/bin/env python3
"""train --profile: what a profile of real ranks says is consistent, and what cannot work is said before training.

    parallel_profile.py PROGRAM SCRATCH_FOLDER [cuda]     `cuda`: on two GPUs
"""
import json
import sys
from pathlib import Path

from support.mpi import bad, keys, losses, succeeds, wait_for_bad
from support.program import clean_scratch, expect, finish, make_config, make_data, must

STEPS, PROFILED, FIRST = 8, 3, 4
DEVICE = sys.argv[3] if sys.argv[3:] else "cpu"
# Ranks, mesh, and the axes that have something to say.
MESHES = [
    (2, "tp=2", ["tp", "world"]),
    (4, "tp=2 cp=2", ["tp", "cp", "data", "world"]),
    (4, "pp=2 virtual_stages=2 dp=2", ["pp", "data", "world"]),
]
if DEVICE == "cuda":
    MESHES = [(2, "tp=2", ["tp", "world"]), (2, "pp=2 virtual_stages=2", ["pp", "world"]), (2, "dp=2", ["data", "world"])]


def lanes_of(events):
    """Spans by (rank, lane's name), in the order of their beginnings, outer ones first; times in whole ns."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes = {}
    for e in events:
        if e["ph"] == "X":
            begin = round(1000 * e["ts"])
            lanes.setdefault((e["pid"], names[e["pid"], e["tid"]]), []).append((begin, begin + round(1000 * e["dur"]), e))
    for spans in lanes.values():
        spans.sort(key=lambda s: (s[0], -s[1]))
    return lanes


def check_nested(name, spans):
    """Spans of one lane lie beside or within each other."""
    open_until = []
    for begin, end, event in spans:
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        expect(begin <= end and (not open_until or end <= open_until[-1]), f"{name}: {event} overlaps what ends at {open_until[-1:]}")
        open_until.append(end)


def check_report(name, report, ranks):
    """profile.json alone."""
    expect((report["ranks"], report["first_step"], report["steps"]) == (ranks, FIRST, PROFILED), f"{name}: got {report}")
    step, compute, exposed, rest = (report[f"{part}seconds_per_step"] for part in ["", "compute_", "exposed_", "rest_"])
    expect(min(compute, exposed + 1e-12, rest) > 0 and abs(compute + exposed + rest - step) < 1e-4 * step,
           f"{name}: expected a step's parts to add up, got {step} = {compute} + {exposed} + {rest}")
    own = sum(r["own_seconds_per_step"] for r in report["regions"] if not r["on_host"])
    expect(abs(own - compute) < 1e-4 * step, f"{name}: expected regions' own time to be {compute}, got {own}")
    families = {r["family"] for r in report["regions"]}
    wanted = {"forward", "backward", "mixer forward", "mixer backward", "mlp forward", "mlp backward", "project", "convolve", "attend",
              "convert and scan", "gate and norm", "out", "embedding", "head", "loss", "optimizer", "read data"}
    expect(wanted <= families, f"{name}: expected regions {sorted(wanted - families)} too, got {sorted(families)}")
    for c in report["communication"]:
        n = ranks if c["axis"] == "world" else 2
        factor = {"all_reduce": 2 * (n - 1) / n, "all_gather": (n - 1) / n, "reduce_scatter": (n - 1) / n}.get(c["kind"], 1)
        expect(abs(c["bus_bytes_per_second"] - factor * c["algorithm_bytes_per_second"]) <= 1e-9 * c["bus_bytes_per_second"]
               and c["bus_bytes_per_second"] > 0 and c["link_bytes_per_second"] > 0, f"{name}: expected bandwidths by {factor}, got {c}")
        expect(0 <= c["exposed_seconds_per_step"] <= c["longest_exposed_seconds_per_step"] * (1 + 1e-9)
               and 0 <= c["transfer_seconds_per_step"], f"{name}: expected times, got {c}")
        if c["kind"] not in ("send", "receive"):
            expect(c["transfer_seconds_per_step"] <= c["seconds_per_step"] * (1 + 1e-6), f"{name}: expected transfers within calls, got {c}")
    # What regions waited for is what calls waited, but for the values that the last step leaves for the next one to wait for.
    waits = sum(c["exposed_seconds_per_step"] for c in report["communication"])
    within = sum(c["exposed_seconds_per_step"] for c in report["communication"] if c["purpose"] != "parameters")
    expect(within * (1 - 1e-3) <= exposed <= waits * (1 + 1e-3) and (exposed > 0) == (ranks > 1),
           f"{name}: expected waits of {within} to {waits}, got {exposed}")
    # Ranks of one host have one clock: what was found is the measurement's error.
    for clock in report["clocks"]:
        expect(abs(clock["offset_seconds"]) <= clock["round_trip_seconds"] / 2 + 1e-9, f"{name}: expected one clock, got {clock}")


def check_trace(name, trace, report, counted, ranks, axes):
    lanes = lanes_of(trace["traceEvents"])
    expect({rank for rank, _ in lanes} == set(range(ranks)), f"{name}: expected lanes of {ranks} ranks, got {sorted(lanes)}")
    calls, steps = {}, {}
    for (rank, lane), spans in lanes.items():
        check_nested(f"{name} rank {rank} {lane}", spans)
        for begin, end, event in spans:
            if event["cat"] == "communication":
                key, args = event["name"], event["args"]
                count = calls.setdefault(key, [0, 0])
                count[0] += 1
                count[1] += args["bytes_sent"]
            elif event["name"].startswith("step "):
                steps.setdefault(event["name"], []).append((begin, end))
    expect(sorted(steps) == [f"step {FIRST + i}" for i in range(PROFILED)] and all(len(s) == ranks for s in steps.values()),
           f"{name}: expected {PROFILED} steps on {ranks} ranks, got {steps}")
    # No rank ends the sum of all losses before all ranks have begun it. Each clock is off by at most half a round trip, and on a
    # GPU by what ties its clock to the host's, some microseconds.
    slack = 1e9 * max(clock["round_trip_seconds"] for clock in report["clocks"]) + 1 + (100_000 if DEVICE == "cuda" else 0)
    sums = {rank: [] for rank in range(ranks)}
    for (rank, _), spans in lanes.items():
        sums[rank] += [span for span in spans if span[2]["name"] == "world all_reduce: loss and gradient norm"]
    for i, meeting in enumerate(zip(*(sorted(spans, key=lambda s: s[0]) for spans in sums.values()))):
        begins, ends = [s[0] for s in meeting], [s[1] for s in meeting]
        expect(max(begins) <= min(ends) + slack, f"{name}: sum {i}: expected one clock to {slack} ns, got {begins} and {ends}")
    expect(all(len(spans) == PROFILED for spans in sums.values()), f"{name}: expected {PROFILED} sums a rank, got {sums}")
    total = {}
    for key, (count, sent) in calls.items():
        axis, rest = key.split(" ", 1)
        entry = total.setdefault((axis, rest.split(": ", 1)[1]), [0, 0])
        entry[0] += count
        entry[1] += sent
    expect({axis for axis, _ in total} == set(axes), f"{name}: expected communication on {axes}, got {sorted(total)}")
    # Against what the recorder counted in the run's other steps, which say the same to each other.
    recorded = {(c["axis"], c["purpose"]): (c["calls_per_step"], c["bytes_per_step"]) for c in counted["communication"]}
    expect(recorded.keys() == total.keys(), f"{name}: expected {sorted(recorded)}, got {sorted(total)}")
    for key, (count, sent) in total.items():
        share = ranks * PROFILED
        expect(abs(count / share - recorded[key][0]) < 1e-9 and abs(sent / share - recorded[key][1]) < 1e-6 * sent,
               f"{name}: {key}: expected {recorded[key]} a rank and step, got {count / share} and {sent / share}")
    reported = {}
    for c in report["communication"]:
        key = f"{c['axis']} {c['kind']}: {c['purpose']}"
        reported[key] = (c["calls_per_step"], c["bytes_per_step"])
    for key, (count, sent) in calls.items():
        expect(abs(reported[key][0] * ranks * PROFILED - count) < 1e-6 and abs(reported[key][1] * ranks * PROFILED - sent) < 1,
               f"{name}: {key}: expected {reported.get(key)} as in the trace, got {count} and {sent}")


clean_scratch()
make_data()
config = make_config()
words = ["train", config, "--train.device", DEVICE, "--train.global_batch", 4, "--train.micro_batch", 1, "--model.transpoints", "24,T", "--train.steps"]

# ---- one rank
plain = must(*words, STEPS, "--checkpoint.path", "plain").stdout
output = must(*words, STEPS, "--checkpoint.path", "alone", "--profile", PROFILED).stdout
expect(losses("alone") == losses("plain"), "expected a profile to change no loss")
expect(f"profiling steps {FIRST} to {FIRST + PROFILED - 1}" in output and "\nregion " in output and "axis " not in output,
       f"expected a table of regions, got {output}")
expect(output.index(f"profile of steps {FIRST} to") > output.index(f"step {FIRST + PROFILED}/{STEPS}"),
       "expected the profile when its steps are done")
expect(f"step {STEPS}/{STEPS}" in output, "expected the run to go on")
alone = json.loads(Path("alone/profile.json").read_text())
check_report("alone", alone, 1)
expect(alone["communication"] == [] and alone["exposed_seconds_per_step"] == 0, f"expected nobody to talk to, got {alone}")
check_nested("alone", lanes_of(json.loads(Path("alone/trace.json").read_text())["traceEvents"])[0, "compute"])
expect("profil" not in plain.replace("\nprofile = 0\n", "\n").replace("\nprofile_path =", "\n"),
       "expected silence without --profile")

# ---- several; the last steps of a run, in which values are gathered that no next step waits for
for ranks, mesh, axes in MESHES:
    folder = mesh.replace(" ", ".")
    steps = STEPS if mesh != MESHES[-1][1] else FIRST - 1 + PROFILED
    output = succeeds(ranks, *words, steps, *keys(mesh), "--checkpoint.path", folder, "--log.profile_path", f"{folder}/profile",
                      f"--profile={PROFILED}")
    report = json.loads(Path(f"{folder}/profile/profile.json").read_text())
    counted = json.loads(Path(f"{folder}/communication.json").read_text())
    expect(counted["steps"] == steps - PROFILED, f"{mesh}: expected the other steps in communication.json, got {counted['steps']}")
    check_report(mesh, report, ranks)
    check_trace(mesh, json.loads(Path(f"{folder}/profile/trace.json").read_text()), report, counted, ranks, axes)
    expect(not list(Path(folder, "profile").glob("*.part")), f"{mesh}: expected no torn file")
    for c in report["communication"]:
        row = f"{c['axis']:<6} {c['purpose']:<31} {c['kind']:<14} "
        expect(output.count(row) == 1, f"{mesh}: expected one row '{row}' in {output}")

# ---- a run that is resumed near its end is not profiled, and not stopped
more = must(*words, STEPS + 4, "--checkpoint.path", "plain", "--checkpoint.resume", "auto", "--profile", PROFILED)
expect("no profile: of the 4 steps that are left 3 would warm up" in more.stdout, f"expected to be told, got {more.stdout}")

# ---- mistakes, before the first step
Path("file").write_text("")
many = [*words, STEPS, *keys("tp=2")]
bad(2, [*many, "--profile", STEPS - 2], f"log.profile = {STEPS - 2}", "first 3 steps", f"train.steps = {STEPS}", "at most 5")
bad(2, [*many, "--profile", "many"], "log.profile", "many", "integer")
bad(2, [*many, "--profile", -1], "log.profile", "-1")
bad(2, [*many, "--profile", 2, "--log.profile_path", "file/there"], "file/there/profile.json", "cannot write", "Not a directory")
wait_for_bad()
finish("profiles")
