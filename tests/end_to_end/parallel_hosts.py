#!/usr/bin/env python3
"""Training on two hosts, which are network namespaces with their own addresses: `transmamba launch --hosts` starts
it, the profile says which axis crosses the slow link between them, and an error says which host it is about.

    parallel_hosts.py PROGRAM SCRATCH_FOLDER
"""
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

from support import sandbox

sandbox.enter("ip", "tc", "mpirun")
from support.hosts import Hosts  # noqa: E402  (in the sandbox)
from support.mpi import expect_equal, losses, succeeds  # noqa: E402
from support.program import PROGRAM, SCRATCH, clean_scratch, expect, finish, make_config, make_data  # noqa: E402

clean_scratch()
make_data()
make_config("[parallel]\ntp = 2\n")
hosts = Hosts("hosts", 2)
RANKS = ["--hosts", "h1:2,h2:2", "--train.global_batch", "4"]


def launch(*words):
    return hosts.on("h1", PROGRAM, "launch", f"{SCRATCH}/run.cfg", *RANKS, *words)


# ---- it trains, as it does on one host
done = launch("--checkpoint.path", "apart", "--checkpoint.every", 3)
expect(done.returncode == 0 and not done.stderr, f"expected training on two hosts, got {done}")
succeeds(4, "train", "run.cfg", "--train.global_batch", 4, "--checkpoint.path", "together")
expect_equal("two hosts and one", losses("apart"), losses("together"), tolerance=1e-6)

# ---- where the link between the hosts is slow, 1 MB/s, the axis across it is: tp and cp change places
for name in hosts.names:
    hosts.limit(name, "8mbit")
for crossing, inside, placement in [("cp", "tp", "slot"), ("tp", "cp", "node")]:
    hosts.environment["OMPI_MCA_rmaps_base_mapping_policy"] = placement
    done = launch("--parallel.cp", 2, "--train.seq_len", 256, "--model.transpoints", "T", "--train.steps", 5, "--profile", 2,
                  "--log.profile_path", crossing)
    expect(done.returncode == 0, f"{crossing} across hosts: expected success, got {done}")
    totals = {}
    for call in json.loads(Path(f"{crossing}/profile.json").read_text())["communication"]:
        bytes_, seconds = totals.get(call["axis"], (0, 0))
        totals[call["axis"]] = bytes_ + call["bytes_per_step"], seconds + call["transfer_seconds_per_step"]
    rate = {axis: bytes_ / seconds / 1e6 for axis, (bytes_, seconds) in totals.items()}
    print(f"{crossing} across hosts: MB/s by axis {rate}")
    expect(rate[crossing] < 2 and rate[inside] > 3 * rate[crossing],
           f"expected {crossing}, across 1 MB/s, to be the slow axis, got MB/s {rate}")
for name in hosts.names:
    hosts.limit(name, None)
del hosts.environment["OMPI_MCA_rmaps_base_mapping_policy"]

# ---- a rank that hangs is named with its host, before those that wait for it
done = launch("--fault.kind", "hang", "--fault.rank", 3, "--fault.step", 3, "--parallel.timeout", 9)
expect(done.returncode == 76 and re.search(r"transmamba: rank \d on h\d: .*\n  rank 3 on h2 is in no call .*\n  rank \d on h\d in step 3: ", done.stderr),
       f"a rank that hangs: expected it to be named with its host, got {done.returncode}: {done.stderr}")

# ---- what only one host has, or another than the others. On h2 `there` is mounted over `here`
here, there = SCRATCH / "here", SCRATCH / "there"
for folder in [here, there]:
    folder.mkdir()
    for file in [PROGRAM, "run.cfg", "tokens.h5"]:
        shutil.copy(file, folder)
hosts.mounts("h2", f"mount --bind {there} {here}")
ON_HERE = ["launch", here / "run.cfg", *RANKS, "--data.path", here / "tokens.h5"]


def fails(name, start, *parts, words=ON_HERE):
    done = hosts.on("h1", here / PROGRAM.name, *words)
    ours = [line for line in done.stderr.splitlines() if line.startswith(start)]
    expect(done.returncode != 0 and len(ours) == 1 and all(part in ours[0] for part in parts),
           f"{name}: expected one line {start!r} with {parts}, got {done.returncode}: {done.stderr}")


done = hosts.on("h1", here / PROGRAM.name, *ON_HERE)
expect(done.returncode == 0 and not done.stderr, f"expected hosts with equal files to train, got {done}")
with open(there / PROGRAM.name, "ab") as program:
    program.write(b"another build")
