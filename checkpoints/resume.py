"""Exact resume: everything a run needs to go on as if it had never stopped.

output_dir/state/step-S/
    state*.safetensors   per trained tensor: float32 value, exp_avg, exp_avg_sq, whole, whatever rank held which part;
                         and what the method needs beside them
    rng.safetensors      each rank's generators
    state.json           position in the data, optimiser steps, loss scale, what must not change; written last

Tensors are whole and named, so a state fits any number of ranks, any ZeRO stage (1 to 3), offloaded or not, CPUs and
GPUs. On the same CPU ranks the losses are bit-identical to those of a run that never stopped; on GPUs up to the order
in which attention kernels add. Nothing in it is unpickled.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.utils import is_zero_param
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save_file

from checkpoints.output_names import find_checkpoints
from checkpoints.record import check_files, read_record
from checkpoints.state_copies import distribute_state, holders_of_newest, remove_beyond
from checkpoints.write import remove_leftovers, remove_whole, save_checkpoint
from errors import UserError
from methods.adapter_config import CONFIG_FILE as ADAPTER_FILE
from shards import read_tensor, tensor_files, write_shards
from training.agreement import agree
from training.engine import fill
from training.loss_scaling import load_scaler_state, scaler_state
from training.ranks import fail_together, in_step, is_main, rank, say, work_first, world_size
from training.steps import count_steps
from training.summary import full_shape

DIRECTORY, RECORD_FILE, STEM = "state", "state.json", "state"
NO_STATE_YET = "no-state-yet"  # an empty file in DIRECTORY until the first state is written
EXTRA = "method/"  # in front of the names of a method's own tensors
MOMENTS = ("exp_avg", "exp_avg_sq")
NUMBERS = ("step", "epoch", "samples", "optimizer_steps", "schedule_step", "world_size")
KEPT = 2  # states on machines that receive copies
START = {"step": 0, "epoch": 1, "samples": 0, "pending": False}  # the position of a run that begins
# train_type -> the flag by which a new run starts from a checkpoint
START_FLAGS = {"lora": "--init_adapter", "ptuning": "--init_adapter", "all": "--model_name_or_path"}
KEYS = {**dict.fromkeys(NUMBERS, int), "same": dict, "files": dict}


def link_moments(engine) -> None:
    """Let deepspeed.utils find the optimiser's moments: 0.19.8 links those of the first parameter group only."""
    if engine.zero_optimization_stage() != 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def state_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ("fp32/NAME" or "MOMENT/NAME", CPU tensor) of every trained parameter: whole on rank 0, empty elsewhere.

    Collective: each rank sends what it owns of a tensor to rank 0, and no other rank ever holds a whole one.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    sizes: list[list[int]] = [[] for _ in range(world_size())]
    dist.all_gather_object(sizes, [owned_values(parameter) for _, parameter in trained])
    for (name, parameter), of_ranks in zip(trained, zip(*sizes, strict=True), strict=True):
        for key in (None, *MOMENTS):
            yield f"{key or 'fp32'}/{name}", gather_on_main(parameter, key, list(of_ranks))


def owned_values(parameter: torch.nn.Parameter) -> int:
    """Number of values of a trained parameter that this rank's optimizer updates, with ZeRO-3's padding."""
    if is_zero_param(parameter):
        return parameter.partition_numel()
    return parameter._hp_mapping.lp_fragment_address.numel if parameter._hp_mapping else 0


def owned_part(parameter: torch.nn.Parameter, key: str | None) -> torch.Tensor:
    """These values in float32, flat: of a moment, or (None) of the parameter itself."""
    if is_zero_param(parameter):
        return safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
    return parameter._hp_mapping.get_hp_fragment(key) if parameter._hp_mapping else torch.empty(0)


