"""The training loss: cross entropy on supervised positions only, computed inside the output layer in chunks.

Shapes: m supervised positions, h hidden, v vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from modes.linear import linear

IGNORED = -100  # the label of a position that is not supervised
# Positions whose logits exist at the same time: 512 * 65,024 values are 127 MiB in float32. Each chunk reads the weight
# (2 * 512 operations for its 2 bytes), and reads and writes the gradient of a trained one (half as many per byte). An
# A100 is limited by its matrix units instead of its memory from 156 operations per byte, an H100 from 295.
CHUNK = 512
# Powers of two that scale gradients until backward has the gradient of the loss. In fp16, softmax
# values below 6e-8 would be zero. The weight's gradient is that of the mean: a sum over tokens could exceed 65,504.
SCALE = 2.0**10
WEIGHT_SCALE = 2.0**8


def find_supervised(labels: torch.Tensor) -> torch.Tensor:
    """Supervised positions of flattened labels [b, s]: int64 [m], never a row's first. Synchronizes with the GPU."""
    is_supervised = labels != IGNORED
    is_supervised[:, 0] = False  # nothing predicts it
    return is_supervised.flatten().nonzero()[:, 0]


def supervised_loss(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    output_layer: nn.Module,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy in nats per supervised token. Calls the output layer once for any number of tokens.

    Args:
        hidden: [m, h], the final hidden states that predict supervised tokens. targets: [m], these tokens.
        output_layer: an OutputLayer, which computes logits for CHUNK positions at a time; or any other module from h to
            the vocabulary (LoRA around an OutputLayer), which computes all logits at once.
        num_items_in_batch: divisor of the sum (int or tensor); by default m.

    Returns: a float32 scalar. Without a supervised position it is 0 and still part of the graph.
    """
    if num_items_in_batch is None:
        num_items_in_batch = max(targets.numel(), 1)
    if isinstance(output_layer, OutputLayer):
        return output_layer(hidden, targets) / num_items_in_batch
    return F.cross_entropy(output_layer(hidden).float(), targets, reduction="sum") / num_items_in_batch


class OutputLayer(nn.Linear):
    """The linear layer from hidden states to logits, without bias, which also computes the loss.

    Under ZeRO-3 every call of a module gathers its parameters from all ranks, so that ranks must call it equally often:
    the loss is one call, divided into chunks inside.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [..., v] of hidden states [..., h]; with `targets` [m], the summed cross entropy of [m, h]."""
        if targets is None:
            return linear(hidden, self.weight)
        return SummedCrossEntropy.apply(hidden, self.weight, targets, torch.is_grad_enabled())


class SummedCrossEntropy(torch.autograd.Function):
    """Cross entropy of hidden [m, h] times weight [v, h] against targets [m], summed in float32.

    Forward also computes the gradients from a chunk's logits (softmax minus one-hot); backward multiplies
    them by the gradient of the loss. So logits are computed once, and never for more than CHUNK positions.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, with_gradients: bool
    ) -> torch.Tensor:
        for_hidden, for_weight = (needed and with_gradients for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        tokens = 2 ** (max(len(targets), 1) - 1).bit_length()  # at least m, a power of two
        ctx.weight_scale = WEIGHT_SCALE / tokens
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            loss, grad_logits = _chunk(hidden[rows], weight, targets[rows], for_hidden or for_weight)
            total += loss
            if grad_hidden is not None and grad_logits is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if (
                grad_weight is not None and grad_logits is not None
            ):  # alpha multiplies the float32 product before it is rounded
                alpha = ctx.weight_scale / SCALE
                torch.addmm(grad_weight, grad_logits.T, hidden[rows], alpha=alpha, out=grad_weight)
            del grad_logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        for gradient, scale in ((grad_hidden, SCALE), (grad_weight, ctx.weight_scale)):
            if gradient is not None:  # one-dimensional, so that half precision is multiplied in float32
                torch.mul(gradient, (grad / scale).view(1), out=gradient)
        return grad_hidden, grad_weight, None, None


def _chunk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, with_gradients: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed cross entropy (float32) of a chunk, and the gradient of its logits [m, v] times SCALE in hidden's dtype.

    Computed in place: `values` are first logits, then exponentials, then gradients.
    """
    values = torch.mm(hidden, weight.T).float()
    values -= values.amax(dim=1, keepdim=True)
    targets = targets[:, None]
    of_targets = values.gather(1, targets)
    sums = values.exp_().sum(dim=1, keepdim=True)
    loss = (sums.log() - of_targets).sum()
    if not with_gradients:
        return loss, None
    values *= SCALE / sums
    values.scatter_add_(1, targets, torch.full_like(of_targets, -SCALE))
    return loss, values.to(hidden.dtype)
