#!/usr/bin/env python3
"""Under mpirun every mistake gets one line that names the numbers and what would work, and ends all ranks soon.

    parallel_bad_input.py PROGRAM SCRATCH_FOLDER
"""
import json
import os
import shutil
from pathlib import Path

from support.mpi import bad, bad_apart, keys, mpirun, succeeds, wait_for_bad
from support.program import clean_scratch, expect, finish, make_config, make_data

GOLDEN = Path(__file__).resolve().parents[1] / "golden/base.h5"

clean_scratch()
make_data()
config = make_config()  # 2 heads, 4 layers, MLPs of 24; 32 tokens, one micro-batch of 2 sequences
train = ["train", config]


def bad_mesh(ranks, mesh, *parts, more=()):
    bad(ranks, [*train, *keys(mesh), *more], *parts)


# ---- degrees
bad_mesh(4, "tp=3", "3 x 1 x 1 = 3 does not divide the 4 ranks", "one of 1, 2, 4", "start 3 and 6 ranks")
bad_mesh(4, "tp=2 dp=1", "= 2, but there are 4 ranks", "parallel.dp = 2", "or 2 ranks")
bad_mesh(3, "tp=3", "parallel.tp = 3", "model.num_heads = 2", "one of 1, 2")
bad_mesh(2, "tp=2", "model.ffn_hidden_size = 25", "24 and 26", more=["--model.ffn_hidden_size", 25])
bad_mesh(8, "pp=8", "8 x 1 = 8 stages", "model.num_layers = 4", "pp may be at most 4")
bad_mesh(2, "pp=2 virtual_stages=3", "2 x 3 = 6 stages", "model.num_layers = 4", "virtual_stages may be at most 2 with pp = 2")
bad_mesh(2, "virtual_stages=2", "virtual_stages = 2", "parallel.pp = 1", "pp above 1")

# ---- tokens, sequences, micro-batches
bad_mesh(2, "cp=2 cp_layout=contiguous", "33 is no multiple of 2", "32 and 34", "nearest cp: 1 and 3", more=["--train.seq_len", 33])
bad_mesh(2, "cp=2 cp_layout=balanced", "33 is no multiple of 2", "32 and 34", "nearest cp: 1 and 3", more=["--train.seq_len", 33])
bad_mesh(2, "cp=2 cp_layout=zigzag", "34 is no multiple of 2 x 2", "32 and 36", more=["--train.seq_len", 34])
bad_mesh(2, "cp=2 cp_layout=striped cp_chunk=5", "seq_len = 32", "5", "30", "40")
bad_mesh(2, "dp=2", "train.global_batch = 2", "2 x 2 = 4", "would do: 4")
bad_mesh(2, "pp=2 virtual_stages=2", "groups of parallel.pp = 2", "= 1 of them", "would do: 4")
bad_mesh(2, "pp=2 virtual_stages=2", "= 3 of them", "would do: 4 and 8", more=["--train.global_batch", 6])

# ---- ranks that are not told the same, or do not see the same
make_config("[checkpoint]\nkeep = 5\n", "other.cfg")
bad_apart(([], train), ([], ["train", "other.cfg"]), "ranks 0 and 1", "[checkpoint]", '"keep = 3"', '"keep = 5"')
bad_apart(([], train), ([], [*train, "--optimizer.lr", 1]), "ranks 0 and 1", '"lr = 0.01"', '"lr = 1"')
bad_apart(([], train), ([], ["train", "absent.cfg"]), "rank 1", "absent.cfg")
here, there = Path("here"), Path("there")
for folder in [here, there]:
    folder.mkdir()
    shutil.copy(config, folder)
shutil.copy("tokens.h5", here)
apart = [(["--wdir", folder], [*train, *keys("tp=2")]) for folder in [here, there]]
bad_apart(*apart, "rank 1: ", "tokens.h5", "no such file")
wait_for_bad()
make_data(300, there / "tokens.h5")
bad_apart(*apart, "data.path = tokens.h5", "ranks 0 and 1", "different")

# ---- machine files
machine = lambda path: ["--parallel.machine", path, *keys("cp=2")]
Path("prose.json").write_text("Call me Ishmael.\n")
Path("part.json").write_text(json.dumps({"version": 3, "name": "part", "measured_on": "nothing", "dtype": "float32"}))
bad(2, [*train, *machine("absent.json")], "absent.json")
bad(2, [*train, *machine("prose.json")], "prose.json")
bad(2, [*train, *machine("part.json")], "part.json", "is missing", "transmamba bench --quick")

# ---- checkpoints
checkpoint = Path("run/step_00000006")
succeeds(2, *train, *keys("tp=2"), "--checkpoint.path", "run", "--checkpoint.every", 3)
for name in ["no_shard", "flipped"]:
    shutil.copytree("run", name)
os.remove("no_shard/step_00000006/shard_00001.h5")
shard = Path("flipped/step_00000006/shard_00001.h5")
data = bytearray(shard.read_bytes())
data[len(data) // 2] ^= 1
shard.write_bytes(data)
# On as many ranks as wrote it, on fewer and on more.
for ranks, mesh in [(2, "tp=2"), (2, "pp=2"), (4, "tp=2 cp=2")]:
    resume = lambda path: [*train, *keys(mesh), "--train.steps", 8, "--checkpoint.resume", path]
    bad(ranks, resume("no_shard/step_00000006"), "no_shard/step_00000006/shard_00001.h5", "no such file")
    bad(ranks, resume("flipped/step_00000006"), "flipped/step_00000006")
bad(2, [*train, *keys("tp=2"), "--checkpoint.resume", checkpoint, "--model.hidden_size", 32], "another model")
wait_for_bad()
# The older one is whole: resume = auto says so and takes it.
for name in ["no_shard", "flipped"]:
    done = mpirun(2, *train, *keys("cp=2"), "--train.steps", 8, "--checkpoint.path", name, "--checkpoint.resume", "auto")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    expect(done.returncode == 0 and len(warnings) == 2 and "step_00000006 is passed over" in warnings[0],
           f"{name}: expected a warning about step 6, and that it is set aside, got {done.returncode}: {done.stderr}")
    expect(done.stdout.count(f"resumed from {name}/step_00000003 after step 3") == 1, f"{name}: expected step 3, got {done.stdout}")

# ---- commands of one process, and verify
for words in [["prepare"], ["generate", "--tokens", 3], ["plan", config, "--ranks", 2]]:
    bad(2, words, f"[{words[0]}] processes: expected 1, got 2", "without mpirun")
verify = lambda mesh: ["verify", GOLDEN, *keys(mesh)]
bad(4, verify("tp=3"), "does not divide the 4 ranks", "one of 1, 2, 4")
bad(3, verify("tp=3"), "parallel.tp = 3", "model.num_heads")
bad(2, verify("pp=2 virtual_stages=9"), "stages", "model.num_layers")
bad(2, ["verify", "tokens.h5"], "not a file of the reference implementation")
wait_for_bad()
finish("bad input under mpirun")
