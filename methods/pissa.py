"""PiSSA: A and B start as the largest singular vectors of W, the rest is frozen (https://arxiv.org/abs/2404.02948).

W - s B0 A0 is frozen, B and A are trained. The saved update applies to W itself: s (B A - B0 A0), a
LoRA of twice the rank.
"""

import deepspeed
import torch
from deepspeed.runtime.zero.utils import is_zero_param
from peft.tuners.lora import LoraLayer

INITIALIZATION = "pissa_niter_16"  # singular vectors by iteration; the exact ones take minutes for a 6B model


def start(model) -> None:
    """Move the largest singular vectors of every adapted weight into its adapter. Draws random numbers.

    The same seed gives the same values, whatever the ZeRO stage. Layers on torch's meta device are skipped.
    """
    model.pissa_start = {}
    for name, layer in model.named_modules():
        weight = layer.get_base_layer().weight if isinstance(layer, LoraLayer) else None
        if weight is None or weight.is_meta:
            continue
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=is_zero_param(weight)):
            whole = weight.detach().float().clone()
            layer.pissa_init("default", INITIALIZATION)
            for matrix in (a, b):  # in the run's precision, so that the residual includes rounding errors
                matrix.data = matrix.data.to(weight.dtype).to(matrix.dtype).contiguous()
            weight.data = (whole - layer.scaling["default"] * b.data.float() @ a.data.float()).to(weight.dtype)
        for part, matrix in (("A", a), ("B", b)):
            model.pissa_start[f"{name}.lora_{part}.weight"] = matrix.detach().to("cpu", copy=True)


def was_started(model) -> bool:
    """Whether `start` changed the model."""
    return "pissa_start" in vars(model)


def as_update(model, adapters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A [r, in] and B [out, r] by name -> matrices of twice the rank whose product is B A - B0 A0."""
    doubled = {}
    for name, now in adapters.items():
        before = model.pissa_start[name].to(now.dtype)
        doubled[name] = torch.cat([now, before]) if ".lora_A." in name else torch.cat([now, -before], dim=1)
    return doubled
