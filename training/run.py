"""The context of a run: connected ranks, watchdog and stop signals, always closed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from checkpoints.resume import Start
from errors import UserError
from parallel import launch, ranks
from parallel.stop import StopRequest
from parallel.watchdog import Watchdog
from training.agreement import agree_on_command, agree_on_start
from training.command import Command
from training.process_file import ProcessFile


@dataclass
class Run:
    """Watchdog and stop request of a run, the same on every rank.

    stop, process: None until `accept_stops`.
    """

    watchdog: Watchdog
    stop: StopRequest | None = field(default=None)
    process: ProcessFile | None = field(default=None)

    def at(self, mark: str) -> None:
        """Record the next phase of the main thread; every rank calls it equally often."""
        self.watchdog.at(mark)

    def accept_stops(self, output_dir: Path, start: Start) -> StopRequest:
        """From now on, all ranks finish their step and save after a signal; before, a signal ends the process.

        Writes process.json, by which the page finds the run.
        """
        self.stop = StopRequest(ranks.cpu_group())
        self.process = ProcessFile(output_dir, start)
        return self.stop

    def conclude(self, outcome: str) -> None:
        """Write how the run ended, if it began; the first outcome counts."""
        if self.process is not None and self.process.facts.get("outcome") is None:
            self.process.write(outcome=outcome)


@contextmanager
def join_ranks(read_command: Callable[[], Command]) -> Iterator[tuple[Command, Run]]:
    """Read the command, connect the ranks and compare their commands; disconnect at the end.

    Raises:
        UserError: the command has conflicts, or the ranks differ; the same on every rank.
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
        run.conclude("failed")
        run.watchdog.close()
    ranks.stop_ranks()
    if run.stop is not None:
        run.stop.close()


def start_after(read_command: Callable[[], Command]) -> Command:
    """Read the command and start the ranks; on one machine they start only if the command has no conflicts.

    On several machines the launchers are independent: a machine that exited alone would leave the others waiting, so
    all exit together.

    Raises:
        UserError: the error of `read_command` on any rank.
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
