"""The machines of a run, and the addresses at which their ranks connect."""

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
    """A rank's host, address and device, known to all ranks.

    machine: equal for ranks with the same host name, kernel and network.
    address: of its machine, for the others; "127.0.0.1" if all ranks are on one machine.
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
    """An identifier of this machine or container; host names alone may be equal."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    network = NETWORK.stat().st_ino if NETWORK.exists() else ""
    return f"{socket.gethostname()} {boot} {network}"


def is_loopback(address: str) -> bool:
    """Whether an address is a loopback address. Debian maps a host's own name to 127.0.1.1."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """(family, address) of a host name or address.

    Raises:
        OSError: the name is unknown on this machine.
    """
    family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0]
    return family, str(address[0])


def route_to(host: str) -> str:
    """The address of this machine that routes to a host; sends nothing.

    Raises:
        OSError: the name is unknown, or there is no route.
    """
    family, address = resolve(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]


def own_address(towards_master: str, other_addresses: list[str]) -> str:
    """The address at which other machines reach this one.

    Args:
        towards_master: `route_to` MASTER_ADDR. On the master itself that may be a loopback address.
        other_addresses: those of ranks on other machines.
    """
    if not is_loopback(towards_master):
        return towards_master
    reachable = [address for address in other_addresses if not is_loopback(address)]
    return route_to(reachable[0]) if reachable else towards_master


def interface_of(address: str) -> str | None:
    """The network interface with an address; None if there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in {entry.address for entry in addresses}:
            return name
    return None


def leader_of(peers: list[Peer], rank: int) -> int:
    """The rank with local rank 0 on a rank's machine, by LOCAL_RANK: two launchers on one machine count as two."""
    me = peers[rank]
    leaders = [peer.rank for peer in peers if peer.local_rank == 0 and peer.machine == me.machine]
    return max((leader for leader in leaders if leader <= rank), default=min(leaders, default=rank))


def several_machines(peers: list[Peer]) -> bool:
    """Whether the ranks are on more than one machine."""
    return len({peer.machine for peer in peers}) > 1


def choose_interface(peers: list[Peer], rank: int) -> str | None:
    """Make gloo use the interface that routes to the other machines, unless the user chose one; returns its name.

    By default gloo uses the address of the host's own name, which is often a loopback address.
    """
    if several_machines(peers):
        interface = interface_of(peers[rank].address)
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return os.environ.get("GLOO_SOCKET_IFNAME")
