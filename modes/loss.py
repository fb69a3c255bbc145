"""The training loss: cross entropy on supervised positions only, some of them at a time."""

import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of a position that is not supervised
CHUNK = 256  # positions whose logits exist at the same time: 256 * 65,024 values are 64 MiB in float32


def find_supervised(labels):
    """Where labels [b, s], flattened, are supervised: int64 [m], never a row's first. The CPU waits for a GPU here."""
    learnt = labels != IGNORED
    learnt[:, 0] = False  # nothing predicts it
    return learnt.flatten().nonzero()[:, 0]


def supervised_loss(hidden, targets, output_layer, num_items_in_batch=None):
    """Mean cross entropy in nats per supervised token.

    CHUNK positions have logits at the same time, in forward as in backward, which makes them again. (A chunk is summed
    in float32 whatever the model's precision, which torch's linear_cross_entropy would not do.)

    Args:
        hidden: [m, h], the final hidden states in front of supervised tokens. targets: [m], these tokens.
        output_layer: module from h to the vocabulary; called with [at most CHUNK, h].
        num_items_in_batch: what the sum is divided by (int or tensor); by default m.

    Returns: a float32 scalar. Without a supervised position it is 0 and still part of the graph.
    """
    if num_items_in_batch is None:
        num_items_in_batch = max(targets.numel(), 1)
    if targets.numel() <= CHUNK:
        return _summed(hidden, targets, output_layer) / num_items_in_batch
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    # ZeRO-3 gives a weight back after use: its shape differs when the logits are made again
    kwargs = {"use_reentrant": False, "determinism_check": "none"}
    return sum(checkpoint(_summed, *chunk, output_layer, **kwargs) for chunk in chunks) / num_items_in_batch


def _summed(hidden, targets, output_layer):
    """Summed cross entropy of [m, h] against [m]."""
    return F.cross_entropy(output_layer(hidden).float(), targets, reduction="sum")
