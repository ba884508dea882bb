#!/usr/bin/env python3
"""Each fault of [fault] on one of four ranks: how soon it is noticed, what is said, how the run ends, what it costs.

    parallel_faults.py PROGRAM SCRATCH_FOLDER
"""
import re
import signal
import subprocess
import time
from pathlib import Path

from support.mpi import ENVIRONMENT, keys, losses, mpirun, start_ranks, succeeds, wait_after
from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data, metrics, run

STEPS, EVERY, AT, TIMEOUT, LOST, DIVERGED = 24, 4, 10, 9, 76, 77
clean_scratch()
make_data()
words = ["train", make_config(), *keys("tp=2 cp=2"), "--train.steps", STEPS, "--train.global_batch", 4,
         "--checkpoint.every", EVERY, "--checkpoint.resume", "auto", "--parallel.timeout", TIMEOUT]
succeeds(4, *words, "--checkpoint.path", "whole")
whole = losses("whole")
resumed_at = re.compile(r"resumed from \S+ after step (\d+)")


def fault(kind, rank, *more):
    path = [] if "--checkpoint.path" in more else ["--checkpoint.path", kind]
    return ["--fault.kind", kind, "--fault.rank", rank, "--fault.step", AT, *more, *path]


def goes_on(kind, *said):
    """Started again it resumes and ends as the run that was left alone; gives the steps that were lost."""
    done = mpirun(4, *words, "--checkpoint.path", kind)
    found = resumed_at.search(done.stdout)
    expect(done.returncode == 0 and found, f"{kind}, again: expected it to resume, got {done.returncode}: {done.stderr}")
    for part in said:
        expect(part in done.stderr, f"{kind}, again: expected {part!r} in {done.stderr}")
    expect(said or not done.stderr, f"{kind}, again: expected no complaint, got {done.stderr}")
    expect(losses(kind) == whole, f"{kind}: expected the losses of a run that was left alone, got {losses(kind)}")
    return found and int(found.group(1))


def ends(kind, rank, codes, seconds, *said, **variables):
    """The fault ends the run so soon after the last step before it, with these words on stderr."""
    process = start_ranks(4, *words, *fault(kind, rank), **variables)
    took, err = wait_after(process, Path(kind) / "metrics.jsonl", AT - 1)
    expect(process.returncode in codes and took < seconds,
           f"{kind}: expected exit code {codes} within {seconds} s, got {process.returncode} after {took:.1f} s: {err}")
    for part in said:
        expect(re.search(part, err), f"{kind}: expected {part!r} in {err}")
    step = goes_on(kind)
    print(f"{kind}: rank {rank} in step {AT}: ended after {took:.1f} s with {process.returncode}, went on after step {step}", flush=True)


# ---- those that end a run. Of two that wait the lower rank speaks.
# After one that is killed mpirun waits, tells the others to end, waits again and kills them: these say where they are.
ends("kill", 3, [128 + signal.SIGKILL], 10, r"process rank 3 .* exited on signal 9",
     rf"(^|\n)rank [012] has waited \S+ s in step {AT}: \w+ .*for .* of group \w+, number \d+, and is told to end\n",
     OMPI_MCA_odls_base_sigkill_timeout="2")
for kind in ["hang", "stop"]:
    ends(kind, 1, [LOST], TIMEOUT, rf"transmamba: rank \d: \[\w+\] rank \d has waited \S+ s in .* for .*parallel.timeout is {TIMEOUT}",
         r"\n  rank 1 is in no call and does not answer", rf"\n  rank 0 in step {AT}: \w+ .*for .* of group \w+, number \d+",
         rf"\n  rank 3 in step {AT}: \w+ .*for .* of group \w+, number \d+")

# Alone, as where all stand still at once, nobody waits for it.
done = run("train", make_config(), "--train.steps", STEPS, "--parallel.timeout", 1, "--train.stall_timeout", 2,
           "--fault.kind", "hang", "--fault.step", AT)
expect(done.returncode == LOST and re.fullmatch(
    rf"transmamba: rank 0: \[train\] in step {AT}: what comes before its first micro-batch has taken [23]\S* s: .*stall_timeout.*\n",
    done.stderr), f"hang alone: expected {LOST} and one line that says where, got {done.returncode}: {done.stderr!r}")

# ---- those that it survives
said = succeeds(4, *words, *fault("slow", 2, "--fault.seconds", 0.2, "--fault.steps", 3))
slow = [m for m in metrics("slow/metrics.jsonl")[0] if AT < m["step"] <= AT + 3]  # said one step later
expect(len(re.findall(rf"step 1[123]/{STEPS} .* rank 2 slower by \d+%", said)) == 3 and all(m["slowest_rank"] == 2 for m in slow),
       f"slow: expected three lines to name rank 2, got {said}")
