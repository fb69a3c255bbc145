"""A linear layer that is faster on a CPU for the tokens of a few answers."""

import torch
import torch.nn.functional as F
from torch import nn

FEWEST, MOST = 8, 32  # rows; see benchmarks/linear.py


class Linear(nn.Linear):
    """torch's linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


def use_linear(model: nn.Module) -> None:
    """Make torch's linear layers of a model faster. Once it is loaded, because bitsandbytes replaces only torch's."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As F.linear.

    For a few rows in float32, a CPU's library is slower with the weight as the second factor: it copies the weight
    first. So without gradients the transpose is computed.

    Args:
        x: [..., in]. weight: [out, in]. bias: [out] or None.

    Returns: [..., out].
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if not FEWEST <= rows <= MOST:
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()
    product = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [out, rows]
    return product.t().contiguous().view(*x.shape[:-1], -1)
