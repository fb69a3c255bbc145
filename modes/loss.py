"""The training loss: cross entropy on supervised positions only, some of them at a time."""

import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of a position that is not supervised
CHUNK = 256  # positions whose logits exist at the same time: 256 * 65,024 values are 64 MiB in float32


def supervised_loss(hidden, labels, output_layer, num_items_in_batch=None, supervised=None):
    """Mean cross entropy in nats per supervised token; logits of the other positions are never made.

    Of the supervised ones, CHUNK have logits at the same time, in forward as in backward, which makes them again. (A
    chunk is summed in float32 whatever the model's precision, which torch's linear_cross_entropy would not do.)

    Args:
        hidden: [b, s, h], the final hidden states.
        labels: [b, s], aligned with the inputs (position i is predicted at i - 1), IGNORED where not supervised.
        output_layer: module from h to the vocabulary; called with [at most CHUNK supervised positions, h].
        num_items_in_batch: what the sum is divided by (int or tensor); by default the supervised positions here.
        supervised: int64 [m], where `labels`, flattened, are supervised (never a row's first). By default it is looked
            for, and with it the CPU waits for the GPU.

    Returns: a float32 scalar. Without a supervised position it is 0 and still part of the graph.
    """
    if supervised is None:
        learnt = labels != IGNORED
        learnt[:, 0] = False  # nothing predicts it
        supervised = learnt.flatten().nonzero()[:, 0]
    targets = labels.flatten()[supervised]  # [m]
    hidden = hidden.flatten(0, 1).index_select(0, supervised - 1)  # [m, h]
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
