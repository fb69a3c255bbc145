"""Choose the resume state of a run: the newest complete one on any machine.

checkpoints/state.py writes and loads the files of a state.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints.output_names import find_checkpoints
from checkpoints.position import Position, ResumeState
from checkpoints.record import check_files, read_record
from checkpoints.state_copies import distribute_state, holders_of_newest, remove_beyond
from data.loading import Step
from data.steps import count_steps
from errors import UserError
from files import remove_whole
from methods.adapter_config import CONFIG_FILE as ADAPTER_FILE
from options.sections import OutputOptions, StepOptions
from parallel.agreement import agree
from parallel.ranks import fail_together, is_main, rank, say, work_first

DIRECTORY, RECORD_FILE = "state", "state.json"
NO_STATE_YET = "no-state-yet"  # an empty file in DIRECTORY until the first state is written
NUMBERS = ("step", "epoch", "samples", "optimizer_steps", "schedule_step", "world_size")
KEYS = {**dict.fromkeys(NUMBERS, int), "same": dict, "files": dict}
KEPT = 2  # number of states on machines that receive copies
# train_type -> the flag with which a new run starts from a checkpoint
START_FLAGS = {"lora": "--init_adapter", "ptuning": "--init_adapter", "all": "--model_name_or_path"}


@dataclass(frozen=True)
class Start:
    """The start of a run.

    state: the state to resume from; None at step 0. total_steps: of the whole run, including those before.
    """

    state: ResumeState | None
    position: Position
    total_steps: int


def remove_later(output_dir: Path, step: int) -> None:
    """Delete states of later steps than `step`."""
    for later in state_directories(output_dir / DIRECTORY):
        if step_in(later) > step:
            remove_whole(later)


def step_in(directory: Path) -> int:
    """The optimizer step in a state's name."""
    return int(directory.name.removeprefix("step-"))


