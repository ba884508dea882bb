"""A script of its own: with its own network, mounts, processes and hostname, all gone with it however it ends."""
import os
import subprocess
import sys
from pathlib import Path

_MARK = "TRANSMAMBA_TEST_SANDBOX"


def enter(*tools):
    """Starts this script again in new namespaces, with an address (some programs ask for no name without one), and
    checks that `tools` are there. Fails, and never skips, where that is not possible."""
    missing = [tool for tool in tools if not any((Path(folder) / tool).exists() for folder in os.get_exec_path())]
    if missing:
        sys.exit(f"FAILED: {', '.join(missing)}: not installed; `tools/setup --for test` installs what the tests need")
    if _MARK not in os.environ:
        if os.geteuid() != 0:
            sys.exit("FAILED: this test makes hosts out of namespaces, and has to run as root")
        probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
        if probe.returncode != 0:
            sys.exit(f"FAILED: this test needs namespaces, and this machine lets it have none: {probe.stderr.strip()}")
        os.execvpe("unshare", [*_UNSHARE, sys.executable, *sys.argv], {**os.environ, _MARK: "1"})
    for words in ["link set lo up", "link add out0 type veth peer name out1", "addr add 198.18.9.1/24 dev out0",
                  "link set out0 up", "link set out1 up"]:
        ip(words)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)  # sockets, names of networks


# The first process of a process namespace takes all others with it, and --kill-child ends it where unshare ends.
_UNSHARE = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)