fails("another program", "transmamba: ", "[program] ranks 0 on h1 and 2 on h2 run different builds")
(there / PROGRAM.name).unlink()
fails("no program", "launch: ", f"host h2 has no program {here / PROGRAM.name}")
shutil.copy(PROGRAM, there)
(there / "run.cfg").write_text((here / "run.cfg").read_text().replace("lr = 1e-2", "lr = 2e-2"))
fails("another configuration", "transmamba: ", "[config] ranks 0 on h1 and 2 on h2", "lr = 0.01", "lr = 0.02")
(there / "run.cfg").unlink()
fails("no configuration", "transmamba: rank 2 on h2: [config] no configuration file", "every host has to see")
shutil.copy(here / "run.cfg", there)
(there / "tokens.h5").unlink()
fails("no data", "transmamba: rank 2 on h2: ", "tokens.h5", "every host has to see")
hosts.mounts("h2", "")

# ---- a folder for checkpoints that a host has for itself, that cannot be written to there, that is full
saves = SCRATCH / "saves"
saves.mkdir()
ON_SAVES = ["launch", "run.cfg", *RANKS, "--checkpoint.path", saves]
hosts.mounts("h2", f"mount -t tmpfs -o ro none {saves}")
fails("a read-only folder", "transmamba: rank 2 on h2: ", f"checkpoint.path = {saves}", "Read-only file system", words=ON_SAVES)
hosts.mounts("h2", f"mount -t tmpfs none {saves}")
fails("a folder of its own", "transmamba: rank 2 on h2: ", f"checkpoint.path = {saves}: is not the folder that rank 0 has there",
      "every host has to see", words=ON_SAVES)
hosts.mounts("h2", "")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", saves], check=True)
fails("a full disk", "transmamba: ", "step 6 could not be saved", " on h", "No space left on device", words=ON_SAVES)
expect(not list(saves.glob("step_*")), f"expected no half checkpoint, got {list(saves.iterdir())}")
subprocess.run(["umount", saves], check=True)

# ---- a port that another program has, on both hosts for the ranks there are two
ports = {"OMPI_MCA_btl_tcp_port_min_v4": "15555", "OMPI_MCA_btl_tcp_port_range_v4": "1"}
hosts.environment.update(ports)
fails("a port that is taken", "launch: ", "a port that was asked for is taken", "ss -ltnp", words=["launch", "run.cfg", *RANKS])
for name in ports:
    del hosts.environment[name]

# ---- a host whose clock is off: what a program there asks for the time comes to this first
Path("clock.c").write_text("""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec* time) {
  int (*next)(clockid_t, struct timespec*) = dlsym(RTLD_NEXT, "clock_gettime");
  int result = next(clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec += 90;
  return result;
}
""")
subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], check=True)
hosts.mounts("h2", f"export LD_PRELOAD={SCRATCH}/clock.so")
done = launch()
expect(done.returncode == 0 and re.fullmatch(r"warning: the clock of host h2 is 90 s ahead of that of h1, .*: run an NTP client there\n", done.stderr),
       f"clocks apart: expected one warning, got {done.returncode}: {done.stderr}")
hosts.mounts("h2", "")

# ---- a host whose network is gone for some seconds: it is noticed, and the run goes on when it is back
errors = Path("cut.err")
with open("cut.out", "w") as out, open(errors, "w") as err:
    process = subprocess.Popen([hosts.enter, "h1", PROGRAM, "launch", f"{SCRATCH}/run.cfg", *RANKS, "--checkpoint.path", "cut",
                                "--checkpoint.every", "10", "--train.steps", "60", "--train.max_restarts", "5"],
                               env=hosts.environment, stdout=out, stderr=err)


def wait_for(text, file, seconds):
    until = time.time() + seconds
    while text not in Path(file).read_text() and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    expect(text in Path(file).read_text(), f"expected {text!r} within {seconds} s, got {Path(file).read_text()[-2000:]}")


wait_for("step 20/60", "cut.out", 30)
sandbox.ip("-n h2 link set eth0 down")
wait_for(": restart 1 of at most 5", errors, 20)
sandbox.ip("-n h2 link set eth0 up")
wait_for("step 60/60", "cut.out", 60)
expect(process.wait(timeout=30) == 0 and re.search(r"launch: (host h2|a host).* is gone", errors.read_text()),
       f"expected the run to be restarted and to end well, got {process.returncode}: {errors.read_text()}")
fails("no such host", "launch: ", "a host could not be reached", "h9", words=["launch", "run.cfg", "--hosts", "h1:2,h9:2", "--train.global_batch", 4])
finish("two hosts")
