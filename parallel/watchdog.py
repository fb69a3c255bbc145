"""Watchdog against silent hangs: if the ranks wait too long, one of them reports the late rank and ends the run.

    watchdog = Watchdog(timeout_seconds, ranks.peers())     # every rank, as soon as the process group exists
    watchdog.at("step 12: reading data")                    # every rank, at the same places; costs two assignments
    watchdog.close()                                        # every rank, at the end of the run

A thread on every rank sends a small datagram to all others every two seconds, with the progress and the current place
of its main thread. There is no server: whichever rank freezes, the others still receive each other's reports.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch.distributed as dist

from parallel.network import Peer, resolve

REPOSITORY = Path(__file__).resolve().parent.parent
EXIT_CODE = 1
LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
COLLECTIVES = (("torch", "distributed"), ("deepspeed", "comm"))  # a rank in these modules waits for others


class Watchdog:
    """Watches from its creation to `close`. A single rank is not watched.

    Args:
        timeout_seconds: maximum time between two calls of `at` by a main thread.
        peers: all ranks, in order. group: the group in which they exchange their ports.
    """

    def __init__(self, timeout_seconds: float, peers: list[Peer], group: dist.ProcessGroup | None = None):
        self.timeout, self.interval = timeout_seconds, min(2.0, timeout_seconds / 10)
        self.count, self.mark = 0, "the start"
        self.watched = threading.get_ident()
        self.closing = False
        self.reports: dict[int, dict] = {}  # rank -> its newest report
        self.received_at: dict[int, float] = {}  # rank -> when the report arrived, in this process's monotonic seconds
        self.thread = None
        if dist.get_world_size() > 1:
            self.rank = dist.get_rank()
            self.meet(peers, group)
            self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
            self.thread.start()

    def at(self, mark: str) -> None:
        """Record the next phase of the main thread. Ranks are compared by their number of calls."""
        self.mark = mark
        self.count += 1

    def close(self) -> None:
        """End the thread, and report to the other ranks that this one did not freeze."""
        if self.thread is not None:
            self.closing = True
            self.socket.sendto(b"", (LOOPBACK[self.socket.family], self.socket.getsockname()[1]))  # wakes the thread
            self.thread.join()
            self.send_report(0)
            self.socket.close()
            self.thread = None

    def meet(self, peers: list[Peer], group: dist.ProcessGroup | None) -> None:
        """Open a socket and exchange ports; collective."""
        family, _ = resolve(peers[self.rank].address)
        one_machine = all(peer.machine == peers[self.rank].machine for peer in peers)
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((LOOPBACK[family] if one_machine else "", 0))
        own_report = {"port": self.socket.getsockname()[1], "key": secrets.token_hex(8)}
        everyone: list[dict] = [{} for _ in peers]
        dist.all_gather_object(everyone, own_report, group=group)
        self.key = everyone[0]["key"]  # excludes foreign datagrams
        self.names = [f"process {peer.pid} on {peer.host}" for peer in peers]
        self.peers = [
            (LOOPBACK[family] if peer.machine == peers[self.rank].machine else peer.address, theirs["port"])
            for peer, theirs in zip(peers, everyone, strict=True)
            if peer.rank != self.rank
        ]

    def send_report(self, still: float) -> None:
        """Send this rank's report to all others, and keep it, too.

        Args:
            still: seconds without progress of the main thread.
        """
        place, waits = place_of(self.watched)
        report = {
            "key": self.key,
            "rank": self.rank,
            "count": self.count,
            "mark": self.mark[:200],
            "place": place[:300],
            "waits": waits,
            "stuck": still > self.timeout,
            "closed": self.closing,
        }
        self.keep(report)
        for peer in self.peers:
            with contextlib.suppress(OSError):  # the network may be down for a moment
                self.socket.sendto(json.dumps(report).encode(), peer)

    def keep(self, report: dict) -> None:
        """Replace a rank's report."""
        self.reports[report["rank"]] = report
        self.received_at[report["rank"]] = time.monotonic()

    def listen(self, until: float) -> None:
        """Receive reports until that time, or until `close`."""
        while not self.closing and (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                report = json.loads(self.socket.recv(4096))
            except (TimeoutError, ValueError):  # no datagram, or a foreign one
                continue
            if isinstance(report, dict) and report.get("key") == self.key:
                self.keep(report)

    def watch(self) -> None:
        """The thread: send and receive reports, and end the run if this rank's main thread makes no progress."""
        still, count, last = 0.0, self.count, time.monotonic()
        while not self.closing:
            self.send_report(still)
            self.listen(last + self.interval)
            now = time.monotonic()
            # time during which this process was suspended (Ctrl-Z, a debugger) does not count as waiting
            passed = min(now - last, 2 * self.interval)
            still = still + passed if count == self.count else 0.0
            count, last = self.count, now
            # three intervals later all ranks have received the reports
            if still > self.timeout + 3 * self.interval and not self.closing:
                self.end()

    def end(self) -> None:
        """Report the late ranks, on the lowest stuck rank, and exit: the launcher then ends the other ranks."""
        silent_for = {rank: time.monotonic() - received_at for rank, received_at in self.received_at.items()}
        fresh = [rank for rank, age in silent_for.items() if age < self.timeout / 2]
        if self.rank == min(rank for rank in fresh if self.reports[rank]["stuck"]):
            sentence = verdict(self.reports, silent_for, self.names, self.timeout)
            os.write(sys.stderr.fileno(), f"error: {sentence}\n".encode())
        else:
            time.sleep(5 * self.interval)  # the launcher ends all ranks when the first one exits
        os._exit(EXIT_CODE)


def place_of(thread: int) -> tuple[str, bool]:
    """(Current line of a thread in our code and in the library below, whether it is in a collective)."""
    stack = [
        (Path(frame.f_code.co_filename), f":{line} {frame.f_code.co_name}")
        for frame, line in traceback.walk_stack(sys._current_frames()[thread])
    ]
    waits = any(pair in zip(file.parts, file.parts[1:], strict=False) for file, _ in stack for pair in COLLECTIVES)
    file, line = stack[0]
    innermost = f"{Path(*file.parts[-3:])}{line}"
    for file, line in stack:
        if file.is_relative_to(REPOSITORY) and "site-packages" not in file.parts:
            own_line = f"{file.relative_to(REPOSITORY)}{line}"
            return (own_line if (file, line) == stack[0] else f"{own_line}, in {innermost}"), waits
    return innermost, waits


def verdict(reports: dict[int, dict], silent_for: dict[int, float], names: list[str], timeout: float) -> str:
    """The error about the late ranks.

    Args:
        reports: rank -> its newest report; silent_for: rank -> seconds since it arrived.
        names: process and machine of every rank.
    """
    minutes = f"{timeout / 60:g}"
    running = [rank for rank, report in reports.items() if not report["closed"]]
    furthest = max(running, key=lambda rank: reports[rank]["count"])
    silent = [rank for rank in running if silent_for[rank] > timeout / 2]
    behind = [rank for rank in running if reports[rank]["count"] < reports[furthest]["count"]]
    waiting = [rank for rank in running if reports[rank]["waits"]]
    outside = [rank for rank in running if rank not in waiting] if waiting else []
    unheard = [rank for rank in range(len(names)) if rank not in reports]

    def location(rank: int) -> str:
        return f"{reports[rank]['mark']!r} ({reports[rank]['place']})"

    if silent:
        late = {rank: f"has sent no report for {silent_for[rank]:.0f} s, last at {location(rank)}" for rank in silent}
    elif behind:
        late = {rank: f"is still at {location(rank)}, rank {furthest} is at {location(furthest)}" for rank in behind}
    elif outside:
        late = {rank: f"is at {location(rank)}, rank {waiting[0]} waits at {location(waiting[0])}" for rank in outside}
    elif unheard:
        late = dict.fromkeys(unheard, "has sent no report (or UDP between the machines is blocked)")
    else:
        all_of_them = "; ".join(f"rank {rank} is at {location(rank)}" for rank in sorted(running))
        return (
            f"no progress for {minutes} minutes, and no rank is behind the others: {all_of_them}; check the network "
            f"and the GPUs, or raise --timeout_minutes {minutes}."
        )
    details = "; ".join(f"rank {rank} ({names[rank]}) {clause}" for rank, clause in sorted(late.items()))
    late_ranks = f"rank {' and '.join(str(rank) for rank in sorted(late))}"
    return (
        f"the ranks have waited {minutes} minutes for {late_ranks}: {details}; check this place and the rank's "
        f"machine, or raise --timeout_minutes {minutes}."
    )
