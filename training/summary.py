"""Summaries of a run: the trained parameters, and the derived numbers of steps and samples."""

import re

import torch

from data.loading import Step
from options.sections import StepOptions
from parallel.zero import full_shape
from texts import counted


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trained values, all values)."""
    trained = total = 0
    for parameter in model.parameters():
        size = full_shape(parameter).numel()
        total += size
        trained += size if parameter.requires_grad else 0
    return trained, total


def describe_trained(model: torch.nn.Module) -> str:
    """A table: one line per parameter name, with the layer numbers merged, and the total."""
    groups: dict[str, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = re.search(r"\blayers\.(\d+)\.", name)
            key = re.sub(r"\blayers\.\d+\.", "layers.*.", name).removeprefix("base_model.model.")
            group = groups.setdefault(key, [set(), 0, tuple(full_shape(parameter))])
            group[0].add(int(layer[1]) if layer else None)
            group[1] += full_shape(parameter).numel()
    lines = []
    for key, (layers, values, shape) in groups.items():
        numbers = sorted(number for number in layers if number is not None)
        where = f" (layers {_ranges(numbers)})" if numbers else ""
        lines.append(f"  {key} {list(shape)}{where}: {values:,}")
    trained, total = count_parameters(model)
    lines.append(f"trained parameters: {trained:,} of {total:,} ({100 * trained / total:.4f}%)")
    return "\n".join(lines)


def describe_plan(
    plan: list[Step], steps: StepOptions, ranks: int, total_steps: int, warmup_steps: int, row_length: int | None
) -> str:
    """All derived numbers of the run. `plan` and `row_length` are those of an epoch (data.loading.plan_epoch)."""
    batch_size, accumulation = steps.per_device_train_batch_size, steps.gradient_accumulation_steps
    tokens = sum(step.num_tokens for step in plan)
    warmup = f"{warmup_steps:,} of them warm-up"
    if warmup_steps > total_steps:
        warmup = f"all of them in a warm-up of {warmup_steps:,} steps: --learning_rate is never reached"
    lines = [
        f"optimizer steps: {total_steps:,} ({len(plan):,} per epoch), {warmup}",
        f"{'rows' if row_length else 'samples'} per step: {ranks * batch_size * accumulation} "
        f"({counted(ranks, 'rank')} × {batch_size} × {accumulation} accumulated), tokens per step: "
        f"{tokens / len(plan):,.0f} on average",
    ]
    if row_length:
        samples, rows = sum(step.num_samples for step in plan), sum(step.num_rows for step in plan)
        full = tokens / (rows * row_length)
        lines.append(f"packed: {samples:,} samples in {rows:,} rows of at most {row_length:,} tokens, {full:.1%} full")
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
