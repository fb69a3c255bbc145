"""No silent hang: when the ranks wait too long for one of them, one sentence says for which, and the run ends.

    watchdog = Watchdog(timeout_seconds, ranks.peers())     # every rank, as soon as the process group exists
    watchdog.at("step 12: reading data")                    # every rank, at the same places; costs two assignments
    watchdog.close()                                        # every rank, at the end of the run

On every rank a thread tells all others, by a small datagram every two seconds, how far its main thread has come and
where it stands. There is no server among them: whichever rank freezes, the others still hear one another.
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

from training.network import Peer, resolve

REPOSITORY = Path(__file__).resolve().parent.parent
EXIT_CODE = 1
LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
COLLECTIVES = (("torch", "distributed"), ("deepspeed", "comm"))  # whoever is in here waits for other ranks


class Watchdog:
    """Watches from its creation to `close`. A rank that is alone waits for nobody, and nothing is watched.

    Args:
        timeout_seconds: how long a rank's main thread may stay between two calls of `at`.
        peers: all ranks, in their order. group: the one through which they exchange their ports.
    """

    def __init__(self, timeout_seconds: float, peers: list[Peer], group: dist.ProcessGroup | None = None):
        self.timeout, self.interval = timeout_seconds, min(2.0, timeout_seconds / 10)
        self.count, self.mark = 0, "the start"
        self.watched = threading.get_ident()
        self.closing = False
        self.reports: dict[int, dict] = {}  # rank -> the newest report of it
        self.heard: dict[int, float] = {}  # rank -> when that came, in this process's monotonic seconds
        self.thread = None
        if dist.get_world_size() > 1:
            self.rank = dist.get_rank()
            self.meet(peers, group)
            self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
            self.thread.start()

    def at(self, mark: str) -> None:
        """Note what the main thread does next. Ranks are compared by their number of calls."""
        self.mark = mark
        self.count += 1

    def close(self) -> None:
        """End the thread; the other ranks are told that this one did not freeze."""
        if self.thread is not None:
            self.closing = True
            self.socket.sendto(b"", (LOOPBACK[self.socket.family], self.socket.getsockname()[1]))  # wakes the thread
            self.thread.join()
            self.tell(0)
            self.socket.close()
            self.thread = None

    def meet(self, peers: list[Peer], group: dist.ProcessGroup | None) -> None:
        """Open a socket and exchange ports; collective."""
        family, _ = resolve(peers[self.rank].address)
        alone = all(one.machine == peers[self.rank].machine for one in peers)
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((LOOPBACK[family] if alone else "", 0))
        mine = {"port": self.socket.getsockname()[1], "key": secrets.token_hex(8)}
        everyone: list[dict] = [{} for _ in peers]
        dist.all_gather_object(everyone, mine, group=group)
        self.key = everyone[0]["key"]  # keeps the datagrams of anything else out
        self.names = [f"process {one.pid} on {one.host}" for one in peers]
        self.peers = [
            (LOOPBACK[family] if one.machine == peers[self.rank].machine else one.address, other["port"])
            for one, other in zip(peers, everyone, strict=True)
            if one.rank != self.rank
        ]

    def tell(self, still: float) -> None:
        """Send this rank's report to all others, and keep it as one of the reports."""
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
            with contextlib.suppress(OSError):  # a network that is down for the moment
                self.socket.sendto(json.dumps(report).encode(), peer)

    def keep(self, report: dict) -> None:
        """Replace what was known of a rank."""
        self.reports[report["rank"]] = report
        self.heard[report["rank"]] = time.monotonic()

    def listen(self, until: float) -> None:
        """Read reports until that moment, or until `close`."""
        while not self.closing and (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                report = json.loads(self.socket.recv(4096))
            except (TimeoutError, ValueError):  # nothing came, or nothing of ours
                continue
            if isinstance(report, dict) and report.get("key") == self.key:
                self.keep(report)

    def watch(self) -> None:
        """The thread: listen, tell, and end the run once this rank's main thread has stood still for too long."""
        still, count, last = 0.0, self.count, time.monotonic()
        while not self.closing:
            self.tell(still)
            self.listen(last + self.interval)
            now = time.monotonic()
            # time in which this process itself was stopped (Ctrl-Z, a debugger) is not time that it waited
            passed = min(now - last, 2 * self.interval)
            still = still + passed if count == self.count else 0.0
            count, last = self.count, now
            if still > self.timeout + 3 * self.interval and not self.closing:  # every rank has heard who is stuck
                self.end()

    def end(self) -> None:
        """Say who is late, on the lowest rank that is stuck, and leave: the launcher then ends the other ranks."""
        silent_for = {rank: time.monotonic() - heard for rank, heard in self.heard.items()}
        fresh = [rank for rank, age in silent_for.items() if age < self.timeout / 2]
        if self.rank == min(rank for rank in fresh if self.reports[rank]["stuck"]):
            sentence = verdict(self.reports, silent_for, self.names, self.timeout)
            os.write(sys.stderr.fileno(), f"error: {sentence}\n".encode())
        else:
            time.sleep(5 * self.interval)  # the launcher ends all ranks when the first one leaves
        os._exit(EXIT_CODE)


def place_of(thread: int) -> tuple[str, bool]:
    """Where a thread of this process stands (our own line, and the library's below it), and whether in a collective."""
    stack = [
        (Path(frame.f_code.co_filename), f":{line} {frame.f_code.co_name}")
        for frame, line in traceback.walk_stack(sys._current_frames()[thread])
    ]
    waits = any(pair in zip(file.parts, file.parts[1:], strict=False) for file, _ in stack for pair in COLLECTIVES)
    file, line = stack[0]
    innermost = f"{Path(*file.parts[-3:])}{line}"
    for file, line in stack:
        if file.is_relative_to(REPOSITORY) and "site-packages" not in file.parts:
            ours = f"{file.relative_to(REPOSITORY)}{line}"
            return (ours if (file, line) == stack[0] else f"{ours}, in {innermost}"), waits
    return innermost, waits


def verdict(reports: dict[int, dict], silent_for: dict[int, float], names: list[str], timeout: float) -> str:
    """The sentence about the late ranks.

    Args:
        reports: rank -> its newest report; silent_for: rank -> seconds since it came.
        names: of every rank, process and machine.
    """
    minutes = f"{timeout / 60:g}"
    running = [rank for rank, report in reports.items() if not report["closed"]]
    furthest = max(running, key=lambda rank: reports[rank]["count"])
    silent = [rank for rank in running if silent_for[rank] > timeout / 2]
    behind = [rank for rank in running if reports[rank]["count"] < reports[furthest]["count"]]
    waiting = [rank for rank in running if reports[rank]["waits"]]
    outside = [rank for rank in running if rank not in waiting] if waiting else []
    unheard = [rank for rank in range(len(names)) if rank not in reports]

    def stands(rank: int) -> str:
        return f"{reports[rank]['mark']!r} ({reports[rank]['place']})"

    if silent:
        late = {
            rank: f"has given no sign of life for {silent_for[rank]:.0f} s, last at {stands(rank)}" for rank in silent
        }
    elif behind:
        late = {rank: f"is still at {stands(rank)}, rank {furthest} is at {stands(furthest)}" for rank in behind}
    elif outside:
        late = {rank: f"is at {stands(rank)}, rank {waiting[0]} waits at {stands(waiting[0])}" for rank in outside}
    elif unheard:
        late = dict.fromkeys(unheard, "was never heard of (or UDP between the machines is blocked)")
    else:
        all_of_them = "; ".join(f"rank {rank} is at {stands(rank)}" for rank in sorted(running))
        return (
            f"nothing has moved for {minutes} minutes, and no rank is behind the others: {all_of_them}; look at the "
            f"network and the GPUs, or raise --timeout_minutes {minutes}."
        )
    details = "; ".join(f"rank {rank} ({names[rank]}) {what}" for rank, what in sorted(late.items()))
    who = f"rank {' and '.join(str(rank) for rank in sorted(late))}"
    return (
        f"the ranks have waited {minutes} minutes for {who}: {details}; look at what it does there and at its machine, "
        f"or raise --timeout_minutes {minutes}."
    )
