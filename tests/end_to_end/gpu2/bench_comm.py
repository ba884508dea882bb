#!/usr/bin/env python3
"""`bench comm` on two GPUs: results right in float32 and bfloat16, and our calls about as fast as NCCL's own.

    bench_comm.py PROGRAM SCRATCH_FOLDER
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import succeeds
from support.program import clean_scratch, expect, finish

LEAST = 90  # per cent of NCCL's own bandwidth, at 64 MiB
clean_scratch()
for dtype in ("float32", "bfloat16"):
    print(succeeds(2, "bench", "comm", "--device", "cuda", "--dtype", dtype, "--min", "64K", "--max", "64M", "--factor", 32,
                   "--json", "calls.json", "--output", "machine.json", timeout=200))
    calls = json.loads(Path("calls.json").read_text())
    expect(calls["library"] == "NCCL", f"expected NCCL, got {calls['library']}")
    large = [call for call in calls["calls"] if call["bytes"] == 64 << 20]
    expect(len(large) == 6, f"expected 6 calls of 64 MiB, got {large}")
    for call in large:
        expect(call["percent_of_bare"] >= LEAST, f"{dtype} {call['call']}: expected at least {LEAST} %, got {call}")
finish("bench comm on two GPUs")
