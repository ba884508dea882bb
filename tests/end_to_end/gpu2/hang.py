#!/usr/bin/env python3
"""One of two ranks on GPUs hangs: the other says within parallel.timeout which, and in which step and call each is.

    hang.py PROGRAM SCRATCH_FOLDER [cpu]     `cpu` tries the script where there is no GPU

Takes about 15 s a mesh, most of which a rank waits.
"""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.mpi import keys, losses, start_ranks, succeeds, wait_after
from support.program import clean_scratch, expect, finish, make_config, make_data

DEVICE = "cpu" if sys.argv[3:] == ["cpu"] else "cuda"
STEPS, AT, TIMEOUT, LOST = 12, 6, 10, 76
clean_scratch()
make_data()
words = ["train", make_config(), "--train.device", DEVICE, "--train.steps", STEPS, "--train.global_batch", 4, "--checkpoint.every", 2,
         "--checkpoint.resume", "auto", "--parallel.timeout", TIMEOUT]

for kind, mesh in [("hang", "tp=2"), ("hang", "dp=2"), ("hang", "cp=2"), ("stop", "pp=2")]:
    words_of_mesh = [*words, *keys(mesh), "--checkpoint.path", mesh]
    process = start_ranks(2, *words_of_mesh, "--fault.kind", kind, "--fault.rank", 1, "--fault.step", AT)
    took, err = wait_after(process, Path(mesh) / "metrics.jsonl", AT - 1)
    name = f"{kind}, {mesh}"
    # Up to 3 s after it gave up: 2 for NCCL to end its calls, 1 for other ranks to fail too.
    expect(process.returncode == LOST and TIMEOUT / 2 < took < TIMEOUT + 1,
           f"{name}: expected exit code {LOST} within {TIMEOUT} s, got {process.returncode} after {took:.1f} s: {err}")
    said = re.search(r"transmamba: rank 0: \[\w.*\] rank 0 has waited (\S+) s in \w+ .*for .* at \S+, and parallel.timeout is "
                     rf"{TIMEOUT}; .*\n  rank 1 is in no call and does not answer.*\n  rank 0 in step {AT}: \w+ .*for .* at "
                     r"\S+ of group \w.*, number \d+", err)
    expect(said and float(said[1]) < TIMEOUT, f"{name}: expected where both ranks are, got {err}")
    expect(len([line for line in err.splitlines() if line.startswith("transmamba: ")]) == 1, f"{name}: expected one message, got {err}")
    if DEVICE == "cuda":
        expect("its GPU has not ended it" in err and " on its GPU" in err, f"{name}: expected a call on the GPU, got {err}")
    print(f"{name}: said after {said and said[1]} s, ended after {took:.1f} s with {process.returncode}", flush=True)

out = succeeds(2, *words_of_mesh)
expect("resumed from" in out and [step for step, loss in losses(mesh)[0]] == list(range(1, STEPS + 1)),
       f"expected the same start to go on from its checkpoint, got {out}")
finish(f"ranks that hang, on {DEVICE}")
