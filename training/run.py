"""The ranks of a run as a context: joined, watched, stopped in order, and left again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from errors import UserError
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
    command = start_after(read_command)
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


def start_after(read_command: Callable[[], Command]) -> Command:
    """The command of this run, once the ranks are started; on one machine they start only if it can work.

    On several machines the launchers know nothing of one another: a machine that ended by itself would leave the others
    waiting, so all end together.

    Raises:
        UserError: what `read_command` raised on any rank.
    """
    problem, command = None, None
    try:
        command = read_command()
    except UserError as error:
        if not launch.on_several_machines():
            raise
        problem = str(error)
    ranks.start_ranks(timedelta(minutes=command.options.safety.timeout_minutes if command else 30))
    ranks.fail_together(problem)
    assert command is not None, "this rank has a problem, or a command"
    return command
