"""Which process a file speaks of: a process id alone is given again to others.

facts = identity()          # {"pid": 71, "created": 1767225600.25, "since_boot": 1234.5, "host": "a"}
is_alive(facts)             # True, False, or None on another host
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

TICK = 0.02  # seconds; systems count the start of a process in steps of 0.01
LARGEST = 2**40  # seconds


def identity(pid: int | None = None) -> dict[str, Any]:
    """The identity of a process of this machine, by default this one.

    created: seconds since 1970. since_boot: seconds from the start of the machine to that of the process, which a
    changed clock does not move.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    process = psutil.Process(pid)
    created = process.create_time()
    return {
        "pid": process.pid,
        "created": created,
        "since_boot": round(created - psutil.boot_time(), 2),
        "host": socket.gethostname(),
    }


def is_alive(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process of an identity runs; a zombie does not. None: it is on another host.

    Facts that are incomplete, or of another type, are no identity: False.
    """
    if not is_identity(facts):
        return False
    if facts.get("host") != socket.gethostname():
        return None
    try:
        if psutil.Process(facts["pid"]).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        return is_same(facts)
    except psutil.NoSuchProcess:
        return False


def is_identity(facts: Mapping[str, Any]) -> bool:
    """Whether facts are complete and of the right types; they may be of a file that anybody wrote."""
    pid, since_boot = facts.get("pid"), facts.get("since_boot")
    return type(pid) is int and pid > 0 and isinstance(since_boot, (int, float)) and abs(since_boot) < LARGEST


def is_same(facts: Mapping[str, Any]) -> bool:
    """Whether the process that has the id of an identity now is the one that it speaks of.

    Raises:
        psutil.NoSuchProcess: no process has it.
    """
    return abs(identity(facts["pid"])["since_boot"] - facts["since_boot"]) < TICK


def send(facts: Mapping[str, Any], number: int) -> bool:
    """Send a signal to the process of an identity; returns whether it was there."""
    if not is_alive(facts):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(facts["pid"], number)
    return True


def session_of(leader: int) -> list[dict[str, Any]]:
    """The identities of the live processes in the session of a leader, without the leader itself."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if pid != leader and os.getsid(pid) == leader:
                found.append(identity(pid))
    return [facts for facts in found if is_alive(facts)]


def session_begun_by(leader: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As `session_of` an identity, which may have ended; none if its id was given again, or it is on another host."""
    if not is_identity(leader) or leader.get("host") != socket.gethostname():
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        if not is_same(leader):
            return []
    return [facts for facts in session_of(leader["pid"]) if facts["since_boot"] > leader["since_boot"] - TICK]
