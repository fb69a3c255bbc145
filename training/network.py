"""Which machines a run spans, and how their ranks reach one another."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/self/ns/net")


@dataclass(frozen=True)
class Peer:
    """What all ranks know of one of them.

    machine: equal for ranks that share host name, kernel and network.
    address: of its machine, on the way to the others; "127.0.0.1" where all ranks are on one machine.
    device: "cuda" or "cpu".
    """

    rank: int
    local_rank: int
    host: str
    machine: str
    address: str
    device: str
    pid: int


def this_machine() -> str:
    """What tells this machine (or container) from the others; host names alone may be equal."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    network = NETWORK.stat().st_ino if NETWORK.exists() else ""
    return f"{socket.gethostname()} {boot} {network}"


def is_loopback(address: str) -> bool:
    """Whether an address leads to the machine itself. Debian maps a host's own name to 127.0.1.1."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """(family, address) of a host name or address.

    Raises:
        OSError: the name is unknown here.
    """
    family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0]
    return family, str(address[0])


def route_to(host: str) -> str:
    """The address of this machine from which packets to a host leave; nothing is sent.

    Raises:
        OSError: the name is unknown, or no network leads there.
    """
    family, address = resolve(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]


def own_address(towards_master: str, others: list[str]) -> str:
    """The address at which other machines reach this one.

    Args:
        towards_master: `route_to` MASTER_ADDR. On the master itself that may be a loopback address.
        others: those of ranks on other machines.
    """
    if not is_loopback(towards_master):
        return towards_master
    reachable = [address for address in others if not is_loopback(address)]
    return route_to(reachable[0]) if reachable else towards_master


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in {one.address for one in addresses}:
            return name
    return None


def leader_of(peers: list[Peer], rank: int) -> int:
    """The rank with local rank 0 on a rank's machine, by LOCAL_RANK: two launchers on one machine count as two."""
    me = peers[rank]
    leaders = [one.rank for one in peers if one.local_rank == 0 and one.machine == me.machine]
    return max((one for one in leaders if one <= rank), default=min(leaders, default=rank))


def several_machines(peers: list[Peer]) -> bool:
    """Whether not all ranks are on one machine."""
    return len({one.machine for one in peers}) > 1


def choose_interface(peers: list[Peer], rank: int) -> str | None:
    """Let gloo use the interface that leads to the other machines, unless the user chose one; returns its name.

    gloo would take the address that the host's own name resolves to, which is often a loopback address.
    """
    if several_machines(peers):
        interface = interface_of(peers[rank].address)
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return os.environ.get("GLOO_SOCKET_IFNAME")
