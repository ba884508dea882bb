#!/usr/bin/env python3
"""Training on two hosts, which are network namespaces with their own addresses: `transmamba launch --hosts` starts
it, the profile says which axis crosses the slow link between them, and an error says which host it is about.

    parallel_hosts.py PROGRAM SCRATCH_FOLDER
"""
import json
import shutil
from pathlib import Path

from support import sandbox

sandbox.enter("ip", "tc", "mpirun")
from support.hosts import Hosts  # noqa: E402  (in the sandbox)
from support.mpi import expect_equal, losses, succeeds  # noqa: E402
from support.program import PROGRAM, SCRATCH, clean_scratch, expect, finish, make_config, make_data  # noqa: E402

clean_scratch()
make_data()
make_config("[parallel]\ntp = 2\ncp = 2\n")
hosts = Hosts("hosts", 2)
RANKS = ["--hosts", "h1:2,h2:2"]


def launch(*words, program=PROGRAM):
    return hosts.on("h1", program, "launch", f"{SCRATCH}/run.cfg", *RANKS, *words)


# ---- it trains, as it does on one host
done = launch("--checkpoint.path", "apart", "--checkpoint.every", 3)
expect(done.returncode == 0 and not done.stderr, f"expected training on two hosts, got {done}")
succeeds(4, "train", "run.cfg", "--checkpoint.path", "together")
expect_equal("two hosts and one", losses("apart"), losses("together"), tolerance=1e-6)

# ---- where the link between the hosts is slow, the axis across it is: tp and cp change places
hosts.limit("h1", "20mbit")
hosts.limit("h2", "20mbit")
wide = ["--train.seq_len", 128, "--model.hidden_size", 64, "--train.steps", 8, "--profile", 4]
for crossing, inside, placement in [("cp", "tp", "slot"), ("tp", "cp", "node")]:
    hosts.environment["OMPI_MCA_rmaps_base_mapping_policy"] = placement
    done = launch(*wide, "--log.profile_path", crossing)
    expect(done.returncode == 0, f"{crossing} across hosts: expected success, got {done}")
    rates = {}
    for call in json.loads(Path(f"{crossing}/profile.json").read_text())["communication"]:
        bytes_, seconds = rates.get(call["axis"], (0, 0))
        rates[call["axis"]] = bytes_ + call["bytes_per_step"], seconds + call["transfer_seconds_per_step"]
    rate = {axis: b / s / 1e6 for axis, (b, s) in rates.items() if s > 0}
    print(f"{crossing} across hosts: MB/s by axis {rate}")
    expect(rate[crossing] < 5 and rate[inside] > 4 * rate[crossing],
           f"expected {crossing}, across 2.5 MB/s, to be the slow axis, got MB/s {rate}")
finish("two hosts")
