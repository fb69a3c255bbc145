"""Two hosts on this machine: network, UTS and mount namespaces of their own, connected by a veth pair.

Each has its own host name, which its /etc/hosts maps to 127.0.1.1 as Debian does, and the other's at its address. One
path, `local`, leads to a directory of its own on each. The namespaces live as long as the process that holds them;
nothing is left behind, and no packet leaves them.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import forks, launch

NAMES, ADDRESSES, INTERFACES = ("node1", "node2"), ("10.77.0.1", "10.77.0.2"), ("eth0", "net1")
PORT = "29520"  # their own network: nothing else listens there


@dataclass(frozen=True)
class Host:
    """A process that holds the namespaces, and the directory that the host sees as `local`."""

    number: int
    pid: int
    directory: Path
    local: Path

    @property
    def enter(self) -> list[str]:
        """The words in front of a command that shall run on the host."""
        return ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", f"--wd={launch.REPOSITORY}"]

    def start(self, command: list[str], **variables: str) -> subprocess.Popen:
        """Start a command on the host, in a session of its own; output as one text."""
        return subprocess.Popen(
            [*self.enter, *(str(part) for part in command)],
            env=launch.environment(CUDA_VISIBLE_DEVICES="", **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start_fork(self, words: list[str], **variables: str) -> forks.Run:
        """Start one of our programs on the host, without a launcher (tests/forks.py)."""
        return launch.start_each(words, [variables], host=self.pid)

    def call(self, *command: str) -> None:
        """Run a command on the host, quickly."""
        subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True, timeout=30)


def missing() -> str:
    """Why hosts cannot be made here; empty where they can."""
    try:
        subprocess.run(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", "ip link add one type veth peer name two"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[list[Host]]:
    """Both hosts, up and connected, each with a directory of its own."""
    holders, hosts, local = [], [], directory / "local"
    local.mkdir()
    try:
        for number, name in enumerate(NAMES):
            own = directory / name
            own.mkdir()
            hosts_file = own / "hosts"
            other_host = f"{ADDRESSES[1 - number]} {NAMES[1 - number]}"
            hosts_file.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{other_host}\n")
            mounts = f"mount --bind '{hosts_file}' /etc/hosts && mount --bind '{own}' '{local}'"
            script = f"hostname {name} && {mounts} && ip link set lo up && echo up && read x"
            holder = subprocess.Popen(
                ["unshare", "--net", "--uts", "--mount", "sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            holders.append(holder)
            assert holder.stdout.readline() == "up\n"
            hosts.append(Host(number, holder.pid, own, local))
        pair = ["type", "veth", "peer", "name", INTERFACES[1], "netns", str(hosts[1].pid)]
        subprocess.run(["ip", "link", "add", INTERFACES[0], "netns", str(hosts[0].pid), *pair], check=True, timeout=30)
        for host in hosts:
            host.call("ip", "address", "add", f"{ADDRESSES[host.number]}/24", "dev", INTERFACES[host.number])
            link_up(host)
        yield hosts
    finally:
        for holder in holders:
            holder.communicate("\n")  # its end is that of the namespaces


def link_up(host: Host) -> None:
    """Connect a host."""
    host.call("ip", "link", "set", INTERFACES[host.number], "up")


def link_down(host: Host) -> None:
    """Let a host vanish for the other: nothing is sent that says so."""
    host.call("ip", "link", "set", INTERFACES[host.number], "down")


def srun(hosts: list[Host], words: list[str]) -> list[forks.Run]:
    """Start one of our programs on each host, with what srun sets for a task on each of them."""
    of_all = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    of_all |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
    of_all |= dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"), "node[1-2]")
    return [
        host.start_fork(words, SLURM_PROCID=str(host.number), SLURM_NODEID=str(host.number), **of_all) for host in hosts
    ]


def finish(processes: list[subprocess.Popen], timeout: float) -> list[str]:
    """Their outputs, once all have ended; whatever is left is killed."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
