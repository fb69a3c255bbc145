"""Start the engine that fits a model, with a key/value cache that fits the memory."""

from collections.abc import Mapping

import peft
import psutil
import torch

from generation.answerer import Answerer
from generation.padded import PaddedEngine
from generation.paged import STEP_TOKENS, PagedEngine
from generation.request import Engine
from modes import prefix
from modes.config import Config
from modes.mode import Mode

CACHE_FRACTION = {"cuda": 0.9, "cpu": 0.5}  # of the free memory


def free_memory(device: torch.device) -> int:
    """Bytes of free memory where a model computes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def start_engines(
    answerers: Mapping[str, Answerer], max_num_seqs: int, max_tokens: int, cache_bytes: int | None = None
) -> dict[str, Engine]:
    """Start an engine for each model, by its name; the memory of their caches is divided equally.

    Args:
        max_num_seqs: maximum number of requests at once, per model.
        max_tokens: maximum tokens of a prompt with its answer; less if the memory has no room for that.
        cache_bytes: of all caches together; None for a part of the free memory.
    """
    if cache_bytes is None:
        device = next(iter(answerers.values())).model.device
        cache_bytes = int(free_memory(device) * CACHE_FRACTION[device.type])
    each = cache_bytes // len(answerers)
    return {name: start_engine(answerer, max_num_seqs, max_tokens, each) for name, answerer in answerers.items()}


def start_engine(answerer: Answerer, max_num_seqs: int, max_tokens: int, cache_bytes: int) -> Engine:
    """Start the engine of one model; see `start_engines`."""
    model = answerer.model
    if isinstance(model, peft.PeftModel):
        model = model.get_base_model()  # its layers have the adapter
    fitting = cache_bytes // token_bytes(answerer.mode, model.config, model.dtype)
    cache_tokens = min(max_num_seqs * max_tokens, fitting)
    if is_paged(answerer.mode, model.config):
        return PagedEngine(model, max_num_seqs, max_tokens, cache_tokens)
    return PaddedEngine(answerer.mode, model, max_num_seqs, max_tokens, cache_tokens)


def is_paged(mode: Mode, config: Config) -> bool:
    """Whether transformers' continuous batching can run a model."""
    return mode.causal_prompt and not prefix.is_on(config)


def token_bytes(mode: Mode, config: Config, dtype: torch.dtype) -> int:
    """Bytes of a token in the cache: its keys and values in all layers, and in a paged cache its column of the mask."""
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return (values + is_paged(mode, config) * STEP_TOKENS) * dtype.itemsize
