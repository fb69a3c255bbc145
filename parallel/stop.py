"""Graceful stop: after a signal to any rank or to the launcher, all ranks finish their step, save and exit."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

GRACE = 30  # seconds from SIGTERM to SIGKILL: DeepSpeed's launcher, torchrun, and SLURM's default KillWait
SLOW_DISK = 0.5e9  # bytes per second, the slowest assumed disk; the first save measures a slower one


def describe_stop(state_bytes: int) -> list[str]:
    """How to stop this run, in lines to print on rank 0.

    Args:
        state_bytes: size of a resume state.
    """
    lines = [
        f"to stop: kill -TERM {os.getpid()} on {socket.gethostname()} (rank 0); all ranks finish their step, save a "
        f"resume state ({state_bytes / 1e9:,.2f} GB) and exit"
    ]
    if state_bytes > GRACE * SLOW_DISK:
        lines.append(
            f"do not signal the launcher or press Ctrl-C: it kills the ranks after {GRACE} s, which requires a disk "
            f"that writes {state_bytes / GRACE / 1e9:,.1f} GB/s"
        )
    return lines


def describe_slow_state(seconds: float) -> str:
    """A warning that a resume state took longer than a signaled launcher waits; for rank 0."""
    return (
        f"writing the resume state took {seconds:,.0f} s: to stop this run, use kill -TERM {os.getpid()}; a signal to "
        f"the launcher leaves {GRACE} s"
    )


def describe_short_time(seconds: float, previous: Path | None) -> str:
    """A warning about a resume state that takes longer than a signaled launcher may wait.

    Args:
        seconds: expected for the state. previous: the newest complete state.
    """
    fallback = f"the run resumes from {previous}" if previous else "nothing is saved and the run starts from step 0"
    return (
        f"writing the resume state takes about {seconds:,.0f} s: if the signal came through a launcher, it kills the "
        f"ranks {GRACE} s after it, and {fallback}"
    )


class Stopped(Exception):
    """A stop request that all ranks have agreed on. received: number of the signal."""

    def __init__(self, received: int):
        super().__init__(received)
        self.received = received


class StopRequest:
    """SIGTERM, SIGINT, or the end of the launcher, noted by one rank and agreed on by all.

    Args:
        group: the gloo group of all ranks, which does not synchronize GPUs.
    """

    def __init__(self, group: dist.ProcessGroup | None):
        self.received = 0
        self.group = group
        self.launchers = self.find_launchers()
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}

    def close(self) -> None:
        """Restore the former signal handlers, unless there was a signal: this process is then about to end."""
        if not self.received:
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def note(self, number, _frame) -> None:
        """Record a signal; training continues to the end of its step."""
        self.received = number

    @staticmethod
    def find_launchers() -> list[psutil.Process]:
        """The parent processes that belong to DeepSpeed: they may die without signaling their ranks."""
        above = psutil.Process(os.getpid()).parents()[:2]
        return [process for process in above if any("deepspeed" in part for part in process.cmdline()[:4])]

    def launchers_live(self) -> bool:
        """Whether all of them still run; a zombie process does not."""
        return all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self.launchers)

    def agreed(self) -> int:
        """The signal to stop for, the same on every rank; 0 to continue. Every rank calls it equally often."""
        if not self.received and not self.launchers_live():
            self.received = signal.SIGTERM
        flag = torch.tensor(self.received)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return int(flag)

    def check(self) -> None:
        """Raise Stopped on all ranks if any of them has a stop request. Every rank calls it equally often."""
        received = self.agreed()
        if received:
            raise Stopped(received)

    def checked(self, at: Callable[[str], None]) -> Callable[[str], None]:
        """`at`, which then raises Stopped if any rank has a stop request."""

        def checked_at(mark: str) -> None:
            at(mark)
            self.check()

        return checked_at
