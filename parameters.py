"""A model's parameters by name, shape and whether they are trained: the input of checks and memory estimates.

Nothing here imports torch.
"""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

LAYER = re.compile(r"\blayers\.(\d+)\.")  # in a parameter's name: the number of its block


class Parameter(NamedTuple):
    """A parameter of a prepared model: its name, its shape, and whether the run trains it."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)


def parameters_of(model: "torch.nn.Module") -> list[Parameter]:
    """Every parameter of a model, tied ones once; the model may be on torch's meta device."""
    return [Parameter(name, tuple(tensor.shape), tensor.requires_grad) for name, tensor in model.named_parameters()]


def trained_values(parameters: Iterable[Parameter]) -> int:
    """Number of values that are trained."""
    return sum(parameter.size for parameter in parameters if parameter.trained)


def block_of(name: str) -> int | None:
    """The block of a parameter. Parameters below the first block count as block 0, those above the last as None."""
    match = LAYER.search(name)
    return int(match[1]) if match else 0 if "word_embeddings." in name or "prefix_encoder." in name else None


def lowest_trained(parameters: Iterable[Parameter]) -> int | None:
    """The lowest block that backward reaches; None if it reaches none.

    Args:
        parameters: of the whole model.
    """
    blocks = [block_of(parameter.name) for parameter in parameters if parameter.trained]
    return min((block for block in blocks if block is not None), default=None)
