"""Resolve the names of --lora_module_name and --modules_to_save to modules of a model."""

import warnings
from collections.abc import Sequence

import torch

from errors import UserError
from methods.tensors import tied_names

ALL_LINEAR = "all-linear"
# names of query_key_value's parts in recipes for unfused attention
FUSED = dict.fromkeys(
    ("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "qkv", "W_pack"), "query_key_value"
)


def target_modules(model, names: Sequence[str]) -> list[str]:
    """The names of `lora_module_name` for peft: each is the name of a linear layer, or its end.

    Raises:
        UserError: a name matches no linear layer, or a tied one.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())

    def matches(target):
        return any(name == target or name.endswith("." + target) for name in linear)

    targets = []
    for name in names:
        if name == ALL_LINEAR:
            targets += sorted({layer.rsplit(".", 1)[-1] for layer in linear if layer != head})
            continue
        if not matches(name) and name in FUSED and matches(FUSED[name]):
            warnings.warn(f"--lora_module_name {name}: this model fuses it; training {FUSED[name]}.", stacklevel=2)
            name = FUSED[name]
        targets.append(name)
    unmatched = [name for name in targets if not matches(name)]
    if unmatched:
        exists = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"--lora_module_name {','.join(unmatched)} matches no linear layer of this model: choose from "
            f"{', '.join(exists)}, or {ALL_LINEAR}."
        )
    if head in targets and f"{head}.weight" in tied_names(model):
        raise UserError(
            f"--lora_module_name {head}: it is tied to the embedding of this model, and LoRA cannot change only one of "
            f"the two: give --modules_to_save {head}."
        )
    return list(dict.fromkeys(targets))


def target_layers(model, names: Sequence[str]) -> list[str]:
    """The full names of the linear layers of `lora_module_name`."""
    targets = target_modules(model, names)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]


def whole_modules(model, names: Sequence[str] | None) -> list[str]:
    """The full names of the modules of `modules_to_save`, including those with tied weights.

    Raises:
        UserError: a name that matches no module.
    """
    modules = [name for name, module in model.named_modules() if name and list(module.parameters())]
    for name in names or ():
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            leaves = {module.rsplit(".", 1)[-1] for module in modules if ".layers." not in module}
            raise UserError(
                f"--modules_to_save {name} matches no module of this model: choose from {', '.join(sorted(leaves))}."
            )
    matching = {module for module in modules for name in names or () if f".{module}".endswith(f".{name}")}
    for target, source in tied_names(model).items():
        pair = {target.removesuffix(".weight"), source.removesuffix(".weight")}
        matching |= pair if pair & matching else set()
    return sorted(matching)
