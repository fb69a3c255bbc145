"""The start of a run, at step 0 or from a resume state."""

from collections.abc import Callable

import torch

from checkpoints.resume import Start
from checkpoints.state import extra_tensors, load_state
from data.steps import count_warmup
from methods.hooks import Hooks
from options.sections import OptimizerOptions
from parallel import ranks
from training.datasets import TrainingData
from training.metrics import peak_memory_bytes
from training.summary import describe_plan


def say_plan(data: TrainingData, start: Start, options: OptimizerOptions) -> None:
    """Print the number of steps, samples per step and warm-up steps."""
    warmup_steps = count_warmup(start.total_steps, options.warmup_steps, options.warmup_ratio)
    ranks.say(
        describe_plan(
            data.first_epoch, data.steps, ranks.world_size(), start.total_steps, warmup_steps, data.row_length
        )
    )


def begin(start: Start, engine, model: torch.nn.Module, hooks: Hooks, *, seed: int, at: Callable[[str], None]) -> None:
    """Seed dropout, differently on each rank, and load the resume state into the engine, if there is one."""
    ranks.say(f"peak memory of rank 0 before the first step: {peak_memory_bytes() / 2**30:.2f} GiB")
    ranks.seed_everything(seed + ranks.rank())
    if start.state is None:
        return
    load_state(engine, model, start.state, at=at)
    hooks.load_state(extra_tensors(start.state.directory))
    position = start.position
    ranks.say(f"resumed from {start.state.directory}: epoch {position.epoch}, after step {position.step}")
