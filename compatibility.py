"""Differences between the supported versions of the dependencies: one function each. No other module tests versions.

setup.cfg has the supported versions; `bash scripts/test.sh --versions oldest` runs the tests with the oldest.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@torch.compiler.assume_constant_result  # compiled layers use the result; torch.compile would warn of the cache
def accepts(function: Callable, name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return name in _parameters(function)


def varlen_attention(
    kernel: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    causal: bool,
) -> torch.Tensor:
    """Attention of sequences of any lengths. The causal mask is aligned to the last query and the last key.

    torch 2.12 and newer have `window_size` and `enable_gqa`, 2.11 has `window_size`, its prereleases (as in some
    vendors' containers) and 2.10 have `is_causal`. Both parameters for a causal mask set the same right window of 0 in
    flash attention (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp).

    Args:
        kernel: torch.nn.attention.varlen.varlen_attn. query: [tokens, n, d]. key, value: [tokens, g, d].
        ends_q, ends_k: int32 [sequences + 1], the start of each sequence, and the end of the last.
        longest_q, longest_k: tokens.

    Returns: [tokens of query, n, d].
    """
    windows = accepts(kernel, "window_size")
    options: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)} if windows else {"is_causal": causal}
    heads_per_key = query.shape[1] // key.shape[1]
    if accepts(kernel, "enable_gqa"):
        options["enable_gqa"] = heads_per_key > 1
    elif heads_per_key > 1:
        key, value = (x.repeat_interleave(heads_per_key, dim=1) for x in (key, value))
    return kernel(query, key, value, ends_q, ends_k, longest_q, longest_k, **options)


def enable_activation_checkpointing(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Recompute the activations of all layers of a transformers model, which peft may have wrapped, during backward.

    transformers 5.17 has it under the name `gradient_checkpointing_enable`, which later versions deprecate.

    Args:
        options: keyword arguments of torch.utils.checkpoint.checkpoint.
    """
    if hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
