"""Stopping in order: a signal to any rank, or to the launcher, lets all ranks finish their step, save and leave."""

import os
import signal

import psutil
import torch
import torch.distributed as dist


class StopRequest:
    """SIGTERM, SIGINT, or the end of the launcher, noted by one rank and agreed on by all.

    Args:
        group: of all ranks, over gloo: asking it makes no GPU wait.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.received = 0
        self.group = group
        self.launchers = self.find_launchers()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number, _frame) -> None:
        """Remember a signal; training goes on to the end of its step."""
        self.received = number

    @staticmethod
    def find_launchers() -> list[psutil.Process]:
        """The processes above this one that belong to DeepSpeed: they may die without telling their ranks."""
        above = psutil.Process(os.getpid()).parents()[:2]
        return [process for process in above if any("deepspeed" in part for part in process.cmdline()[:4])]

    def launchers_live(self) -> bool:
        """Whether all of them still run; one that died and that nobody asked after yet does not."""
        return all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in self.launchers)

    def agreed(self) -> int:
        """The signal to stop for, the same on every rank; 0 to go on. Every rank calls it after every step."""
        if not self.received and not self.launchers_live():
            self.received = signal.SIGTERM
        flag = torch.tensor(self.received)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return int(flag)