def state_directories(states: Path) -> list[Path]:
    """The step-S directories, newest first."""
    directories = [path for path in states.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(directories, key=step_in, reverse=True)


def read_state(directory: Path) -> ResumeState:
    """Read a complete state.

    Raises:
        UserError: state.json is missing or broken, or a file of the state is missing or truncated.
    """
    record = read_record(directory, RECORD_FILE, KEYS)
    if record is None:
        raise UserError(f"{directory} holds no {RECORD_FILE}: give a run's state as --resume_from_checkpoint, or none.")
    check_files(directory, record)
    return ResumeState(directory, record)


def state_of(directory: Path) -> Path:
    """The resume state of a checkpoint's step; any other directory unchanged.

    Raises:
        UserError: it is a checkpoint without a state, or a foreign adapter.
    """
    record = None if (directory / RECORD_FILE).is_file() else read_record(directory)
    if record is None and not (directory / ADAPTER_FILE).is_file():
        return directory
    states = directory.parent / DIRECTORY
    state = states / f"step-{record.get('step')}" if record else None
    if state and state.is_dir():
        return state
    given, kept_states = f"--resume_from_checkpoint {directory}", state_directories(states)
    start = START_FLAGS.get(record["train_type"] if record else "lora")
    new_run = f"{start} {directory}" if start else "the result of merge_lora.py as --model_name_or_path"
    newest = f"{directory.parent} to resume from {kept_states[0].name}, or " if state and kept_states else ""
    raise UserError(
        f"{given} holds trained values but no resume state{f', and {state} is not there' if state else ''}: give "
        f"{newest}{new_run} to start a new run from these values."
    )


def newest_state(output_dir: Path, resume_from_checkpoint: str) -> ResumeState | None:
    """The newest complete state that this rank can read, or None.

    Args:
        resume_from_checkpoint: "auto" (in output_dir), "none", or a directory.

    Raises:
        UserError: the directory has no complete state.
    """
    if resume_from_checkpoint == "none":
        return None
    if resume_from_checkpoint != "auto":
        given = Path(resume_from_checkpoint)
        candidates = state_directories(given) or state_directories(given / DIRECTORY) or [state_of(given)]
        return read_state(candidates[0])
    for directory in state_directories(output_dir / DIRECTORY):
        try:
            return read_state(directory)
        except UserError as error:
            say(f"{error} Trying the one before it.")
    return None


def check_identity(state: ResumeState, identity: dict) -> None:
    """Raise UserError if a state belongs to another run.

    Args:
        identity: the settings that a resumed run must share with the run that wrote the state, by name.
    """
    before = state.record["same"]
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        differences = "; ".join(f"{name}: {before.get(name)} then, {identity[name]} now" for name in changed)
        continues = f"--precision {before.get('precision')} to continue it, " * (changed == ["precision"])
        raise UserError(
            f"{state.directory} is the state of another run ({differences}): give {continues}another --output_dir, or "
            "--resume_from_checkpoint none to restart from step 0."
        )


def lost_states(output_dir: Path) -> str | None:
    """The error about checkpoints whose resume states are missing; None if there are no such checkpoints."""
    checkpoints = find_checkpoints(output_dir)
    if not checkpoints or (output_dir / DIRECTORY / NO_STATE_YET).exists():
        return None
    return (
        f"--output_dir {output_dir} holds {checkpoints[-1]} but no resume state: give another directory, "
        "or --resume_from_checkpoint none to restart from step 0 and overwrite its checkpoints."
    )


def begin_states(output_dir: Path) -> None:
    """Mark that the run has no state yet, so that it can restart from step 0 if it is killed after a checkpoint."""
    if not state_directories(output_dir / DIRECTORY):
        (output_dir / DIRECTORY).mkdir(parents=True, exist_ok=True)
        (output_dir / DIRECTORY / NO_STATE_YET).touch()


def find_state(
    output_dir: Path, resume_from_checkpoint: str, identity: dict, keepers: list[int], at: Callable[[str], None]
) -> ResumeState | None:
    """The state to resume from, the same on every rank and on every machine's disk; None for step 0. Collective.

    Args:
        resume_from_checkpoint: see `newest_state`. identity: see `check_identity`. keepers, at: see `distribute_state`.

    Raises:
        UserError: no machine has a complete state in the directory, or the state belongs to another run.
    """
    seen, problem = None, None
    try:
        seen = newest_state(output_dir, resume_from_checkpoint)
    except UserError as error:
        problem = str(error)
    holders = holders_of_newest(seen)
    if not holders:
        if is_main() and resume_from_checkpoint == "auto":
            problem = problem or lost_states(output_dir)
        fail_together(problem)
        return None

    def check_holder() -> None:
        if seen is not None:
            check_identity(seen, identity)

    work_first(check_holder, rank() in holders)
    state = distribute_state(seen, holders, output_dir / DIRECTORY, keepers, at)
    work_first(lambda: check_files(state.directory, state.record), mine=True)
    if rank() in keepers and rank() != 0:  # rank 0 removes old states when it writes
        remove_beyond(state_directories(output_dir / DIRECTORY), KEPT)
    return state


def find_start(
    output: OutputOptions,
    identity: dict,
    plan_of: Callable[[int, int], list[Step]],
    steps: StepOptions,
    *,
    steps_per_epoch: int,
    keepers: list[int],
    at: Callable[[str], None],
) -> Start:
    """The start of the run, the same on every rank. Collective.

    Args:
        identity: see `check_identity`.
        plan_of: (epoch, samples to skip) -> the remaining optimizer steps of an epoch.
        keepers, at: see `distribute_state`.
    """
    state = find_state(Path(output.output_dir), output.resume_from_checkpoint, identity, keepers, at)
    position = state.position if state else Position()
    to_come = len(plan_of(position.epoch, position.samples)) if state else steps_per_epoch
    to_come += count_steps(steps.num_train_epochs, steps_per_epoch) - position.epoch * steps_per_epoch
    total_steps = steps.max_steps or position.step + max(to_come, 0)
    agree({**asdict(position), "the number of steps": total_steps}, "copy the same files to every machine")
    return Start(state, position, total_steps)
