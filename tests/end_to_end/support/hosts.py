"""Hosts h1, h2, ..: network namespaces with their own address, name, /dev/shm and mounts, joined by a bridge, and a
command that mpirun takes for ssh. Call sandbox.enter("ip", "tc", "mpirun") first."""
import os
import subprocess
from pathlib import Path

from support.mpi import ENVIRONMENT
from support.sandbox import ip

NETWORK = "198.18.7"


class Hosts:
    def __init__(self, folder, count):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True)
        self.names = [f"h{i + 1}" for i in range(count)]
        ip("link add between type bridge")
        ip("link set between up")
        lines = ["127.0.0.1 localhost"]
        for i, name in enumerate(self.names):
            ip(f"netns add {name}")
            ip(f"link add port{i} type veth peer name eth0 netns {name}")
            ip(f"link set port{i} master between up")
            for words in [f"addr add {NETWORK}.{i + 1}/24 dev eth0", "link set eth0 up", "link set lo up"]:
                ip(f"-n {name} {words}")
            lines.append(f"{NETWORK}.{i + 1} {name}")
            self.mounts(name, "")
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        inner = f'hostname "$0"; mount -t tmpfs shm /dev/shm; mount --bind {self.folder}/hosts /etc/hosts; ' \
                f'. {self.folder}/"$0".mounts; exec "$@"'
        self.enter = self.folder / "enter"  # enter HOST COMMAND ...
        self.enter.write_text(f"#!/bin/sh\nhost=$1; shift\nexec ip netns exec \"$host\" unshare --uts --mount --ipc "
                              f"sh -c '{inner}' \"$host\" \"$@\"\n")
        rsh = self.folder / "rsh"  # rsh HOST WORDS: a shell there reads the words
        rsh.write_text(f'#!/bin/sh\nhost=$1; shift\nexec {self.enter} "$host" sh -c "$*"\n')
        for script in [self.enter, rsh]:
            os.chmod(script, 0o755)
        # The keepalive: mpirun notices a host that is gone, whose link says nothing.
        self.environment = {**ENVIRONMENT, "OMPI_MCA_plm": "rsh", "OMPI_MCA_plm_rsh_agent": str(rsh),
                            "OMPI_MCA_btl_tcp_if_include": f"{NETWORK}.0/24", "OMPI_MCA_oob_tcp_if_include": f"{NETWORK}.0/24",
                            "OMPI_MCA_oob_tcp_keepalive_time": "3", "OMPI_MCA_oob_tcp_keepalive_intvl": "1",
                            "OMPI_MCA_oob_tcp_keepalive_probes": "3"}

    def mounts(self, name, script):
        """A shell script that every command on this host starts with: what is mounted there is seen by it alone."""
        (self.folder / f"{name}.mounts").write_text(script)

    def on(self, name, *words, timeout=60, **how):
        """A command on a host; a CompletedProcess with text."""
        return subprocess.run([self.enter, name, *map(str, words)], env=self.environment, capture_output=True, text=True,
                              timeout=timeout, **how)

    def limit(self, name, rate):
        """What this host sends goes at this rate at most, as tc writes it; None: no limit."""
        act = "del dev eth0 root" if rate is None else f"replace dev eth0 root tbf rate {rate} burst 8kb latency 200ms"
        subprocess.run(["tc", "-n", name, "qdisc", *act.split()], check=True)
