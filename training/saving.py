"""What the loop calls to save: checkpoints of what was trained, and states to resume from."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from checkpoints.position import Position
from checkpoints.resume import DIRECTORY, begin_states, remove_later, state_directories
from checkpoints.state import save_state
from checkpoints.write import copy_beside, remove_old, save_checkpoint, step_of
from modes.directory import Base, side_files
from training import ranks
from training.engine import DTYPES, trained_tensors
from training.guards import write_or_stop
from training.stop import GRACE, SLOW_DISK, describe_short_time, describe_slow_state


def make_saver(
    output_dir: Path,
    base: Base,
    model,
    method,
    *,
    save_total_limit: int | None,
    record: dict,
    needed: int,
    at: Callable[[str], None],
) -> Callable:
    """save(name, epoch, step); every rank calls it.

    Args:
        record: what all checkpoints of the run say.
        needed: bytes of one checkpoint.
        at: is told what comes next, as often on every rank.
    """
    saved: list[Path] = []

    def write_files(directory: Path, tensors) -> None:
        method.save(directory, model, tensors)
        if record["train_type"] == "all":  # a complete model directory
            dtype = str(DTYPES[record["precision"]]).removeprefix("torch.")
            copy_beside(side_files(base), directory, {"torch_dtype": dtype})

    def save(name: str, epoch: int, step: int) -> None:
        directory = output_dir / name
        record_of_step = {**record, "epoch": epoch, "step": step}
        tensors = ranks.in_step(trained_tensors(model), at, f"step {step}: saving")
        write = partial(save_checkpoint, directory, tensors, write_files, record_of_step, ranks.is_main())
        write_or_stop(output_dir, needed, f"checkpoint {name}", write)
        ranks.say(f"saved {directory}")
        if step_of(directory) >= 0:
            saved.append(directory)
            if ranks.is_main():
                saved[:] = remove_old(saved, save_total_limit)

    return save


def make_state_keeper(
    output_dir: Path,
    engine,
    model,
    hooks,
    *,
    identity: dict,
    save_total_limit: int | None,
    needed: int,
    keepers: list[int],
    at: Callable[[str], None],
) -> Callable:
    """keep_state(position, stopping=False); every rank calls it.

    It says when a launcher that was signaled may not leave it the time that it takes; stopping: such a signal came.

    Args:
        hooks: whose `state()` belongs to it (methods/hooks.py).
        identity: what a resumed run must have in common with this one.
        needed: bytes of one state.
        keepers: see `find_keepers`.
        at: is told what comes next, as often on every rank.
    """
    if ranks.is_main():
        begin_states(output_dir)
    keep = max(save_total_limit or 2, 1)
    took: list[float] = []  # seconds of each state

    def keep_state(position: Position, stopping: bool = False) -> None:
        expected = took[-1] if took else needed / SLOW_DISK
        if stopping and expected > GRACE:
            ranks.say(describe_short_time(expected, next(iter(state_directories(output_dir / DIRECTORY)), None)))
        started = time.monotonic()
        contents = {"identity": identity, "extra": hooks.state()}
        write = partial(save_state, output_dir, engine, model, position, keep=keep, at=at, **contents)
        write_or_stop(output_dir, needed, "a resume state", write)
        if ranks.rank() in keepers and not ranks.is_main():  # copies of a run that was given up, on this machine
            remove_later(output_dir, position.step)
        took.append(time.monotonic() - started)
        if took[-1] > GRACE and max(took[:-1], default=0) <= GRACE and not stopping:
            ranks.say(describe_slow_state(took[-1]))

    return keep_state
