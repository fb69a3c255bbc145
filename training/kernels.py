"""Kernels of the layers: attention among the samples of a row, and torch.compile."""

import torch

from errors import UserError
from modes.model import LanguageModel
from modes.segments import IMPLEMENTATIONS, varlen_runs
from shards import DTYPES


def choose_attention(asked: str, precision: str, head_dim: int) -> str:
    """The attention implementation, one of IMPLEMENTATIONS; auto is varlen if it is available.

    Args:
        asked: --attn_implementation.

    Raises:
        UserError: varlen is not available.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = varlen_runs(device, DTYPES[precision], head_dim)
    if asked == "varlen" and not runs:
        raise UserError(
            f"--attn_implementation varlen needs a GPU with compute capability 8.0 and bf16 or fp16, not {device.type} "
            f"in {precision} with heads of {head_dim}: use auto or sdpa."
        )
    if asked == "auto":
        return "varlen" if runs else "sdpa"
    return asked


def use_kernels(model: LanguageModel, attention: str, compiles: bool) -> None:
    """Set the attention of rows with concatenated samples, and compile each block of the model.

    Args:
        model: with `transformer` and `blocks`. attention: one of IMPLEMENTATIONS.
        compiles: --torch_compile.
    """
    prepare, attend = IMPLEMENTATIONS[attention]
    if compiles and attention == "sdpa":  # a loop over segments, whose lengths differ in every micro-batch
        attend = torch.compiler.disable(attend)
    model.transformer.segment_attention = (prepare, attend)
    if compiles:
        for block in model.blocks:
            block.compile(dynamic=True)
