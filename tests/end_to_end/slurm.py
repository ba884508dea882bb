#!/usr/bin/env python3
"""A real SLURM trains on 4 ranks of 2 nodes by `transmamba launch`: warned of its time limit a job saves, goes back to
the queue, and ends with the bits of one that was left alone; a crash does the same, a mistake does not.

    slurm.py PROGRAM SCRATCH_FOLDER

Takes 45 s, most of which it waits: SLURM looks at time limits each half minute.
"""
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from support import sandbox, slurm

sandbox.enter(*slurm.PROGRAMS)
from support.mpi import ENVIRONMENT, losses  # noqa: E402  (in the sandbox)
from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data  # noqa: E402

clean_scratch()
make_data()
MESH = "[parallel]\ntp = 2\ncp = 2\n[checkpoint]\nevery = 50\n"
STEPS, PLAIN = 100, make_config(MESH, "plain.cfg")
began = slurm.start()
env = {**ENVIRONMENT, "SLURM_CONF": str(slurm.FOLDER / "slurm.conf")}
jobs = {}


def submit(name, config, *words):
    """`transmamba launch` of a job whose checkpoints, and whose output, are called that."""
    words = [config, "--nodes", 2, "--checkpoint.path", name, "--train.steps", STEPS, *words]
    log = open(f"{name}.out", "w")
    jobs[name] = subprocess.Popen([PROGRAM, "launch", *map(str, words)], env=env, stdout=log, stderr=log)


def said(name):
    return Path(f"{name}.out").read_text()


def wait_until(name, what, seconds=90):
    until = time.time() + seconds
    while what not in said(name) and jobs[name].poll() is None:
        if time.time() > until:
            queue = subprocess.run(["squeue", "-a"], capture_output=True, text=True).stdout
            sys.exit(f"FAILED: {name}: expected {what!r} within {seconds} s, got {said(name)} {queue}")
        time.sleep(0.1)


def ends(name, code, *parts):
    """The command ends with the job, and with its exit code; each part of what it says comes after the one before."""
    try:
        got = jobs[name].wait(timeout=90)
    except subprocess.TimeoutExpired:
        got = "nothing after 90 s"
    found = re.search(".*?".join(map(re.escape, parts)), said(name), re.DOTALL)
    expect(got == code and found, f"{name}: expected exit code {code} and {parts}, got {got} and {said(name)[-3000:]}")


# ---- one that is left alone
submit("whole", PLAIN, "--ranks-per-node", 2)
ends("whole", 0, "by srun --mpi=pmix", "PENDING", "launch: job 1, start 1, on n[1-2]", "4 ranks: tp 2 x cp 2", f"step {STEPS}/{STEPS}",
     "launch: done after", "COMPLETED")

# ---- one that loses a rank in each start, and one that cannot start, meanwhile
submit("crash", PLAIN, "--ranks-per-node", 1, "--parallel.cp", 1, "--checkpoint.every", 5, "--checkpoint.async", "false",
       "--fault.kind", "kill", "--fault.rank", 1, "--fault.step", 8, "--train.max_restarts", 1)
submit("mistake", PLAIN, "--ranks-per-node", 1, "--parallel.cp", 1, "--data.path", "absent.h5", "--train.max_restarts", 1)

# ---- ranks that cannot find each other: srun without PMI
done = subprocess.run(["srun", "-n", "2", "--mpi=none", PROGRAM, "train", PLAIN, "--checkpoint.path", "alone"], capture_output=True,
                      text=True, timeout=60)
ours = [line for line in done.stderr.splitlines() if line.startswith("transmamba: ")]
expect(done.returncode == 1 and len(ours) == 1 and "[srun] 2 tasks on n" in ours[0] and "srun --mpi=pmix" in ours[0] and not done.stdout,
       f"srun --mpi=none: expected one line and no run, got {done}")

# ---- one whose time is over too soon: half a minute after the controller's start. Until then each step is slow
early = make_config(f"{MESH}[fault]\nkind = slow\nsteps = {STEPS}\nseconds = 0.4\n", "early.cfg")
wait = began + 18 - time.time()
time.sleep(max(wait, 0))
submit("early", early, "--ranks-per-node", 2, "--time", 1, "--sbatch", "--signal=USR1@60")
wait_until("early", "restart 1")
make_config(MESH, "early.cfg")
ends("early", 0, "start 1, on n[1-2]", "stopped by a signal after step", "launch: saved and stopped after", "back to the queue",
     "PENDING, restart 1", "start 2, on n[1-2]", "resumed from", f"step {STEPS}/{STEPS}", "launch: done after", "COMPLETED")
saved = re.search(r"stopped by a signal after step (\d+)", said("early"))
resumed = re.search(r"resumed from \S+ after step (\d+)", said("early"))
expect(saved and resumed and saved[1] == resumed[1] and 1 <= int(saved[1]) < STEPS,
       f"expected it to go on from the step that it had saved, got {saved} and {resumed}")
expect(losses("early") == losses("whole"), "expected the losses of the run that was left alone, to the bit")

ends("crash", 137, "start 1, on n[1-2]", "launch: crash 1, of at most 1: exit code 137 after", "PENDING, restart 1", "start 2, on n[1-2]",
     "resumed from", "after step 5", "train.max_restarts = 1: the end", "FAILED")
took = re.search(r"exit code 137 after (\d+) s, and train.max_restarts", said("crash"))
expect(took and int(took[1]) < 20, f"expected a lost rank to take the other with it within the 10 s of srun's --wait, got {took}")
ends("mistake", 1, "absent.h5", "launch: exit code 1 before the first step: it would fail again", "FAILED")
expect("start 2" not in said("mistake"), f"expected a mistake not to be repeated, got {said('mistake')}")

# ---- a host whose munge is gone
slurm.stop_munge()
done = subprocess.run([PROGRAM, "launch", PLAIN, "--nodes", "2", "--ranks-per-node", "2", "--checkpoint.path", "no_munge"], env=env,
                      capture_output=True, text=True, timeout=60)
ours = [line for line in done.stderr.splitlines() if line.startswith("transmamba: ")]
expect(done.returncode == 1 and len(ours) == 1 and f"sbatch on {socket.gethostname()}: " in ours[0] and "start munged" in ours[0],
       f"without munge: expected one line that says so, got {done}")
print(f"after {time.time() - began:.0f} s; stopped after step {saved and saved[1]}")
finish("SLURM")
