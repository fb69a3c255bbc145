"""End a rank with one sentence when another rank is gone, instead of the traceback of a failed collective."""

import functools
import re
import sys
import time
from collections.abc import Callable

import psutil
import torch.distributed as dist

from errors import await_launcher
from parallel import launch, ranks

# messages of gloo and NCCL, also about torch's store, when the other process is gone
LOST_PEER = re.compile(
    r"gloo/transport.*(Connection (closed|reset) by peer|Connection (refused|timed out)|Broken pipe"
    r"|No route to host|Network is unreachable)"
    r"|ncclRemoteError|[Ff]ailed to recv, got 0 bytes",
    re.DOTALL,
)


def explain_lost_peer(work: Callable) -> Callable:
    """Wrap a function so that a lost rank becomes one line on stderr (once per machine), with exit code 1."""

    @functools.wraps(work)
    def explained(*args, **kwargs):
        try:
            return work(*args, **kwargs)
        except RuntimeError as error:
            if not lost_peer(error):
                raise
            report_lost_peer()
            await_launcher(3)  # the launcher then reports the exit code of the lost rank
            sys.exit(1)

    return explained


def lost_peer(error: BaseException) -> bool:
    """Whether an error means only that another rank is gone, and follows no error of another kind."""
    before = error.__cause__ or error.__context__
    is_one = isinstance(error, dist.DistNetworkError) or LOST_PEER.search(str(error))
    return bool(is_one) and (before is None or lost_peer(before))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def report_lost_peer() -> None:
    """Print which rank is gone, on the lowest remaining rank of this machine."""
    pids = {rank: ranks.peers()[rank].pid for rank in ranks.on_this_machine()}
    give_up = time.monotonic() + 5  # connections end shortly before the process does
    while not (gone := {rank for rank, pid in pids.items() if not is_alive(pid)}) and time.monotonic() < give_up:
        time.sleep(0.1)
    if launch.rank() == min(pids.keys() - gone, default=launch.rank()):
        names = " and ".join(f"rank {rank}" for rank in sorted(gone)) or "a rank on another machine"
        print(
            f"error: rank {launch.rank()} cannot continue, {names} {'are' if len(gone) > 1 else 'is'} gone: see "
            "the messages above; without one, the system killed it, most often for lack of memory.",
            file=sys.stderr,
            flush=True,
        )
