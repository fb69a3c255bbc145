"""LoRA: W x + (alpha / r) B A x, A and B trained, W left as it is (https://arxiv.org/abs/2106.09685), through peft.

--lora_variant changes how A and B start, are scaled or learn:

dora      W' = m (W + s B A) / |W + s B A|, the length m of every row trained too (https://arxiv.org/abs/2402.09353)
rslora    alpha / sqrt(r) in the place of alpha / r (https://arxiv.org/abs/2312.03732)
loraplus  B learns at a multiple of the rate (https://arxiv.org/abs/2402.12354)
pissa     starts from the largest singular vectors of W (https://arxiv.org/abs/2404.02948), see methods/pissa.py
adalora   B E A; ranks go where they matter (https://arxiv.org/abs/2303.10512), see methods/adalora.py

A checkpoint is a plain peft adapter directory: peft.PeftModel.from_pretrained loads it too.
"""

import copy
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file

from errors import UserError
from methods import adalora, pissa
from methods.adapter import PREFIX
from methods.adapter_config import CONFIG_FILE, WEIGHT_FILES, check_config, other_base
from methods.apply import fits, fold, load
from methods.tensors import tied_names

__all__ = [
    "CONFIG_FILE",
    "check_config",
    "fits",
    "fold",
    "load",
    "other_base",
]  # of an adapter directory, for the programs
OPTIONS = (
    "lora_dim",
    "lora_alpha",
    "lora_dropout",
    "lora_module_name",
    "lora_variant",
    "loraplus_lr_ratio",
    "adalora_target_r",
    "modules_to_save",
)
ALL_LINEAR = "all-linear"
# what recipes for unfused attention call the parts of query_key_value
FUSED = dict.fromkeys(
    ("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "qkv", "W_pack"), "query_key_value"
)


def configure(config, **_) -> None:
    """Nothing to set."""


def check(
    model, *, lora_dim: int, lora_module_name: list[str], lora_variant: str = "lora", modules_to_save=None, **_
) -> None:
    """Raise UserError for a name that matches no layer, or a rank that is too high."""
    targets = target_layers(model, lora_module_name)
    inside = [
        f"{module} has LoRA matrices in {target}"
        for module in whole_modules(model, modules_to_save)
        for target in targets
        if f"{target}.".startswith(f"{module}.")
    ]
    if inside:
        raise UserError(f"--modules_to_save: {inside[0]}, it can only be trained in one way: leave one of them out.")
    smallest = min(min(model.get_submodule(target).weight.shape) for target in targets)
    if lora_variant == "pissa" and lora_dim > smallest:
        raise UserError(
            f"--lora_dim {lora_dim} is more than the {smallest} singular vectors that PiSSA can start from."
        )


def target_modules(model, names: list[str]) -> list[str]:
    """The names of `lora_module_name` as peft wants them: each one is, or ends, the name of a linear layer.

    Raises:
        UserError: a name that matches no linear layer, or one that is tied to another.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())

    def matches(target):
        return any(name == target or name.endswith("." + target) for name in linear)

    targets = []
    for name in names:
        if name == ALL_LINEAR:
            targets += sorted({one.rsplit(".", 1)[-1] for one in linear if one != head})
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
            f"--lora_module_name {head}: it is the embedding of this model, LoRA cannot change one of the two alone: "
            f"give --modules_to_save {head}."
        )
    return list(dict.fromkeys(targets))


def target_layers(model, names: list[str]) -> list[str]:
    """The full names of the linear layers that `lora_module_name` means."""
    targets = target_modules(model, names)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]


def whole_modules(model, names: list[str] | None) -> list[str]:
    """The full names of the modules that `modules_to_save` means, those that share their weights with one included.

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
    found = {module for module in modules for name in names or () if f".{module}".endswith(f".{name}")}
    for target, source in tied_names(model).items():
        pair = {target.removesuffix(".weight"), source.removesuffix(".weight")}
        found |= pair if pair & found else set()
    return sorted(found)


def prepare(
    model,
    *,
    lora_dim: int,
    lora_alpha: float,
    lora_dropout: float,
    lora_module_name: list[str],
    lora_variant: str = "lora",
    adalora_target_r: int = 4,
    modules_to_save: list[str] | None = None,
    **_,
):
    """Wrap the model with freshly initialised adapters; only they, and `modules_to_save`, are trained.

    The latter are trained in place: peft would train a copy, which takes the memory twice and unties tied weights.
    """
    whole = whole_modules(model, modules_to_save)
    settings = {
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": target_modules(model, lora_module_name),
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    if lora_variant == "adalora":
        config = adalora.make_config(lora_dim, adalora_target_r, settings)
    else:
        config = peft.LoraConfig(
            r=lora_dim, use_dora=lora_variant == "dora", use_rslora=lora_variant == "rslora", **settings
        )
    model = peft.get_peft_model(model, config)
    if lora_variant == "pissa":
        pissa.start(model)
    elif lora_variant == "adalora":
        adalora.freeze_scales(model)
    for name in whole:
        model.get_base_model().get_submodule(name).requires_grad_(True)
    return model


def save(directory: Path, model, tensors) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which apply to the base as it was."""
    adapters, whole = {}, {}
    for name, tensor in tensors:
        if ".lora_" in name:
            adapters[saved_name(name)] = tensor
        else:
            whole[name] = tensor
    config = copy.deepcopy(model.peft_config["default"])
    if config.peft_type == peft.PeftType.ADALORA:
        adapters, config.rank_pattern = adalora.without_zero_ranks(adapters, bool(config.rank_pattern))
    elif pissa.was_started(model):
        adapters = pissa.as_update(model, adapters)
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    if whole:
        base = model.get_base_model()
        copies = {
            PREFIX + target: whole[PREFIX + source].clone()
            for target, source in tied_names(base).items()
            if PREFIX + source in whole
        }
        whole |= copies
        config.modules_to_save = sorted({name.removeprefix(PREFIX).rpartition(".")[0] for name in whole})
    config.inference_mode = True
    base_path = model.get_base_model().name_or_path
    config.base_model_name_or_path = str(Path(base_path).resolve()) if base_path else ""  # found from any directory
    config.save_pretrained(directory)
    save_file({name: one.contiguous() for name, one in {**adapters, **whole}.items()}, directory / WEIGHT_FILES[0])


def saved_name(name: str) -> str:
    """What a file calls the parameter of an adapter: without the adapter's name."""
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
