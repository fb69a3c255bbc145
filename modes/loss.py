"""The training loss: cross entropy on supervised positions only."""

import torch.nn.functional as F

IGNORED = -100  # the label of a position that is not supervised


def supervised_loss(hidden, labels, output_layer, num_items_in_batch=None):
    """Mean cross entropy in nats per supervised token; logits of the other positions are never made.

    Args:
        hidden: [b, s, h], the final hidden states.
        labels: [b, s], aligned with the inputs (position i is predicted at i - 1), IGNORED where not supervised.
        output_layer: module from h to the vocabulary; called once, with [supervised positions, h].
        num_items_in_batch: what the sum is divided by (int or tensor); by default the supervised positions here.

    Returns: a float32 scalar. Without a supervised position it is 0 and still part of the graph.
    """
    targets = labels[:, 1:]  # [b, s - 1]
    supervised = targets != IGNORED
    targets = targets[supervised]  # [m]
    logits = output_layer(hidden[:, :-1][supervised])  # [m, v]
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = max(targets.numel(), 1)
    return total / num_items_in_batch
