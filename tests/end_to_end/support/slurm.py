"""A real SLURM of two nodes, n1 and n2 with 4 CPUs each, without systemd or cgroups. Call
sandbox.enter(*slurm.PROGRAMS) first: ports, sockets and daemons are the sandbox's."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ["slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "munged", "ip", "mpirun"]
FOLDER = Path("/run/slurm")

# cred_expire: a job that was requeued waits that long. The rest is less waiting, and fewer things to install.
_CONF = f"""
ClusterName=test
SlurmctldHost={{host}}(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={FOLDER}/state
SlurmdSpoolDir={FOLDER}/spool-%n
SlurmctldPidFile={FOLDER}/slurmctld.pid
SlurmdPidFile={FOLDER}/slurmd-%n.pid
SlurmctldLogFile={FOLDER}/slurmctld.log
SlurmdLogFile={FOLDER}/slurmd-%n.log
TmpFS={FOLDER}/tmp-%n
MailProg=/bin/true
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port=16818 CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port=16819 CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


def must_run(*words):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        sys.exit(f"FAILED: {' '.join(map(str, words))}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def start():
    """Returns when both nodes are idle, within a second or so. The time of the controller's start: it looks at time
    limits half a minute after that, and every half minute."""
    host = socket.gethostname().split(".")[0]
    for name in ["state", "spool-n1", "spool-n2", "tmp-n1", "tmp-n2"]:
        (FOLDER / name).mkdir(parents=True)
    (FOLDER / "slurm.conf").write_text(_CONF.format(host=host))
    (FOLDER / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # unused, and looked for all the same
    (FOLDER / "hosts").write_text(f"127.0.0.1 localhost {host} n1 n2\n")
    os.environ["SLURM_CONF"] = str(FOLDER / "slurm.conf")

    munge = Path("/run/munge")
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    for path, mode in [(munge / "key", 0o400), (munge, 0o755)]:
        shutil.chown(path, "munge", "munge")
        path.chmod(mode)
    must_run("setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", f"--key-file={munge}/key",
             f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")
    began = time.time()
    must_run("slurmctld")
    for node in ["n1", "n2"]:  # own hostname and /dev/shm: segments and sockets of PMIx and MPI would collide
        must_run("unshare", "--uts", "--mount", "sh", "-c", f"hostname {node}; mount -t tmpfs shm /dev/shm; "
                 f"mount --bind {FOLDER}/hosts /etc/hosts; exec slurmd -N {node}")
    while must_run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() != ["n1", "n2"]:
        if time.time() > began + 20:
            logs = "".join(path.read_text()[-1500:] for path in sorted(FOLDER.glob("*.log")))
            sys.exit(f"FAILED: the nodes are not idle after 20 s: {logs}")
        time.sleep(0.1)
    return began


def stop_munge():
    os.kill(int(Path("/run/munge/pid").read_text()), signal.SIGTERM)
    until = time.time() + 10
    while Path("/run/munge/munge.socket.2").exists() and time.time() < until:
        time.sleep(0.01)
