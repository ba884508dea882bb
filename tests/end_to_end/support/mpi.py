"""Ranks of the program under the real mpirun."""
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.program import PROGRAM, expect, metrics, run

_LINES = (Path(__file__).parents[2] / "mpi_environment").read_text().splitlines()
ENVIRONMENT = {**os.environ, **dict(line.split("=", 1) for line in _LINES if line and line[0] != "#")}


def keys(mesh):
    """'tp=2 cp=2' as words of the command line."""
    return [f"--parallel.{key}" for key in mesh.split()]


def mpirun(ranks, *words, **how):
    """The program with these words on so many ranks; a CompletedProcess with text."""
    return run(*words, prefix=["mpirun", "-np", str(ranks)], env=ENVIRONMENT, **how)


def start_ranks(ranks, *words, **variables):
    """The same, not waited for: a Popen of mpirun. `variables` of the environment beside ENVIRONMENT."""
    return subprocess.Popen(["mpirun", "-np", str(ranks), PROGRAM, *map(str, words)], env={**ENVIRONMENT, **variables}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_after(process, lines_in, lines):
    """Until it ends: seconds since the file `lines_in` had so many lines, and what it said on stderr."""
    last = time.time()
    while process.poll() is None:
        if not lines_in.exists() or lines_in.read_text().count("\n") < lines:
            last = time.time()
        time.sleep(0.005)
    return time.time() - last, process.communicate()[1]


def _children(pid, name):
    """Process ids of its children of this name, in their order; processes may end meanwhile."""
    found = []
    try:
        pids = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    for child in sorted(pids):
        try:
            found += [child] * (Path(f"/proc/{child}/comm").read_text().strip() == name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def ranks_of(mpirun_process):
    """Process ids of the ranks that it started so far, in their order."""
    return _children(mpirun_process.pid, PROGRAM.name)


def ranks_of_launch(launcher):
    """The same of the mpirun that `transmamba launch` has under way, none between two."""
    return [rank for pid in _children(launcher.pid, "mpirun") for rank in _children(pid, PROGRAM.name)]


def succeeds(ranks, *words, **how):
    """Output of a run that must end well and without complaint."""
    done = mpirun(ranks, *words, **how)
    name = " ".join(map(str, words))
    expect(done.returncode == 0 and not done.stderr,
           f"{ranks} ranks, {name}: expected exit code 0 and silence on stderr, got {done.returncode}: {done.stderr}")
    return done.stdout


def is_one_error(name, done, seconds, parts):
    """Exactly one line is ours, with these parts in it; the run failed, and soon. mpirun's own words may follow."""
    ours = [line for line in done.stderr.splitlines() if line.startswith("transmamba:")]
    expect(done.returncode not in (0, -1) and seconds < 10,
           f"{name}: expected it to fail within 10 s, got exit code {done.returncode} after {seconds:.1f} s: {done.stderr}")
    expect(len(ours) == 1, f"{name}: expected one line 'transmamba: ..', got {len(ours)}: {done.stderr}")
    for part in parts:
        expect(str(part) in "".join(ours), f"{name}: expected {str(part)!r} in {ours}")
    expect("step " not in done.stdout, f"{name}: expected no step, got {done.stdout}")


_pool, _pending = ThreadPoolExecutor(3), []  # a run that fails at its start mostly waits for mpirun


def check_bad(name, command, parts):
    start = time.time()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    is_one_error(name, done, time.time() - start, parts)


def bad(ranks, words, *parts):
    """All ranks fail soon, with one error that has these parts. Checked beside what follows, up to wait_for_bad()."""
    words = list(map(str, words))
    command = ["mpirun", "-np", str(ranks), PROGRAM, *words]
    _pending.append(_pool.submit(check_bad, f"{ranks} ranks, {' '.join(words)}", command, parts))


def bad_apart(first, second, *parts):
    """The same where ranks 0 and 1 are started apart: each is a list of mpirun's options, and a list of words."""
    command = ["mpirun", "-np", "1", *first[0], PROGRAM, *first[1], ":", "-np", "1", *second[0], PROGRAM, *second[1]]
    _pending.append(_pool.submit(check_bad, f"{first} : {second}", list(map(str, command)), parts))


def wait_for_bad():
    """Before what they read changes, and before the end."""
    while _pending:
        _pending.pop().result()


def losses(folder):
    """[(step, loss)] and [(step, validation loss)] of a run with this checkpoint.path."""
    steps, validations = metrics(f"{folder}/metrics.jsonl")
    return [(m["step"], m["loss"]) for m in steps], [(m["step"], m["validation_loss"]) for m in validations]


def expect_equal(name, ours, theirs, tolerance=1e-9):
    """Losses as of losses(), to a relative tolerance."""
    for kind, a, b in zip(["losses", "validation losses"], ours, theirs):
        same = [x[0] for x in a] == [x[0] for x in b] and all(abs(x[1] - y[1]) <= tolerance * abs(y[1]) for x, y in zip(a, b))
        expect(same and a, f"{name}: expected {kind} {b}, got {a}")
