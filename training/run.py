"""The ranks of a run as a context: joined, watched, stopped in order, and left again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from training import launch, ranks
from training.agreement import agree_on_command, agree_on_start
from training.command import Command
from training.stop import StopRequest
from training.watchdog import Watchdog


@dataclass
class Run:
    """What watches over a run, the same on every rank. stop: None until `accept_stops`."""

    watchdog: Watchdog
    stop: StopRequest | None = field(default=None)

    def at(self, mark: str) -> None:
        """Note what the main thread does next; every rank calls it equally often."""
        self.watchdog.at(mark)

    def accept_stops(self) -> StopRequest:
        """From now on a signal lets all ranks finish their step and save; before, it ends the process."""
        self.stop = StopRequest(ranks.cpu_group())
        return self.stop


@contextmanager
def join_ranks(read_command: Callable[[], Command]) -> Iterator[tuple[Command, Run]]:
    """Read the command, join the other ranks, and compare what all must have in common; leave them at the end.

    Raises:
        UserError: the command cannot work, or the ranks differ; on every rank the same.
    """
    launch.adopt()
    command = ranks.start_after(read_command)
    safety = command.options.safety
    run = Run(Watchdog(60 * safety.timeout_minutes, ranks.peers(), ranks.cpu_group()))
    try:
        ranks.say(*command.notes)
        agree_on_command(command)
        agree_on_start(command.options.model.init_adapter)
        yield command, run
    finally:
        run.watchdog.close()
    ranks.stop_ranks()
    if run.stop is not None:
        run.stop.close()
