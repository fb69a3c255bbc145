"""The loss over an evaluation set."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from data.collate import to_device
from parallel.zero import evaluating

IGNORED = -100  # the label of a position that is not supervised


def dev_loss(
    engine: DeepSpeedEngine, batches: Iterable[dict], before_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean cross entropy in nats per supervised token, over the batches of all ranks. All ranks must call it.

    Args:
        engine: DeepSpeed's engine; the model in it returns the loss divided by `num_items_in_batch`.
        batches: this rank's batches from data/collate.py, on the CPU. The same number on every rank, because ZeRO-3
            needs all ranks in each forward pass; samples whose labels are all -100 do not count.
        before_batch: called before each batch, equally often on every rank.
    """
    # [nats, tokens]; double, so that the order of summation does not matter
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    with evaluating(engine.module, engine.device):
        for batch in batches:
            before_batch()
            batch = to_device(batch, engine.device)
            totals[0] += engine(**batch, num_items_in_batch=1, use_cache=False).loss
            totals[1] += (batch["labels"][:, 1:] != IGNORED).sum()
    dist.all_reduce(totals)
    nats, tokens = totals.tolist()
    assert tokens > 0, "a set without a supervised token"
    return nats / tokens
