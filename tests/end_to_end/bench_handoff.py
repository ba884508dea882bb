#!/usr/bin/env python3
"""`bench handoff` under mpirun: its table, the bytes in it, and one error for a mesh that does not fit.

    bench_handoff.py PROGRAM SCRATCH_FOLDER
"""
from support.mpi import bad, succeeds, wait_for_bad
from support.program import clean_scratch, expect, finish

clean_scratch()
SHAPE = ["--model.hidden_size", 64, "--model.num_heads", 4, "--train.seq_len", 512, "--train.micro_batch", 1,
         "--train.threads", 1, "--seconds", 0.02]


def table(ranks):
    lines = succeeds(ranks, "bench", "handoff", *SHAPE).splitlines()
    rows = {line[:34].strip(): line[34:].split() for line in lines if "%" in line}
    return {name: (float(sent), float(us), float(times)) for name, (sent, us, _, times) in rows.items()}


for ranks in (2, 4):
    found = table(ranks)
    (state, us, one), (activations, other, more) = found["state handoff"], found["heads for tokens, and back"]
    n = p = 64 // 4
    mib = 4 * (n * p + 1) * 4 * (ranks - 1) / 2**20  # heads of states and decays to each other rank
    expect(abs(state - mib) < 0.006, f"{ranks} ranks: expected {mib} MiB of states, got {state}")
    mib = 512 // ranks * 4 * (2 * n + 2 * p + 1) * 4 * (ranks - 1) / ranks / 2**20  # q, k, v, dt and y of other heads
    expect(abs(activations - mib) < 0.006, f"{ranks} ranks: expected {mib} MiB of activations, got {activations}")
    expect(one == 1 and abs(more - other / us) < 0.02 * more + 0.01, f"{ranks} ranks: expected ratios of {us} us, got {found}")

bad(3, ["bench", "handoff", *SHAPE], "[bench handoff]", "multiples of the 3 ranks", "512 and 4")
bad(1, ["bench", "handoff", *SHAPE], "[bench handoff]", "at least 2, got 1")
wait_for_bad()
finish("bench handoff")
