#!/usr/bin/python3
"""Other programs read a checkpoint: h5py, h5dump and cksum, from any folder.

    checkpoint_files.py PROGRAM SCRATCH_FOLDER
"""
import subprocess

import h5py
import numpy

from support.program import SCRATCH, clean_scratch, expect, finish, make_config, make_data, must

SHAPES = {
    "embedding.weight": (257, 16),
    "layers.0.norm.weight": (16,),
    "layers.0.mixer.q_proj.weight": (16, 16),
    "layers.0.mixer.conv_k.weight": (16, 4),
    "layers.2.mixer.A_log": (2,),
    "layers.1.mlp.down_proj.weight": (16, 24),
    "final_norm.weight": (16,),
    "lm_head.weight": (257, 16),
}


def output_of(*words):
    """From another folder than the checkpoint's."""
    done = subprocess.run(words, capture_output=True, text=True, cwd="/")
    expect(done.returncode == 0, f"{' '.join(words)}: expected exit code 0, got {done.returncode}: {done.stderr}")
    return done.stdout


clean_scratch()
make_data()
must("train", make_config("[checkpoint]\npath = run\n"), "--train.steps", 2)
folder = SCRATCH / "run/step_00000002"
index = str(folder / "index.h5")

with h5py.File(index) as file, h5py.File(folder / "shard_00000.h5") as shard:
    expect(set(file) == {"params", "optimizer"} and set(file["optimizer"]) == {"m", "v"},
           f"expected params and optimizer/{{m,v}}, got {list(file)} and {list(file['optimizer'])}")
    for group in ["params", "optimizer/m", "optimizer/v"]:
        names = set(file[group])
        expect(set(SHAPES) <= names, f"{group}: expected the reference's names {sorted(SHAPES)}, got {sorted(names)}")
        for name in names:
            dataset = file[group][name]
            values = dataset[()]
            expect(dataset.is_virtual, f"{group}/{name}: expected a virtual dataset")
            expect(dataset.shape == SHAPES.get(name, dataset.shape), f"{group}/{name}: expected {SHAPES.get(name)}, got {dataset.shape}")
            expect(numpy.isfinite(values).all() and numpy.array_equal(values, shard[group][name][()]),
                   f"{group}/{name}: expected the shard's finite values")
            expect(group != "optimizer/v" or (values >= 0).all(), f"{group}/{name}: expected squares")
    state = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
    expect(dict(state, config="") == {"format_version": 1, "step": 2, "consumed_sequences": 4, "seed": 0, "shards": 1,
                                           "tokenizer": "bytes", "rng": state["rng"], "config": ""},
           f"expected the run's state, got {state}")
    expect("hidden_size = 16" in state["config"], f"expected the configuration, got {state['config']}")
    expect(dict(shard.attrs) == {"step": 2, "shard": 0, "shards": 1}, f"expected which shard it is, got {dict(shard.attrs)}")
    last = file["params/final_norm.weight"][-1]

dumped = output_of("h5dump", "-d", "/params/final_norm.weight", "-y", "-w", "1", index)
expect("( 16 ) / ( 16 )" in dumped, f"h5dump: expected a shape of 16, got {dumped}")
numbers = [float(line.strip().rstrip(",")) for line in dumped.split("DATA {")[1].split("}")[0].split("\n") if line.strip()]
expect(len(numbers) == 16 and abs(numbers[-1] - last) < 1e-4, f"h5dump: expected 16 numbers up to {last}, got {numbers}")

printed = subprocess.run(["cksum", "index.h5"], capture_output=True, text=True, cwd=folder).stdout
expect(printed == (folder / "index.cksum").read_text(), f"expected index.cksum to be what cksum prints: {printed}")
finish("checkpoint files")
