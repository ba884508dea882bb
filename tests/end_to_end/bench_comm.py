#!/usr/bin/env python3
"""`bench comm` under mpirun: its table, its JSON, a machine file that a plan reads, and one error for bad input.

    bench_comm.py PROGRAM SCRATCH_FOLDER
"""
import json
from pathlib import Path

from support.mpi import bad, keys, succeeds, wait_for_bad
from support.program import clean_scratch, expect, finish, make_config, must

CALLS = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "exchange", "send"]
BUS = {"all_reduce": lambda n: 2 * (n - 1) / n, "broadcast": lambda n: 1, "send": lambda n: 1}
SHORT = ["--seconds", 0.01, "--min", "4K", "--max", "64K"]

clean_scratch()
config = make_config()


def rows(table):
    """(axis, ranks, call, bytes) -> the numbers after them."""
    words = [line.split() for line in table.splitlines()]
    return {(w[0], int(w[1]), w[2], int(w[3])): list(map(float, w[4:])) for w in words if len(w) == 10 and w[2] in CALLS}


def check_sweep(ranks, mesh, axes):
    found = rows(succeeds(ranks, "bench", "comm", *SHORT, *keys(mesh), "--json", "calls.json", "--output", "machine.json"))
    wanted = {(axis, n, call, size) for axis, n in axes for call in CALLS for size in (4096, 16384, 65536)}
    expect(set(found) == wanted, f"{mesh}: expected the rows {sorted(wanted)}, got {sorted(found)}")
    for (axis, n, call, size), (us, algorithm, bus, bare_us, bare_bus, percent) in found.items():
        rate, factor = size / us * 1e-3, BUS.get(call, lambda n: (n - 1) / n)(n)
        same = [(algorithm, rate), (bus, factor * rate), (bare_bus, factor * size / bare_us * 1e-3), (percent, 100 * bare_us / us)]
        expect(all(abs(a - b) <= 0.02 * b + 0.06 for a, b in same), f"{axis} {call} {size}: the numbers of {same} differ")
    calls = json.loads(Path("calls.json").read_text())
    expect(calls["library"] == "MPI" and len(calls["calls"]) == len(wanted), f"{mesh}: expected all calls, got {calls}")
    for call in calls["calls"]:
        us = found[call["axis"], call["ranks"], call["call"], call["bytes"]][0]
        expect(abs(1e6 * call["seconds"] - us) < 0.01, f"{mesh}: expected {us} us in JSON too, got {call}")
    return calls["calls"]


def links(which):
    return json.loads(Path("machine.json").read_text())[which]


# A new file, of all ranks as one axis.
calls = check_sweep(2, "", [("world", 2)])
machine = json.loads(Path("machine.json").read_text())
expect(machine["name"] != "built-in CPU" and "within a host: 2 ranks" in machine["measured_on"], f"got {machine}")
gather = next(c for c in calls if c["call"] == "all_gather" and c["bytes"] == 65536)
expect([32768, gather["seconds"]] in links("within_host")["all_gather"]["curve"],
       f"expected what was measured, {gather}, in {links('within_host')}")

# One that is there keeps all else; the axis of the most ranks counts.
machine["name"], machine["gemm"]["flop"], machine["between_hosts"]["ranks"] = "ours", 1e-9, 7
Path("machine.json").write_text(json.dumps(machine))
check_sweep(4, "tp=2 dp=2", [("tp", 2), ("dp", 2)])
again = json.loads(Path("machine.json").read_text())
expect(again["name"] == "ours" and again["gemm"] == machine["gemm"] and again["between_hosts"]["ranks"] == 7, f"got {again}")
expect(again["measured_on"] == machine["measured_on"], f"expected one note about links, got {again['measured_on']}")
check_sweep(4, "cp=2 dp=2", [("cp", 2), ("data", 4)])
expect(links("within_host")["ranks"] == 4, f"expected links of 4 ranks, got {links('within_host')}")

# A plan of what was measured: ten times slower links, and the step takes longer.
plan = ["plan", config, "--ranks", 2, "--parallel.tp", 2, "--model.vocab_size", 256, "--machine"]
expect("within a host: 4 ranks" in must(*plan, "machine.json").stdout, "expected the plan to say which links it knows")


def tp_part(factor):
    slow = json.loads(Path("machine.json").read_text())
    for call in ("all_gather", "reduce_scatter"):
        slow["within_host"][call] = {"latency": 0, "byte": 0, "steps": 1, "curve": [[1, factor], [1e9, 2 * factor]]}
    Path("slow.json").write_text(json.dumps(slow))
    return next(line.split() for line in must(*plan, "slow.json").stdout.splitlines() if line.split()[:1] == ["tp"])


expect(tp_part(1e-9) != tp_part(1), f"expected the curve to count, got {tp_part(1)}")

# Mistakes.
bad(1, ["bench", "comm"], "[bench comm]", "at least 2, got 1", "mpirun")
bad(2, ["bench", "comm", "--parallel.tp", 3], "does not divide the 2 ranks")
bad(3, ["bench", "comm", "--min", "64K"], "--min: expected a multiple of 12", "65536")
bad(2, ["bench", "comm", "--min", "2M", "--max", "1M"], "--max: expected at least the 2097152 bytes", "1048576")
bad(2, ["bench", "comm", "--max", "999999G"], "--max:", "expected at most")
bad(2, ["bench", "comm", "--factor", 1], "--factor", '"1"')
bad(2, ["bench", "comm", "--min", "lots"], "--min", '"lots"', "64K")
bad(2, ["bench", "comm", "--seconds"], "--seconds needs a value")
bad(2, ["bench", "comm", "--dtype", "bfloat16"], "train.dtype", "bfloat16")
bad(2, ["bench", "comm", "--speed", "high"], "unknown key speed")
bad(2, ["bench", "comm", *SHORT, "--json", "/nowhere/c.json"], "--json: cannot write /nowhere/c.json")
Path("broken.json").write_text("{")
bad(2, ["bench", "comm", *SHORT, "--output", "broken.json"], "broken.json", "JSON")
wait_for_bad()
finish("bench comm")
