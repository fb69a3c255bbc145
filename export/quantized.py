"""Quantize a model to 8 or 4 bits, in the layout of the official releases chatglm-6b-int4, chatglm2-6b-int4, ….

modes/quantization.py describes the layout and computes with it. Each row of a matrix has a scale of its own,
max |row| / 127 (4 bits: / 7) in float16, and the integers are the nearest ones to row / scale. The official code
divides in half precision: about 1% of its 8-bit integers, and 0.05% of its 4-bit ones, are the second nearest. Here the
division is in float32.
"""

import math
from collections.abc import Iterable, Iterator

import torch

from errors import UserError
from modes.directory import Base
from modes.loading import check_not_quantized
from modes.quantization import QuantizedLinear

ROWS = 4096  # quantized at a time, which bounds the float32 copies


def config_changes(bits: int) -> dict[str, object]:
    """Keys of config.json that say that the layers are quantized."""
    return {"quantization_bit": bits}


def check_quantizable(base: Base, bits: int) -> None:
    """Check that a base can be quantized to `bits` (8 or 4) in the official layout; reads no weights.

    Raises:
        UserError: it is quantized already, or 4 bits would split a byte between two rows.
    """
    check_not_quantized(base, bits)
    for name, layer in quantized_layers(base, bits).items():
        if layer.in_features * bits % 8:
            raise UserError(
                f"--quantization_bit {bits} needs an even number of columns, but {name} of {base.path} has "
                f"{layer.in_features}: use --quantization_bit 8."
            )


def quantized_layers(base: Base, bits: int) -> dict[str, QuantizedLinear]:
    """The layers that a quantized model of this base has, on the meta device, by the name of their weight."""
    generation = base.generation
    with torch.device("meta"):
        model = generation.model_class(generation.config_class(**{**base.config, "quantization_bit": bits}))
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def quantized(tensors: Iterable[tuple[str, torch.Tensor]], base: Base, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Replace the weight of each linear layer of the blocks by an int8 `weight` and a float16 `weight_scale`.

    Args:
        tensors: (official name, tensor) pairs of a model, of any floating dtype; one is in memory at a time.
        base: of the model; it gives the names of the layers.
        bits: 8 or 4.

    Raises:
        UserError: a weight has no float16 scale, because it has values that are infinite or not a number.
    """
    names = quantized_layers(base, bits).keys()
    for name, tensor in tensors:
        if name not in names:
            yield name, tensor.clone()  # a view would keep its whole file mapped until a shard is full
            continue
        parts = [quantize(rows, bits) for rows in tensor.split(ROWS)]
        integers, scale = (torch.cat(results) for results in zip(*parts, strict=True))
        if not scale.isfinite().all():
            raise UserError(
                f"{name} has values that are not finite, so it cannot be quantized: use another checkpoint."
            )
        yield name, pack(integers) if bits == 4 else integers
        yield f"{name}_scale", scale


def quantize(matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a matrix [out, in] by rows; no value changes by more than half of its row's scale.

    Returns: (int8 [out, in] from -127 to 127, or -7 to 7; float16 scale [out]).
    """
    largest = 2 ** (bits - 1) - 1
    maxima = torch.linalg.vector_norm(matrix, math.inf, dim=1).float()
    scale = (maxima / largest).half()
    # float16 has few digits below 6e-5, and none below 6e-8: there the next scale is taken if the maximum needs it
    is_too_small = scale.float() * (largest + 0.5) <= maxima
    scale = (scale.view(torch.int16) + is_too_small).view(torch.float16)
    return torch.div(matrix, scale.float()[:, None]).round_().to(torch.int8), scale


def pack(integers: torch.Tensor) -> torch.Tensor:
    """int8 [out, in] from -8 to 7 -> int8 [out, in / 2], the even column in the high half of a byte."""
    return (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)
