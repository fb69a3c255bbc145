"""Quantized linear layers of the official releases chatglm-6b-int8, chatglm-6b-int4 and chatglm2-6b-int4.

With `quantization_bit` in config.json each linear layer of the blocks has, instead of its matrix W [out, in],

    weight        int8: [out, in] for 8 bits; [out, in / 2] for 4 bits, two signed values per byte, the even column in
                  the high half
    weight_scale  [out], with W ≈ integers * weight_scale[:, None]

Embeddings, norms, biases and the output layer are not quantized. Nothing here needs a GPU or a compiled kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modes.config import Config


def matrix(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Dequantize an int8 weight [out, in] with its float32 scale [out] to `dtype`, with one rounding.

    Multiplied in float32; on a GPU without an intermediate float32 copy.
    """
    return torch.mul(weight, scale[:, None], out=torch.empty(weight.shape, dtype=dtype, device=weight.device))


def unpacked_matrix(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`matrix` of a weight with two values per byte: [out, in / 2] -> [out, in]."""
    out = torch.empty(*weight.shape, 2, dtype=dtype, device=weight.device)
    torch.mul(weight >> 4, scale[:, None], out=out[..., 0])
    torch.mul(((weight & 15) ^ 8) - 8, scale[:, None], out=out[..., 1])  # 8 to 15 in the low half are -8 to -1
    return out.flatten(1)


MATRIX = {8: matrix, 4: unpacked_matrix}


class Product(torch.autograd.Function):
    """x W^T. Keeps only the integers for backward, which dequantizes W again; W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return F.linear(x, MATRIX[bits](weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ MATRIX[ctx.bits](weight, scale, gradient.dtype), None, None, None


class QuantizedLinear(nn.Linear):
    """A frozen quantized linear layer with the official names; computes in its input's dtype.

    It is a Linear, so that LoRA finds it. `weight` is int8 and cannot be trained; `weight_scale` is a float32 buffer,
    because DeepSpeed casts parameters to the run's precision, but not buffers.
    """

    weight_scale: torch.Tensor
    bias: nn.Parameter | None  # type: ignore[assignment]  # torch declares it as never None

    def __init__(self, in_features: int, out_features: int, bias: bool, bits: int):
        nn.Module.__init__(self)  # Linear's own would allocate W
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        integers = torch.zeros(out_features, in_features * bits // 8, dtype=torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        product = Product.apply(x, self.weight, self.weight_scale, self.bits)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def make_linear(config: Config, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer of a block, quantized according to config.quantization_bit."""
    if config.quantization_bit:
        return QuantizedLinear(in_features, out_features, bias, config.quantization_bit)
    return nn.Linear(in_features, out_features, bias)
