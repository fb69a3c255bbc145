"""Resume states: everything that a run needs to resume exactly.

output_dir/state/step-S/
    state*.safetensors   per trained tensor: float32 value, exp_avg, exp_avg_sq, each gathered from all ranks;
                         and the method's own state
    rng.safetensors      each rank's random number generators
    state.json           position in the data, optimizer steps, loss scale, identity of the run; written last

Tensors are whole and named, so a state can be loaded with any number of ranks, any ZeRO stage (1 to 3), with or without
offload, on CPUs and GPUs. On the same CPU ranks the losses are bit-identical to those of an uninterrupted run; on GPUs
up to the summation order of attention kernels. Nothing in it is unpickled.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

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

from checkpoints.position import Position, ResumeState
from checkpoints.resume import DIRECTORY, NO_STATE_YET, RECORD_FILE, remove_later, state_directories
from checkpoints.write import save_checkpoint
from files import remove_leftovers, remove_whole
from parallel.loss_scaling import load_scaler_state, scaler_state
from parallel.ranks import in_step, is_main, rank, world_size
from parallel.zero import fill, full_shape
from shards import read_tensor, tensor_files, write_shards

DeepSpeedParameter = Any  # a torch.nn.Parameter with the attributes that DeepSpeed adds to it
STEM, RNG_FILE = "state", "rng.safetensors"
EXTRA = "method/"  # prefix of the names of a method's own tensors
MOMENTS = ("exp_avg", "exp_avg_sq")


def link_moments(engine) -> None:
    """Make deepspeed.utils find the optimizer's moments: 0.19.8 links only those of the first parameter group."""
    if engine.zero_optimization_stage() != 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def state_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ("fp32/NAME" or "MOMENT/NAME", CPU tensor) of every trained parameter: whole on rank 0, empty on others.

    Collective: each rank sends its part of a tensor to rank 0, and no other rank ever holds a whole one.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    sizes: list[list[int]] = [[] for _ in range(world_size())]
    dist.all_gather_object(sizes, [owned_values(parameter) for _, parameter in trained])
    for (name, parameter), of_ranks in zip(trained, zip(*sizes, strict=True), strict=True):
        for key in (None, *MOMENTS):
            yield f"{key or 'fp32'}/{name}", gather_on_main(parameter, key, list(of_ranks))


def owned_values(parameter: DeepSpeedParameter) -> int:
    """Number of values of a trained parameter that this rank's optimizer updates, with ZeRO-3's padding."""
    if is_zero_param(parameter):
        return parameter.partition_numel()
    return parameter._hp_mapping.lp_fragment_address.numel if parameter._hp_mapping else 0


def owned_part(parameter: DeepSpeedParameter, key: str | None) -> torch.Tensor:
    """The flat float32 values that this rank owns of a moment, or of the parameter itself (None)."""
    if is_zero_param(parameter):
        return safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
    return parameter._hp_mapping.get_hp_fragment(key) if parameter._hp_mapping else torch.empty(0)


