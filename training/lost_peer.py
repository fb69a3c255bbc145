"""How a rank ends when another one is gone: in one sentence, without the traceback of a collective that failed."""

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable

import psutil

from errors import UserError, await_launcher
from training import launch, ranks

# what gloo, NCCL and torch's store say when the process at the other end has vanished
LOST_PEER = re.compile(
    r"gloo/transport.*(Connection (closed|reset) by peer|Connection (refused|timed out)|Broken pipe"
    r"|No route to host|Network is unreachable)"
    r"|ncclRemoteError|failed to recv, got 0 bytes",
    re.DOTALL,
)


def explain_lost_peer(work: Callable) -> Callable:
    """Wrap a function so that a rank that is gone is one line on stderr (once per machine), with exit code 1."""

    @functools.wraps(work)
    def explained(*args, **kwargs):
        try:
            return work(*args, **kwargs)
        except RuntimeError as error:
            if not lost_peer(error):
                raise
            tell_of_lost_peer()
            await_launcher(3)  # it then reports the exit code of the rank that is gone, not of this one
            sys.exit(1)

    return explained


def lost_peer(error: BaseException) -> bool:
    """Whether an error is only that another rank is gone, and came after no error of another kind."""
    before = error.__cause__ or error.__context__
    return bool(LOST_PEER.search(str(error))) and (before is None or lost_peer(before))


def ranks_here() -> set[int]:
    """The ranks of all live processes of this one's launcher."""
    parent = psutil.Process().parent()
    found = set()
    for process in parent.children() if parent else ():
        with contextlib.suppress(psutil.Error, UserError):  # it has just ended, or is no rank
            if process.status() != psutil.STATUS_ZOMBIE and (one := launch.read(process.environ())):
                found.add(one.rank)
    return found


def tell_of_lost_peer() -> None:
    """Print which rank is gone, on the lowest of this machine's ranks that are left."""
    started = set(ranks.on_this_machine())
    give_up = time.monotonic() + 5  # its connections end a little before the process does
    while not (gone := started - ranks_here()) and time.monotonic() < give_up:
        time.sleep(0.1)
    if launch.rank() == min(started - gone, default=launch.rank()):
        names = " and ".join(f"rank {one}" for one in sorted(gone)) or "a rank on another machine"
        print(
            f"error: rank {launch.rank()} cannot go on, {names} is gone: see its own message above; where there is "
            "none, the system killed it, most often for lack of memory.",
            file=sys.stderr,
            flush=True,
        )
