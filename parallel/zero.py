"""Parameters under DeepSpeed ZeRO: whole shapes, loading, whole tensors of partitioned ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus
from deepspeed.runtime.zero.utils import is_zero_param
from transformers.initialization import no_init_weights

from errors import UserError
from parallel.ranks import is_main, rank
from shards import DTYPES
from texts import counted


def full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """The parameter's whole shape, also if ZeRO-3 has partitioned it."""
    if is_zero_param(parameter):
        return parameter.ds_shape  # type: ignore[attr-defined]  # set by DeepSpeed
    return parameter.shape


def build_partitioned(model_class, config, ds_config: dict, shards: Iterable):
    """Create a model with parameters partitioned over the ranks, then load them one at a time.

    No rank ever holds the whole model: each memory-maps one weight file at a time and copies its own partitions.
    (`from_pretrained` under ZeRO-3 merges all shards in rank 0's memory first.)

    Args:
        shards: (file, {official name: tensor}) pairs; the same names in the same order on every rank.

    Raises:
        UserError: a parameter is missing in the shards, or has another shape.
    """
    # the dtype follows from ds_config; as an argument it would silently become bf16 on a CPU (deepspeed 0.19.8)
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = model_class(config)
    parameters = dict(model.named_parameters())
    filled = set()
    for file, tensors in shards:
        for name in tensors.keys() & parameters.keys():
            if tensors[name].shape != full_shape(parameters[name]):
                raise UserError(
                    f"{file} has {name} of shape {list(tensors[name].shape)}, config.json requires "
                    f"{list(full_shape(parameters[name]))}: take both from the same release."
                )
        for name, tensor in tensors.items():
            if name in parameters:
                fill(parameters[name], tensor)
                filled.add(name)
    missing = [name for name in parameters if name not in filled and ".prefix_encoder." not in name]
    if missing:
        raise UserError(
            f"the base holds no {missing[0]} ({counted(len(missing), 'parameter')} missing): download it again."
        )
    return model


def fill(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    """Copy a tensor that every rank can read into a partitioned parameter."""
    # flat, of equal length on every rank, padded on the last
    piece = parameter.ds_tensor  # type: ignore[attr-defined]  # set by DeepSpeed
    has_secondary = parameter.ds_secondary_tensor is not None  # type: ignore[attr-defined]  # set by DeepSpeed
    if piece.status == PartitionedParamStatus.AVAILABLE and not has_secondary:
        part = tensor.reshape(-1)[rank() * piece.numel() : (rank() + 1) * piece.numel()]
        piece.data[: part.numel()].copy_(part)
        return
    # on NVMe or with a secondary partition (hpZ): DeepSpeed gathers the whole parameter on every rank briefly
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if is_main():
            parameter.data.copy_(tensor)


def cast_unpartitioned(model: torch.nn.Module, ds_config: dict) -> None:
    """Cast parameters that ZeRO-3 has not partitioned yet (peft's float32 adapters) to the run's precision.

    DeepSpeed casts them only at stages 1 and 2. At stage 3 it would treat the run as float32, and not scale the loss
    in fp16.
    """
    dtype = next((DTYPES[key] for key in ("bf16", "fp16") if ds_config.get(key, {}).get("enabled")), torch.float32)
    for parameter in model.parameters():
        if not is_zero_param(parameter) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def trained_tensors(model: torch.nn.Module):
    """Yield (name, CPU copy) of every trained parameter, one at a time, on every rank; only rank 0 gets valid values.

    Under ZeRO-3 it gathers one trained parameter at a time. All ranks must iterate over all of them.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], enabled=is_zero_param(parameter)):
                tensor = parameter.detach().to("cpu", copy=True) if is_main() else parameter.detach()
            yield name, tensor


@contextmanager
def evaluating(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Disable dropout and gradients; afterwards the module continues to train with the same random numbers.

    Not torch.inference_mode: parameters that ZeRO-3 gathers there could not be used in backward afterwards.
    """
    was_training = module.training
    module.eval()
    try:
        # sampled answers use the generators, on which training must not depend
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        module.train(was_training)