def gather_on_main(parameter: DeepSpeedParameter, key: str | None, sizes: list[int]) -> torch.Tensor:
    """Gather the whole float32 CPU tensor on rank 0; the others return an empty one.

    Args:
        key: see `owned_part`.
        sizes: `owned_values` of each rank; the parts are concatenated in rank order.
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
    position: Position,
    *,
    identity: dict,
    keep: int,
    at: Callable[[str], None],
    extra: Iterable[tuple[str, torch.Tensor]] = (),
) -> None:
    """Write output_dir/state/step-S and remove the oldest beyond `keep`. Every rank calls it; rank 0 writes.

    States of later steps belong to an abandoned run (it was restarted from step 0, or resumed from an earlier state)
    and are removed.

    Args:
        identity: the settings that a resumed run must share.
        at: called with the name of the next phase, equally often on every rank.
        extra: the method's own state, read on rank 0 only; `extra_tensors` reads it back.
    """
    if not engine.optimizer.optimizer.state:  # fp16: all steps so far overflowed
        return
    link_moments(engine)
    states_of_ranks: list[dict] = [{} for _ in range(world_size())]
    dist.all_gather_object(states_of_ranks, generators())

    def write_files(directory: Path, tensors: Iterator) -> None:
        write_shards(tensors, directory, STEM)
        save_file({name: state for of_rank in states_of_ranks for name, state in of_rank.items()}, directory / RNG_FILE)

    states = output_dir / DIRECTORY
    if is_main():
        remove_later(output_dir, position.step)
    of_method = ((EXTRA + name, tensor) for name, tensor in (extra if is_main() else ()))
    tensors = chain(in_step(state_tensors(model), at, f"step {position.step}: saving"), of_method)
    record = make_state_record(engine, position, identity)
    save_checkpoint(states / f"step-{position.step}", tensors, write_files, record, is_main(), RECORD_FILE)
    if is_main():
        (states / NO_STATE_YET).unlink(missing_ok=True)
        for old in state_directories(states)[keep:]:
            remove_whole(old)
        remove_leftovers(states, "step-*")
        remove_leftovers(output_dir, "epoch-*-step-*")


def make_state_record(engine, position: Position, identity: dict) -> dict:
    """The content of state.json, without the sizes of the files."""
    record = {
        "format": 1,
        **asdict(position),
        "optimizer_steps": int(next(iter(engine.optimizer.optimizer.state.values()))["step"]),
        "schedule_step": engine.lr_scheduler.last_epoch,
        "world_size": world_size(),
        "same": identity,
    }
    if engine.fp16_enabled():
        record["loss_scaler"] = scaler_state(engine)
    return record


def load_state(engine, model: torch.nn.Module, state: ResumeState, at: Callable[[str], None]) -> None:
    """Load a state into a new engine: values, moments, steps, schedule, loss scale and this rank's generators.

    Args:
        at: called with the name of the next phase, equally often on every rank.
    """
    optimizer, record = engine.optimizer.optimizer, state.record
    partitions = (
        engine.optimizer.fp32_partitioned_groups_flat
        if engine.zero_optimization_stage() == 3
        else engine.optimizer.single_partition_of_fp32_groups
    )
    for flat in partitions:  # as the optimizer would create them at its first step
        steps = torch.tensor(float(record["optimizer_steps"]), device=flat.device)
        optimizer.state[flat] = {"step": steps, **{key: torch.zeros_like(flat) for key in MOMENTS}}
    link_moments(engine)

    files = tensor_files(state.directory, STEM)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            at(f"loading the state of {name}")
            moments = {key: read_tensor(files, f"{key}/{name}") for key in MOMENTS}
            set_parameter(parameter, read_tensor(files, f"fp32/{name}"), moments)

    schedule = engine.lr_scheduler
    schedule.last_epoch = record["schedule_step"]
    for group, rate in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
        group["lr"] = rate
    if engine.fp16_enabled():
        load_scaler_state(engine, record["loss_scaler"])
    engine.global_steps = record["step"]
    if record["world_size"] == world_size():
        set_generators(state.directory / RNG_FILE)


def set_parameter(parameter: DeepSpeedParameter, value: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
    """Set a trained parameter, its float32 copy and its moments, from whole tensors on the CPU."""
    if is_zero_param(parameter):
        safe_set_local_fp32_param(parameter, local_part(parameter, value))
        for key, moment in moments.items():
            safe_set_local_optimizer_state(parameter, local_part(parameter, moment), key)
        fill(parameter, value)  # parameters are gathered only in the first forward
    else:
        safe_set_full_fp32_param(parameter, value)
        for key, moment in moments.items():
            safe_set_full_optimizer_state(parameter, moment, key)
        parameter.data.copy_(value)


def set_generators(path: Path) -> None:
    """Restore this rank's generators; a GPU's only if both the state and this run have one."""
    states = load_file(path)
    if f"cpu-{rank()}" in states:
        torch.set_rng_state(states[f"cpu-{rank()}"])
    if f"cuda-{rank()}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda-{rank()}"])


def extra_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """The `extra` tensors of `save_state`."""
    files = tensor_files(directory, STEM)
    return {name.removeprefix(EXTRA): read_tensor(files, name) for name in files if name.startswith(EXTRA)}


def local_part(parameter: DeepSpeedParameter, whole: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that ZeRO-3 partitions equally, with padding at the end."""
    size = parameter.partition_numel()
    flat = whole.flatten()
    piece = flat[rank() * size : (rank() + 1) * size]
    return torch.nn.functional.pad(piece, (0, size - piece.numel()))
