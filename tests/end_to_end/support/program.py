"""What the scripts beside this folder share: the program, a scratch folder, small data, checks with a message."""
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # several tests run at once
PROGRAM = Path(sys.argv[1]).resolve()
SCRATCH = Path(sys.argv[2]).resolve()

MODEL = """
[model]
hidden_size = 16
num_layers = 4
num_heads = 2
ffn_hidden_size = 24
transpoints = 0,8,T
[train]
seq_len = 32
micro_batch = 2
global_batch = 2
steps = 6
threads = 1
[optimizer]
lr = 1e-2
min_lr = 1e-3
warmup_steps = 2
"""

failures = 0


def expect(good, message):
    global failures
    if not good:
        failures += 1
        print("FAILED:", message, flush=True)


def finish(what):
    print(f"{what}: {failures} failures")
    sys.exit(1 if failures else 0)


def clean_scratch():
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    os.chdir(SCRATCH)


def run(*words, timeout=60, prefix=(), **how):
    """The program with these words; a CompletedProcess with text. `prefix` is a command that runs it."""
    words = [str(word) for word in words]
    try:
        return subprocess.run([*prefix, PROGRAM, *words], capture_output=True, text=True, timeout=timeout, **how)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, -1, "", f"took more than {timeout} s")


def must(*words, **how):
    """The same where only success will do."""
    done = run(*words, **how)
    if done.returncode != 0:
        sys.exit(f"FAILED: {' '.join(map(str, words))}: expected exit code 0, got {done.returncode}: {done.stderr}")
    return done


def make_data(lines=400, name="tokens.h5", *options):
    """tokens.h5 of made-up English in SCRATCH, with a validation split."""
    words = "the quick brown fox jumps over a lazy dog while seven wizards conjure bright zephyrs".split()
    chance = random.Random(1)
    text = "".join(" ".join(chance.choice(words) for _ in range(8)) + ".\n" for _ in range(lines))
    Path("text.txt").write_text(text)
    must("prepare", "--input", "text.txt", "--output", name, "--validation-fraction", "0.1", *options)


def make_config(extra="", name="run.cfg", data="tokens.h5"):
    Path(name).write_text(f"{MODEL}[data]\npath = {data}\n{extra}")
    return name


def metrics(path):
    """Lines of a metrics.jsonl: those of steps, and those of validations."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [m for m in lines if "loss" in m], [m for m in lines if "validation_loss" in m]
