"""P-Tuning: train a prefix, leave the model as it is.

--prefix_layers all        pre_seq_len key/value pairs in every layer, as the official ptuning code (P-Tuning v2,
                           https://arxiv.org/abs/2110.07602); --prefix_projection puts an MLP behind them, or not
--prefix_layers embedding  pre_seq_len vectors in front of the word embeddings only (https://arxiv.org/abs/2103.10385)
"""

from pathlib import Path

import deepspeed
from deepspeed.runtime.zero.utils import is_zero_param

from errors import UserError
from methods.tensors import Fold, check_fit, copy_into
from shards import read_tensors, write_shards

OPTIONS = ("pre_seq_len", "prefix_projection", "prefix_layers")
STEM = "prefix_encoder"


def configure(config, *, pre_seq_len: int, prefix_projection: bool, prefix_layers: str) -> None:
    """Tell the model to build its prefix encoder.

    Raises:
        UserError: a length or a place that no prefix has.
    """
    if pre_seq_len < 1:
        raise UserError(f"pre_seq_len is {pre_seq_len}: use a length of 1 or more.")
    if prefix_layers not in ("all", "embedding"):
        raise UserError(f'prefix_layers is {prefix_layers!r}: use "all" or "embedding".')
    config.pre_seq_len = pre_seq_len
    config.prefix_projection = prefix_projection
    config.prefix_layers = prefix_layers


def check(model, **_) -> None:
    """The options were checked by the model's config."""


def prepare(model, **_):
    """Train the prefix encoder, freshly initialised from the current seed."""
    prefix = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prefix_encoder." in name)
        if parameter.requires_grad:
            prefix.append(parameter)
    # under ZeRO-3 the parameters are in pieces: every rank draws the same values, rank 0's are kept
    with deepspeed.zero.GatheredParameters(prefix, modifier_rank=0, enabled=is_zero_param(prefix[0])):
        model.init_prefix()
    return model


def save(directory: Path, model, tensors) -> None:
    """Write prefix_encoder.safetensors: transformer.prefix_encoder.*, the official names."""
    write_shards(tensors, directory, STEM)


def fits(model, directory: Path) -> None:
    """Raise UserError unless the checkpoint's tensors are the model's."""
    check_fit(model, directory, STEM)


def load(model, directory: Path):
    """Put the trained prefix into a model that `configure` gave a prefix encoder."""
    copy_into(model, directory, STEM)
    return model


def fold(directory: Path, **options) -> Fold:
    """The base stays; the prefix is added, and config.json says so (the official code reads it from there)."""
    prefix = dict(read_tensors(directory, STEM))
    return Fold(change=lambda name, tensor: tensor, names=frozenset(), added=prefix, config=options)
