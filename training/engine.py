"""The DeepSpeed engine: loading of partitioned parameters, optimizer, schedule, activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import deepspeed
import torch
import transformers
from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus
from deepspeed.runtime.zero.utils import is_zero_param
from transformers.initialization import no_init_weights

from compatibility import enable_activation_checkpointing
from errors import UserError
from memory.groups import LARGEST_GROUP, cut, largest_group
from options.sections import OptimizerOptions
from texts import counted
from training.loss_scaling import stay_at_smallest_scale
from training.ranks import is_main, rank, set_timeouts, world_size
from training.steps import count_warmup
from training.summary import full_shape

if TYPE_CHECKING:
    from training.ds_config import DeepSpeedSetup

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build_partitioned(model_class, config, ds_config: dict, shards: Iterable):
    """Create a model with parameters partitioned over the ranks, then load them one at a time.

    No rank ever holds the whole model: each memory-maps one weight file at a time and copies its own partitions.
    (`from_pretrained` under ZeRO-3 merges all shards in rank 0's memory first.)

    Args:
        shards: (file, {official name: tensor}) pairs; the same names in the same order on every rank.

    Raises:
        UserError: a parameter is missing in the shards, or has another shape.
    """
    # the dtype follows from ds_config; as an argument it would silently become bf16 on a CPU (deepspeed 0.19.8)
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = model_class(config)
    parameters = dict(model.named_parameters())
    filled = set()
    for file, tensors in shards:
        for name in tensors.keys() & parameters.keys():
            if tensors[name].shape != full_shape(parameters[name]):
                raise UserError(
                    f"{file} has {name} of shape {list(tensors[name].shape)}, config.json requires "
                    f"{list(full_shape(parameters[name]))}: take both from the same release."
                )
        for name, tensor in tensors.items():
            if name in parameters:
                fill(parameters[name], tensor)
                filled.add(name)
    missing = [name for name in parameters if name not in filled and ".prefix_encoder." not in name]
    if missing:
        raise UserError(
            f"the base holds no {missing[0]} ({counted(len(missing), 'parameter')} missing): download it again."
        )
    return model


def fill(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    """Copy a tensor that every rank can read into a partitioned parameter."""
    # flat, of equal length on every rank, padded on the last
    piece = parameter.ds_tensor  # type: ignore[attr-defined]  # set by DeepSpeed
    twice = parameter.ds_secondary_tensor is not None  # type: ignore[attr-defined]  # set by DeepSpeed
    if piece.status == PartitionedParamStatus.AVAILABLE and not twice:
        part = tensor.reshape(-1)[rank() * piece.numel() : (rank() + 1) * piece.numel()]
        piece.data[: part.numel()].copy_(part)
        return
    # on NVMe or with a secondary partition (hpZ): DeepSpeed gathers the whole parameter on every rank briefly
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if is_main():
            parameter.data.copy_(tensor)


def checkpoint_blocks(model, blocks: torch.nn.ModuleList, count: int) -> int:
    """Recompute the activations of the lowest `count` blocks that backward reaches; returns their number.

    Backward runs down to the lowest block with a trained parameter, or through all blocks if the embedding or a prefix
    below them is trained. It reaches the lowest ones last, when the activations of the upper ones are freed, so
    recomputing these saves most memory.
    """
    in_blocks = {id(parameter) for parameter in blocks.parameters()}
    embedding = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    below = any(
        parameter.requires_grad and (id(parameter) in embedding or "prefix_encoder." in name)
        for name, parameter in model.named_parameters()
        if id(parameter) not in in_blocks
    )
    trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    lowest = 0 if below else trained.index(True) if True in trained else len(blocks)
    end = min(lowest + count, len(blocks))
    if lowest < end:
        # ZeRO-3 releases parameters after forward, so their shapes differ when the block is recomputed
        enable_activation_checkpointing(model, {"use_reentrant": False, "determinism_check": "none"})
        model.disable_input_require_grads()  # transformers makes the embeddings require gradients
        for i, block in enumerate(blocks):
            on = lowest <= i < end
            block.gradient_checkpointing = on  # type: ignore[assignment]  # a switch of transformers' layers
    return end - lowest


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    learning_rate: float,
    rate_factors: dict[str, float] | None = None,
    largest: int = LARGEST_GROUP,
) -> list[dict]:
    """Parameter groups of the trained parameters: weight decay for matrices, none for vectors (biases, norms).

    During the optimizer step ZeRO-1 and ZeRO-2 copy the gradients of one group at a time, flat and in float32: 6 bytes
    per value in half precision. Small groups limit this memory.

    Args:
        rate_factors: substring of a name -> factor of `learning_rate` for these parameters.
        largest: maximum values of a group with more than one parameter.
    """
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((times for part, times in (rate_factors or {}).items() if part in name), 1.0)
            decay = weight_decay if len(full_shape(parameter)) > 1 else 0.0
            groups.setdefault((factor * learning_rate, decay), []).append(parameter)
    first = (learning_rate, weight_decay)  # its rate is logged
    return [
        {"params": part, "lr": key[0], "weight_decay": key[1]}
        for key in sorted(groups, key=lambda k: k != first)
        for part in cut(groups[key], [full_shape(parameter).numel() for parameter in groups[key]], largest)
    ]


def make_schedule(name: str, warmup_steps: int, total_steps: int) -> Callable:
    """A function optimizer -> learning-rate schedule: linear warm-up to the flag's value, then `name`."""
    names = {"constant": "constant_with_warmup"}
    # DeepSpeed asks for the rate after the last step, where polynomial divides by total_steps - warmup_steps
    end = max(total_steps, warmup_steps + 1)
    return lambda optimizer: transformers.get_scheduler(
        names.get(name, name), optimizer, num_warmup_steps=warmup_steps, num_training_steps=end
    )


def cast_unpartitioned(model: torch.nn.Module, ds_config: dict) -> None:
    """Cast parameters that ZeRO-3 has not partitioned yet (peft's float32 adapters) to the run's precision.

    DeepSpeed casts them only at stages 1 and 2. At stage 3 it would treat the run as float32, and not scale the loss
    in fp16.
    """
    dtype = next((DTYPES[key] for key in ("bf16", "fp16") if ds_config.get(key, {}).get("enabled")), torch.float32)
    for parameter in model.parameters():
        if not is_zero_param(parameter) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def start_engine(
    model: torch.nn.Module,
    ds: DeepSpeedSetup,
    options: OptimizerOptions,
    total_steps: int,
    rate_factors: dict[str, float] | None = None,
):
    """DeepSpeed's engine around the model, with AdamW (betas 0.9 and 0.95, as the 2023 tool) and the schedule."""
    if ds.stage == 3:
        cast_unpartitioned(model, ds.config)
    rate, decay = options.learning_rate, options.weight_decay
    groups = parameter_groups(model, decay, rate, rate_factors, largest_group(world_size()))
    warmup_steps = count_warmup(total_steps, options.warmup_steps, options.warmup_ratio)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True),
        lr_scheduler=make_schedule(options.lr_scheduler_type, warmup_steps, total_steps),
        config=ds.config,
    )
    stay_at_smallest_scale(engine)
    set_timeouts()  # of the process groups that DeepSpeed created
    return engine


def trained_tensors(model: torch.nn.Module):
    """Yield (name, CPU copy) of every trained parameter, one at a time, on every rank; only rank 0 gets valid values.

    Under ZeRO-3 it gathers one trained parameter at a time. All ranks must iterate over all of them.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], enabled=is_zero_param(parameter)):
                tensor = parameter.detach().to("cpu", copy=True) if is_main() else parameter.detach()
            yield name, tensor


@contextmanager
def evaluating(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Disable dropout and gradients; afterwards the module continues to train with the same random numbers.

    Not torch.inference_mode: parameters that ZeRO-3 gathers there could not be used in backward afterwards.
    """
    was_training = module.training
    module.eval()
    try:
        # sampled answers use the generators, on which training must not depend
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        module.train(was_training)
