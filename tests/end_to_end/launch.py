#!/usr/bin/env python3
"""`transmamba launch` on one host: it starts ranks again after a crash and not after a mistake, and says what it
would run; and one line says what is missing where there is no mpirun, SLURM or munge.

    launch.py PROGRAM SCRATCH_FOLDER
"""
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from support.mpi import ENVIRONMENT, losses, ranks_of_launch
from support.program import PROGRAM, clean_scratch, expect, finish, make_config, make_data, run

STEPS = 150
clean_scratch()
make_data()
make_config("[parallel]\ntp = 2\n")


def launch(*words, env=ENVIRONMENT, **how):
    return run("launch", "run.cfg", *words, env=env, **how)


def says(name, done, code, *parts):
    text = done.stdout + done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith(("transmamba: ", "launch: "))]
    expect(done.returncode == code and all(part in text for part in parts) and (code == 0 or len(ours) == 1),
           f"{name}: expected exit code {code}, one line and {parts}, got {done}")


# ---- a rank is killed, twice: the run is restarted, twice, to the same end
long = ["--train.steps", STEPS, "--checkpoint.every", 10, "--model.hidden_size", 32]
says("without a crash", launch("--local", *long, "--checkpoint.path", "whole"), 0, f"step {STEPS}/{STEPS}")
process = subprocess.Popen([PROGRAM, "launch", "run.cfg", "--local", *map(str, long), "--checkpoint.path", "killed",
                            "--train.max_restarts", "3"], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
for kill in range(2):
    for line in iter(process.stdout.readline, ""):
        if re.match(rf"step +{20 + 40 * kill}/", line):
            break
    ranks = ranks_of_launch(process)
    expect(len(ranks) == 2, f"expected two ranks, got {ranks}")
    os.kill(ranks[kill], signal.SIGKILL)
out, err = process.communicate(timeout=60)
ours = [line for line in err.splitlines() if line.startswith("launch: ")]
expect(process.returncode == 0 and f"step {STEPS}/{STEPS}" in out, f"expected the run to reach its end, got {process.returncode}: {err}")
said = [re.fullmatch(rf"launch: exit code 137 after \d+\.\d s, as rank {i} on host \S+ was killed by signal 9 \(Killed\) after step (\d+): "
                     rf"restart {i + 1} of at most 3, .*", line) for i, line in enumerate(ours)]
expect(len(ours) == 2 and all(said) and all(20 + 40 * i <= int(line.group(1)) < STEPS for i, line in enumerate(said)),
       f"expected two restarts to be announced, with rank and step, got {ours}")
expect(losses("killed") == losses("whole"), "expected the same losses, to the bit, as without the crashes")

# ---- Ctrl-C: all ranks save and end, and none is started again; a second one ends them at once, here in a step of a minute
for name, code, fault in [("once", 75, []), ("twice", 1, ["--fault.kind", "slow", "--fault.step", 20, "--fault.seconds", 60])]:
    words = ["--train.steps", 10000, "--model.hidden_size", 32, "--checkpoint.path", name, "--train.max_restarts", 3, *fault]
    process = subprocess.Popen([PROGRAM, "launch", "run.cfg", "--local", *map(str, words)], env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in iter(process.stdout.readline, ""):
        if re.match(r"step +19/", line):
            break
    ranks = ranks_of_launch(process)
    process.send_signal(signal.SIGINT)
    if name == "twice":
        time.sleep(1)
        process.send_signal(signal.SIGINT)
    start = time.time()
    out, err = process.communicate(timeout=60)
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.time() < start + 10:
        time.sleep(0.01)
    took = time.time() - start
    expect(len(ranks) == 2 and process.returncode == code and took < 5 and "launch: " not in err,
           f"{name}: expected two ranks to end soon, with {code} and no restart, got {process.returncode} after {took:.1f} s: {err}")
    expect(("stopped by a signal after step" in out) == (name == "once"), f"{name}: expected only the first signal to save, got {out[-500:]}")
    print(f"Ctrl-C {name}: {process.returncode} after {took:.1f} s", flush=True)

# ---- mistakes are not repeated, and have one line
start = time.time()
restarts = ["--local", "--checkpoint.path", "wrong", "--train.max_restarts", 5]
done = launch(*restarts, "--train.steps", 9, "--data.path", "absent.h5")
expect(done.returncode == 1 and done.stderr.count("transmamba: ") == 1 and "absent.h5" in done.stderr
       and "not restarted" in done.stderr, f"expected one error and no restart, got {done}")
says("too few ranks", launch("--local", "-n", 3), 1, "[parallel] parallel.tp x cp x pp = 2 x 1 x 1 = 2 does not divide the 3 ranks")
says("under mpirun", run("launch", "run.cfg", "--local", prefix=["mpirun", "-np", "1"], env=ENVIRONMENT), 1, "without mpirun or srun")
expect(time.time() - start < 15, f"expected mistakes to be found soon, not after {time.time() - start:.1f} s")

# ---- what it would run
done = launch("--hosts", "a:1,b:1", "--dry-run")
expect(done.returncode == 0 and re.match(rf"mpirun -np 2 --host a:1,b:1 --wdir \S+ .* {PROGRAM} train \S+/run.cfg\n$", done.stdout),
       f"expected mpirun's words, got {done}")
Path("bin").mkdir()


def program(name, script):
    Path(f"bin/{name}").write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(f"bin/{name}", 0o755)


# ---- what is missing: SLURM's programs are scripts here, or not there
only = {**ENVIRONMENT, "PATH": f"{Path('bin').resolve()}:/nowhere"}
job = ["--nodes", 2, "--ranks-per-node", 1, "--checkpoint.path", "job"]
says("no mpirun", launch("--local", env=only), 1, "there is no mpirun on ", "install Open MPI")
says("no srun", launch(*job, env=only), 1, "there is no srun on ", "use --local or --hosts")
program("srun", "echo 'MPI plugin types are... none pmi2' >&2")
program("ompi_info", "echo 'mca:pmix:ext3x:version:x'")
says("no PMI in common", launch(*job, env=only), 1, "expected pmix among", "none pmi2")
program("srun", "echo 'MPI plugin types are... none pmi2 pmix' >&2")
says("no sbatch", launch(*job, env=only), 1, "there is no sbatch on ")
done = launch(*job, "--dry-run", env=only)
expect(done.returncode == 0 and "#SBATCH --nodes=2\n" in done.stdout and "\nmpi=pmix\n" in done.stdout,
       f"expected a dry run to show the script, got {done}")
done = launch("--nodes", 2, "--gpus-per-node", 4, "--checkpoint.path", "job", "--train.device", "cuda", "--train.global_batch", 8,
              "--dry-run", env=only)
expect(done.returncode == 0 and all(f"#SBATCH --{line}=4\n" in done.stdout for line in ["ntasks-per-node", "gpus-per-node"]),
       f"expected a dry run to show the script of GPUs, got {done}")
program("sbatch", "echo 'sbatch: error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"' >&2; exit 1")
says("no munge", launch(*job, env=only), 1, "start munged", "Munge encode failed")
program("mpirun", "echo 'bind() failed on h2: Address already in use' >&2; exit 1")
says("a port that is taken", launch("--local", env=only), 1, "a port that was asked for is taken")
finish("launch on one host")