expect(losses("slow") == whole, "slow: expected the same losses")

said = succeeds(4, *words, *fault("nan", 3))
expect(re.search(rf"step {AT}  skipped, 1 in a row: loss \S+ and gradient norm nan .*not finite: .*rank [13]: the gradient of embedding.weight", said),
       f"nan: expected step {AT} to be skipped because of rank 3, or of 1, with which it shares gradients, got {said[-3000:]}")
steps = metrics("nan/metrics.jsonl")[0]
expect(len(steps) == STEPS and [m["skipped"] for m in steps] == [int(m["step"] >= AT) for m in steps], "nan: expected one step to be skipped")

# Too many in a row: what the last fine one left is saved, at the step of the end, and is what the next start goes on with.
bad = fault("nan", 3, "--fault.steps", STEPS, "--train.max_skipped", 2, "--checkpoint.path", "diverged")
done = mpirun(4, *words, *bad)
ours = [line for line in done.stderr.splitlines() if line.startswith("transmamba: ")]
expect(done.returncode == DIVERGED and len(ours) == 1 and f"step {AT + 2}  skipped, 3 in a row" in ours[0] and
       f"saved diverged/step_{AT + 2:08}, with what step {AT - 1} left; the newest from before that: diverged/step_{8:08};" in ours[0],
       f"nan: expected {DIVERGED} and one line with the checkpoint that it saved, got {done.returncode}: {done.stderr}")
done = mpirun(4, *words, "--checkpoint.path", "diverged")
found = resumed_at.search(done.stdout)
expect(done.returncode == 0 and not done.stderr and found and int(found.group(1)) == AT + 2,
       f"nan, again: expected it to go on after step {AT + 2}, got {done.returncode}, {found}: {done.stderr}")
expect([step for step, _ in losses("diverged")[0]] == list(range(1, STEPS + 1)), "nan, again: expected a line a step")

# At once and beside training, where a save that fails is only noticed later: from step 10 on, for 4 or 13 steps.
for path, steps, how, missing in [("disk_full", 4, "false", [12]), ("disk_full_async", 13, "true", [12, 16, 20])]:
    done = mpirun(4, *words, *fault("disk_full", 2, "--fault.steps", steps, "--checkpoint.path", path), "--checkpoint.async", how)
    said = re.findall(r"warning: .*step (\d+) could not be saved.* rank 2: .*File too large.*training goes on", done.stderr)
    expect(done.returncode == 0 and list(map(int, said)) == missing,
           f"{path}: expected a warning about rank 2 for steps {missing}, got {done.returncode}: {done.stderr}")
    left = sorted(int(path.name[5:]) for path in Path(path).glob("step_*"))
    expect(left == [step for step in [4, 8, 12, 16, 20, 24] if step not in missing][-3:],
           f"{path}: expected steps {missing} to be missing, and no rest of them, got {left}")
    expect(losses(path) == whole, f"{path}: expected the same losses")

succeeds(4, *words, *fault("flipped_byte", 2, "--fault.steps", STEPS))  # the last three that are kept, too
step = mpirun(4, *words, "--checkpoint.path", "flipped_byte")
expect(step.returncode == 1 and "none of the checkpoints can be read" in step.stderr and "shard_00002.h5" in step.stderr,
       f"flipped_byte: expected all checkpoints to be refused, got {step.returncode}: {step.stderr}")
succeeds(4, *words, "--checkpoint.path", "last_byte", "--fault.kind", "flipped_byte", "--fault.rank", 2, "--fault.step", STEPS)
step = goes_on("last_byte", "step_00000024 is passed over", "shard_00002.h5", "checksum")
expect(step == 20, f"flipped_byte: expected it to go on after step 20, got {step}")

# ---- two runs in one folder
alone = ["train", "run.cfg", "--train.steps", 100000, "--train.global_batch", 4, "--log.every", 100000]
first = start_ranks(2, *alone, "--checkpoint.path", "two")
while first.poll() is None and not Path("two/metrics.jsonl").exists():
    time.sleep(0.01)
done = mpirun(2, *alone, "--checkpoint.path", "two")
expect(done.returncode == 1 and re.search(r"checkpoint.path = two: expected no other run there, but process \d+ on host \S+, since", done.stderr),
       f"two runs: expected the second to be refused, got {done.returncode}: {done.stderr}")
first.terminate(), first.communicate()
finish("faults")
