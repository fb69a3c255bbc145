"""How an entry point ends on what is no bug of ours: a user's mistake, a rank that is gone, Ctrl-C."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable

import psutil

# what gloo, NCCL and torch's store say when the process at the other end has vanished
LOST_PEER = re.compile(
    r"gloo/transport.*(Connection (closed|reset) by peer|Connection refused|Broken pipe)"
    r"|ncclRemoteError|failed to recv, got 0 bytes",
    re.DOTALL,
)


class UserError(ValueError):
    """What a user can mend, in one sentence: the value, its flag or file:line, and the remedy.

    Entry points print it without a traceback and exit with code 2.
    """


def run(main: Callable[[], None]) -> None:
    """Call an entry point; what is no bug becomes one line on stderr (once per machine) instead of a traceback.

    Exit codes: 2 after a UserError, 1 where another rank is gone, 130 after Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            await_launcher(20)  # most errors are those of all ranks: the first one says it and leaves
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        tell_of_lost_peer()
        await_launcher(3)  # it then reports the exit code of the rank that is gone, not of this one
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def await_launcher(seconds: float) -> None:
    """Sleep; the launcher ends all ranks when the first one leaves."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training notes it and goes on
    time.sleep(seconds)


def lost_peer(error: BaseException) -> bool:
    """Whether an error is only that another rank is gone, and came after no error of another kind."""
    before = error.__cause__ or error.__context__
    return bool(LOST_PEER.search(str(error))) and (before is None or lost_peer(before))


def ranks_here() -> set[int]:
    """LOCAL_RANK of every live process of this one's launcher."""
    parent = psutil.Process().parent()
    found = set()
    for process in parent.children() if parent else ():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(int(process.environ().get("LOCAL_RANK", "-1")))
    return found - {-1}


def tell_of_lost_peer() -> None:
    """Print which rank is gone, on the lowest of this machine's ranks that are left."""
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    started = set(range(int(os.environ.get("LOCAL_SIZE") or os.environ["LOCAL_WORLD_SIZE"])))
    give_up = time.monotonic() + 5  # its connections end a little before the process does
    while not (gone := started - ranks_here()) and time.monotonic() < give_up:
        time.sleep(0.1)
    if local_rank == min(started - gone, default=local_rank):
        names = " and ".join(f"rank {rank - local_rank + one}" for one in sorted(gone)) or "a rank on another machine"
        print(
            f"error: rank {rank} cannot go on, {names} is gone: see its own message above; where there is none, the "
            "system killed it, most often for lack of memory.",
            file=sys.stderr,
            flush=True,
        )
