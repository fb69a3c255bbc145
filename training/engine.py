"""The DeepSpeed engine: optimizer, learning-rate schedule, activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import deepspeed
import torch
import transformers

from compatibility import enable_activation_checkpointing
from data.steps import count_warmup
from memory.groups import LARGEST_GROUP, cut, largest_group
from options.sections import OptimizerOptions
from parallel.loss_scaling import stay_at_smallest_scale
from parallel.ranks import set_timeouts, world_size
from parallel.zero import cast_unpartitioned, full_shape

if TYPE_CHECKING:
    from training.ds_config import DeepSpeedSetup


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
    # DeepSpeed reads the rate after the last step, where polynomial divides by total_steps - warmup_steps
    end = max(total_steps, warmup_steps + 1)
    return lambda optimizer: transformers.get_scheduler(
        names.get(name, name), optimizer, num_warmup_steps=warmup_steps, num_training_steps=end
    )


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