def gather_on_main(parameter: torch.nn.Parameter, key: str | None, sizes: list[int]) -> torch.Tensor:
    """The whole float32 CPU tensor on rank 0, an empty one on the others.

    Args:
        key: see `owned_part`.
        sizes: `owned_values` of each rank; their parts follow one another in the order of the ranks.
    """
    part = owned_part(parameter, key)
    if world_size() == 1:
        whole = part.to("cpu", torch.float32, copy=True)
    else:
        received = sizes if is_main() else [0] * len(sizes)
        whole = torch.empty(sum(received), dtype=torch.float32, device=parameter.device)
        sent = [part.numel()] + [0] * (len(sizes) - 1)
        dist.all_to_all_single(whole, part.to(parameter.device, torch.float32), received, sent)
        whole = whole.cpu()
    shape = full_shape(parameter)
    return whole[: shape.numel()].view(shape) if is_main() else whole


def generators() -> dict[str, torch.Tensor]:
    """The state of this rank's generators, as bytes."""
    states = {f"cpu-{rank()}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"cuda-{rank()}"] = torch.cuda.get_rng_state()
    return states


def save_state(
    output_dir: Path,
    engine,
    model,
    *,
    step: int,
    epoch: int,
    samples: int,
    pending: bool,
    same: dict,
    keep: int,
    at: Callable[[str], None],
    extra: Iterable[tuple[str, torch.Tensor]] = (),
) -> None:
    """Write output_dir/state/step-S and remove the oldest beyond `keep`. Every rank calls it; rank 0 writes.

    States of later steps are those of a run that was given up (it was started anew, or from an earlier state): they go.

    Args:
        samples: how many of the epoch's samples were seen.
        pending: whether the evaluation and the checkpoint of this step are still to be made (training/after_step.py).
        same: what a resumed run must have in common with this one.
        at: is told what comes next, as often on every rank.
        extra: what the method needs beside the trained tensors, read on rank 0 only; `extra_tensors` reads it back.
    """
    optimizer = engine.optimizer.optimizer
    if not optimizer.state:  # fp16: no step was taken yet, all of them overflowed
        return
    link_moments(engine)
    everyone: list[dict] = [{} for _ in range(world_size())]
    dist.all_gather_object(everyone, generators())
    record = {
        "format": 1,
        "step": step,
        "epoch": epoch,
        "samples": samples,
        "pending": pending,
        "optimizer_steps": int(next(iter(optimizer.state.values()))["step"]),
        "schedule_step": engine.lr_scheduler.last_epoch,
        "world_size": world_size(),
        "same": same,
    }
    if engine.fp16_enabled():
        record["loss_scaler"] = scaler_state(engine)

    def write_files(directory: Path, tensors: Iterator) -> None:
        write_shards(tensors, directory, STEM)
        save_file({name: state for one in everyone for name, state in one.items()}, directory / "rng.safetensors")

    states = output_dir / DIRECTORY
    if is_main():
        remove_later(output_dir, step)
    of_method = ((EXTRA + name, tensor) for name, tensor in (extra if is_main() else ()))
    tensors = chain(in_step(state_tensors(model), at, f"step {step}: saving"), of_method)
    save_checkpoint(states / f"step-{step}", tensors, write_files, record, is_main(), RECORD_FILE)
    if is_main():
        (states / NO_STATE_YET).unlink(missing_ok=True)
        for old in state_directories(states)[keep:]:
            remove_whole(old)
        remove_leftovers(states, "step-*")
        remove_leftovers(output_dir, "epoch-*-step-*")


def remove_later(output_dir: Path, step: int) -> None:
    """Delete states of later steps than that."""
    for later in state_directories(output_dir / DIRECTORY):
        if step_in(later) > step:
            remove_whole(later)


def step_in(directory: Path) -> int:
    """The optimiser step in a state's name."""
    return int(directory.name.removeprefix("step-"))


def state_directories(states: Path) -> list[Path]:
    """The step-S directories, newest first."""
    found = [path for path in states.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_in, reverse=True)


def read_state(directory: Path) -> dict:
    """state.json of a whole state.

    Raises:
        UserError: it is missing or broken, or a file of the state is missing or cut short.
    """
    record = read_record(directory, RECORD_FILE, KEYS)
    if record is None:
        raise UserError(f"{directory} holds no {RECORD_FILE}: give a run's state as --resume_from_checkpoint, or none.")
    check_files(directory, record)
    return record


def state_of(directory: Path) -> Path:
    """The state of a checkpoint's step, which stands beside the checkpoint; any other directory as it is.

    Raises:
        UserError: it is a checkpoint whose state is not there, or an adapter from elsewhere.
    """
    record = None if (directory / RECORD_FILE).is_file() else read_record(directory)
    if record is None and not (directory / ADAPTER_FILE).is_file():
        return directory
    states = directory.parent / DIRECTORY
    state = states / f"step-{record.get('step')}" if record else None
    if state and state.is_dir():
        return state
    given, found = f"--resume_from_checkpoint {directory}", state_directories(states)
    start = START_FLAGS.get(record["train_type"] if record else "lora")
    new_run = f"{start} {directory}" if start else "what merge_lora.py makes of it as --model_name_or_path"
    newest = f"{directory.parent} to resume from {found[0].name}, or " if state and found else ""
    raise UserError(
        f"{given} holds trained values but no resume state{f', and {state} is not there' if state else ''}: give "
        f"{newest}{new_run} to start a new run from these values."
    )


def newest_state(output_dir: Path, resume_from_checkpoint: str) -> tuple[Path, dict] | None:
    """The newest whole state that this rank sees, or None.

    Args:
        resume_from_checkpoint: "auto" (in output_dir), "none", or a directory.

    Raises:
        UserError: the directory holds no whole state.
    """
    if resume_from_checkpoint == "none":
        return None
    if resume_from_checkpoint != "auto":
        given = Path(resume_from_checkpoint)
        candidates = state_directories(given) or state_directories(given / DIRECTORY) or [state_of(given)]
        return candidates[0], read_state(candidates[0])
    for directory in state_directories(output_dir / DIRECTORY):
        try:
            return directory, read_state(directory)
        except UserError as error:
            say(f"{error} The one before it is tried.")
    return None


def check_same(directory: Path, record: dict, same: dict) -> None:
    """Raise UserError if a state is of a run that differs in `same`."""
    changed = [name for name in same if record["same"].get(name) != same[name]]
    if changed:
        differences = "; ".join(f"{name}: {record['same'].get(name)} then, {same[name]} now" for name in changed)
        continues = f"--precision {record['same'].get('precision')} to continue it, " * (changed == ["precision"])
        raise UserError(
            f"{directory} is the state of another run ({differences}): give {continues}another --output_dir, or "
            "--resume_from_checkpoint none to start anew."
        )


def lost_states(output_dir: Path) -> str | None:
    """The sentence about checkpoints that are there without the states that were written with them; None without."""
    checkpoints = find_checkpoints(output_dir)
    if not checkpoints or (output_dir / DIRECTORY / NO_STATE_YET).exists():
        return None
    return (
        f"--output_dir {output_dir} holds {checkpoints[-1]} but no resume state to continue from: give another "
        "directory, or --resume_from_checkpoint none to start anew and overwrite its checkpoints."
    )


def begin_states(output_dir: Path) -> None:
    """Note that the run has no state yet: killed after its first checkpoint, it can begin again at step 0."""
    if not state_directories(output_dir / DIRECTORY):
        (output_dir / DIRECTORY).mkdir(parents=True, exist_ok=True)
        (output_dir / DIRECTORY / NO_STATE_YET).touch()


def find_state(
    output_dir: Path, resume_from_checkpoint: str, same: dict, keepers: list[int], at: Callable[[str], None]
) -> tuple[Path, dict] | None:
    """The state to go on from, the same on every rank and there on every machine; None to start anew. Collective.

    Args:
        resume_from_checkpoint: see `newest_state`. keepers, at: see `distribute_state`.

    Raises:
        UserError: no machine holds a whole state in the directory, or the state is of a run that differs in `same`.
    """
    found, problem = None, None
    try:
        found = newest_state(output_dir, resume_from_checkpoint)
    except UserError as error:
        problem = str(error)
    holders = holders_of_newest(found)
    if not holders:
        if is_main() and resume_from_checkpoint == "auto":
            problem = problem or lost_states(output_dir)
        fail_together(problem)
        return None
    work_first(lambda: check_same(*found, same), rank() in holders)
    found = distribute_state(found, holders, output_dir / DIRECTORY, keepers, at)
    work_first(lambda: check_files(*found), mine=True)
    if rank() in keepers and rank() != 0:  # rank 0 removes old ones when it writes
        remove_beyond(state_directories(output_dir / DIRECTORY), KEPT)
    return found


def find_start(
    output_dir: Path,
    resume_from_checkpoint: str,
    same: dict,
    plan_of: Callable,
    *,
    steps_per_epoch: int,
    num_train_epochs: float,
    max_steps: int | None,
    keepers: list[int],
    at: Callable[[str], None],
) -> tuple[tuple[Path, dict] | None, dict[str, int], int]:
    """(the state to go on from or None, the position in the data, the steps of the whole run). Collective.

    Args:
        same: what a state must have in common with this run.
        plan_of: (epoch=, skip=samples) -> the optimiser steps of the rest of an epoch.
        keepers, at: see `distribute_state`.
    """
    found = find_state(output_dir, resume_from_checkpoint, same, keepers, at)
    position = {name: found[1].get(name, value) for name, value in START.items()} if found else START
    to_come = len(plan_of(epoch=position["epoch"], skip=position["samples"])) if found else steps_per_epoch
    to_come += count_steps(num_train_epochs, steps_per_epoch) - position["epoch"] * steps_per_epoch
    total_steps = max_steps or position["step"] + max(to_come, 0)
    agree({**position, "the number of steps": total_steps}, "copy the same files to every machine")
    return found, position, total_steps


def load_state(engine, model: torch.nn.Module, directory: Path, record: dict, at: Callable[[str], None]) -> None:
    """Put a state into a fresh engine: values, moments, steps, schedule, loss scale and this rank's generators.

    Args:
        at: is told what comes next, as often on every rank.
    """
    optimizer = engine.optimizer.optimizer
    partitions = (
        engine.optimizer.fp32_partitioned_groups_flat
        if engine.zero_optimization_stage() == 3
        else engine.optimizer.single_partition_of_fp32_groups
    )
    for flat in partitions:  # what the optimiser would make at its first step
        steps = torch.tensor(float(record["optimizer_steps"]), device=flat.device)
        optimizer.state[flat] = {"step": steps, **{key: torch.zeros_like(flat) for key in MOMENTS}}
    link_moments(engine)

    files = tensor_files(directory, STEM)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            at(f"loading the state of {name}")
            value = read_tensor(files, f"fp32/{name}")
            moments = {key: read_tensor(files, f"{key}/{name}") for key in MOMENTS}
            if is_zero_param(parameter):
                safe_set_local_fp32_param(parameter, local_part(parameter, value))
                for key, moment in moments.items():
                    safe_set_local_optimizer_state(parameter, local_part(parameter, moment), key)
                fill(parameter, value)  # nothing is gathered before the first forward
            else:
                safe_set_full_fp32_param(parameter, value)
                for key, moment in moments.items():
                    safe_set_full_optimizer_state(parameter, moment, key)
                parameter.data.copy_(value)

    schedule = engine.lr_scheduler
    schedule.last_epoch = record["schedule_step"]
    for group, rate in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
        group["lr"] = rate
    if engine.fp16_enabled():
        load_scaler_state(engine, record["loss_scaler"])
    engine.global_steps = record["step"]
    if record["world_size"] == world_size():
        set_generators(directory / "rng.safetensors")


def set_generators(path: Path) -> None:
    """Put the states of this rank's generators back; a run on CPUs has written none of a GPU, and the other way round
    there is no GPU that takes it."""
    states = load_file(path)
    if f"cpu-{rank()}" in states:
        torch.set_rng_state(states[f"cpu-{rank()}"])
    if f"cuda-{rank()}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda-{rank()}"])


def extra_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """What `save_state` was given as `extra`."""
    files = tensor_files(directory, STEM)
    return {name.removeprefix(EXTRA): read_tensor(files, name) for name in files if name.startswith(EXTRA)}


def local_part(parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
    """This rank's piece of a tensor that ZeRO-3 cuts into equal pieces, the last ones padded."""
    size = parameter.partition_numel()
    flat = whole.flatten()
    piece = flat[rank() * size : (rank() + 1) * size]
    return torch.nn.functional.pad(piece, (0, size - piece.numel()))
