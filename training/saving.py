"""Functions with which the loop saves: checkpoints of the trained parameters, and resume states."""

import time
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from checkpoints.position import Position
from checkpoints.resume import DIRECTORY, begin_states, remove_later, state_directories
from checkpoints.side_files import copy_beside
from checkpoints.space import check_space, write_or_stop
from checkpoints.state import save_state
from checkpoints.write import remove_old, save_checkpoint, step_of
from methods.hooks import Hooks
from methods.method import Method
from modes.directory import Base
from options.config_file import write_config
from options.sections import OutputOptions
from parallel import ranks
from parallel.stop import GRACE, SLOW_DISK, describe_short_time, describe_slow_state
from parallel.zero import trained_tensors
from shards import DTYPES
from training.command import Command

CONFIG_FILE = "run.yaml"
Save = Callable[[str, int, int], None]  # name, epoch and step of a checkpoint
KeepState = Callable[..., None]  # position, stopping=False


def make_saver(
    options: OutputOptions,
    base: Base,
    model: PreTrainedModel,
    method: Method,
    *,
    record: dict,
    needed: int,
    at: Callable[[str], None],
) -> Callable[[str, int, int], None]:
    """Return save(name, epoch, step), which every rank calls.

    Args:
        record: the record of all checkpoints of the run.
        needed: bytes of one checkpoint.
        at: called with the name of the next phase, equally often on every rank.
    """
    output_dir = Path(options.output_dir)
    saved: list[Path] = []

    def write_files(directory: Path, tensors) -> None:
        method.save(directory, model, tensors)
        if record["train_type"] == "all":  # a complete model directory
            dtype = str(DTYPES[record["precision"]]).removeprefix("torch.")
            copy_beside(base, directory, {"torch_dtype": dtype})

    def save(name: str, epoch: int, step: int) -> None:
        directory = output_dir / name
        record_of_step = {**record, "epoch": epoch, "step": step}
        tensors = ranks.in_step(trained_tensors(model), at, f"step {step}: saving")

        def write() -> None:
            save_checkpoint(directory, tensors, write_files, record_of_step, ranks.is_main())

        write_or_stop(output_dir, needed, f"checkpoint {name}", write)
        ranks.say(f"saved {directory}")
        if step_of(directory) >= 0:
            saved.append(directory)
            if ranks.is_main():
                saved[:] = remove_old(saved, options.save_total_limit)

    return save


def make_state_keeper(
    options: OutputOptions,
    engine,
    model: PreTrainedModel,
    hooks: Hooks,
    *,
    identity: dict,
    needed: int,
    keepers: list[int],
    at: Callable[[str], None],
) -> Callable[..., None]:
    """Return keep_state(position, stopping=False), which every rank calls.

    It warns if the state may take longer than a signaled launcher waits; stopping: whether there was such a signal.

    Args:
        hooks: their `state()` is saved, too (methods/hooks.py).
        identity: the settings that a resumed run must share.
        needed: bytes of one state.
        keepers: see `find_keepers`.
        at: called with the name of the next phase, equally often on every rank.
    """
    output_dir = Path(options.output_dir)
    if ranks.is_main():
        begin_states(output_dir)
    keep = max(options.save_total_limit or 2, 1)
    took: list[float] = []  # seconds of each state

    def keep_state(position: Position, stopping: bool = False) -> None:
        expected = took[-1] if took else needed / SLOW_DISK
        if stopping and expected > GRACE:
            ranks.say(describe_short_time(expected, next(iter(state_directories(output_dir / DIRECTORY)), None)))
        started = time.monotonic()

        def write() -> None:
            save_state(
                output_dir, engine, model, position, keep=keep, at=at, identity=identity, extra=hooks.state()
            )  # fmt: skip

        write_or_stop(output_dir, needed, "a resume state", write)
        if ranks.rank() in keepers and not ranks.is_main():  # copies of an abandoned run, on this machine
            remove_later(output_dir, position.step)
        took.append(time.monotonic() - started)
        if took[-1] > GRACE and max(took[:-1], default=0) <= GRACE and not stopping:
            ranks.say(describe_slow_state(took[-1]))

    return keep_state


def no_checkpoint(name: str, epoch: int, step: int) -> None:
    """Replaces the function of `make_saver`; writes nothing."""


def no_state(position: Position, stopping: bool = False) -> None:
    """Replaces the function of `make_state_keeper`; writes nothing."""


SAVES_NOTHING: tuple[Save, KeepState] = no_checkpoint, no_state


def check_disk(command: Command) -> None:
    """Raise UserError on every rank if the disk has too little space for a checkpoint and a resume state."""
    check_space(Path(command.options.output.output_dir), sum(command.save_bytes), "a checkpoint with its resume state")


def make_savers(
    command: Command,
    engine,
    model: PreTrainedModel,
    hooks: Hooks,
    *,
    identity: dict,
    keepers: list[int],
    at: Callable[[str], None],
) -> tuple[Save, KeepState]:
    """(`make_saver`, `make_state_keeper`) of a run; writes its run.yaml."""
    output, (checkpoint_bytes, state_bytes) = command.options.output, command.save_bytes
    if ranks.is_main():
        Path(output.output_dir).mkdir(parents=True, exist_ok=True)
        write_config(Path(output.output_dir) / CONFIG_FILE, command.complete_sections, "train.py")
    save = make_saver(
        output, command.base, model, command.options.method, record=command.record(), needed=checkpoint_bytes, at=at
    )
    keep_state = make_state_keeper(
        output, engine, model, hooks, identity=identity, needed=state_bytes, keepers=keepers, at=at
    )
    return save, keep_state
