"""LoRA: W x + (alpha / r) B A x, A and B trained, W left as it is (https://arxiv.org/abs/2106.09685), through peft.

A checkpoint is a plain peft adapter directory: peft.PeftModel.from_pretrained loads it too.
"""

import json
import math
import pickle
import warnings
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError

from errors import UserError
from methods.tensors import Fold, check_finite

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
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# what recipes for unfused attention call the parts of query_key_value
FUSED = dict.fromkeys(
    ("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "qkv", "W_pack"), "query_key_value"
)


def configure(config, **_) -> None:
    """Nothing to set."""


def check(model, *, lora_module_name: list[str], **_) -> None:
    """Raise UserError for a name that matches no linear layer."""
    target_modules(model, lora_module_name)


def target_modules(model, names: list[str]) -> list[str]:
    """The names of `lora_module_name` as peft wants them: each one is, or ends, the name of a linear layer.

    Raises:
        UserError: a name that matches no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]

    def matches(target):
        return any(name == target or name.endswith("." + target) for name in linear)

    targets = []
    for name in names:
        if not matches(name) and name in FUSED and matches(FUSED[name]):
            warnings.warn(f"--lora_module_name {name}: this model fuses it; training {FUSED[name]}.", stacklevel=2)
            name = FUSED[name]
        targets.append(name)
    unmatched = [name for name in targets if not matches(name)]
    if unmatched:
        exists = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"--lora_module_name {','.join(unmatched)} matches no linear layer of this model: choose from "
            f"{', '.join(exists)}."
        )
    return list(dict.fromkeys(targets))


def prepare(model, *, lora_dim: int, lora_alpha: float, lora_dropout: float, lora_module_name: list[str], **_):
    """Wrap the model with freshly initialised adapters; only they are trained."""
    config = peft.LoraConfig(
        r=lora_dim,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules(model, lora_module_name),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def save(directory: Path, model, tensors) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    # save_embedding_layers: peft would look the base up on the hub
    model.save_pretrained(directory, state_dict=dict(tensors), save_embedding_layers=False)
    (directory / "README.md").unlink()  # an empty form; checkpoint.json says what this is


def fits(model, directory: Path) -> None:
    """Raise UserError unless the adapters are finite and as wide as the model's layers."""
    config, state = check_config(directory), read_weights(directory)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for module, parts in lora_pairs(state, directory).items():
        found = [parts["B"].shape[0], parts["A"].shape[1]]  # A [r, in], B [out, r]
        if shapes.get(module + ".weight") != found:
            raise UserError(
                f"the adapter of {module} in {directory} is for {found}, the base has "
                f"{shapes.get(module + '.weight', 'no such layer')}: it belongs to another base, give that "
                "one."
            )
        rank = parts["A"].shape[0]
        if not config.get("rank_pattern") and rank != config["r"]:
            raise UserError(
                f"{directory / CONFIG_FILE} has r {config['r']}, its tensors have {rank}: use another checkpoint."
            )


def load(model, directory: Path):
    """Wrap the model with the adapters of `directory` (peft 0.3 to today)."""
    fits(model, directory)
    try:
        return peft.PeftModel.from_pretrained(model, directory)
    # A wrong type in one of the many keys that only peft reads shows in one of these ways.
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"peft cannot load the adapter in {directory} ({first_line(error)}): use another checkpoint."
        ) from error


def first_line(error: Exception) -> str:
    """What a library says, without the rest of its paragraph."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a value of a JSON file is a number from `low` to `high`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def check_config(directory: Path) -> dict:
    """adapter_config.json as a dict.

    Raises:
        UserError: it is missing, broken or of another kind than LoRA.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the directory of a finished checkpoint.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path} does not describe a LoRA adapter: give the directory of a LoRA checkpoint.")
    targets = config.get("target_modules")
    named = isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(name, str) for name in targets))
    wrong = [
        f"{key} {json.dumps(config.get(key))[:80]}"
        for key, right in {
            "r": type(config.get("r")) is int and is_number(config["r"], 1, 10**6),
            "lora_alpha": is_number(config.get("lora_alpha"), -1e9, 1e9),
            "lora_dropout": is_number(config.get("lora_dropout", 0), 0, 1),
            "target_modules": named and targets,
            "megatron_config": not config.get("megatron_config"),  # peft would import a module that the file names
        }.items()
        if not right
    ]
    if wrong:
        raise UserError(f"{path} has {wrong[0]}, which is no LoRA adapter's: use another checkpoint.")
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{directory} holds neither {' nor '.join(WEIGHT_FILES)}: the checkpoint is incomplete.")
    return config


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by peft's names; a .bin file is read with `weights_only`.

    Raises:
        UserError: the file is cut short, or holds anything but tensors.
    """
    try:
        state = peft.load_peft_weights(str(directory), device="cpu")
    except pickle.UnpicklingError:  # torch says at length how to load it all the same
        raise UserError(
            f"the adapter_model file in {directory} cannot be read (it holds more than tensors): use another."
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"the adapter_model file in {directory} cannot be read ({first_line(error)}): use another checkpoint."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"the adapter_model file in {directory} holds other things than tensors: use another one.")
    return state


def lora_pairs(state: dict[str, torch.Tensor], directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Official module name -> {"A": [r, in], "B": [out, r]}, of a peft state dict.

    Raises:
        UserError: one without the other, or values that are not finite.
    """
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if part in ("A.weight", "B.weight"):
            check_finite(name, tensor, directory)
            pairs.setdefault(module, {})[part[0]] = tensor
    broken = [
        module
        for module, parts in pairs.items()
        if len(parts) < 2 or any(tensor.ndim != 2 for tensor in parts.values())
        or parts["A"].shape[0] != parts["B"].shape[1]
    ]  # fmt: skip
    if broken or not pairs:
        raise UserError(f"{directory} holds no whole pair of LoRA matrices for {broken[0] if broken else 'any layer'}:"
                        " use another checkpoint.")  # fmt: skip
    return pairs


def fold(directory: Path, **_) -> Fold:
    """W + scaling * B A, in float32, for every adapted weight."""
    config = check_config(directory)
    kinds = ("use_dora", "fan_in_fan_out", "alpha_pattern", "modules_to_save")
    if any(config.get(kind) for kind in kinds) or config.get("bias", "none") != "none":
        raise UserError(
            f"{directory / CONFIG_FILE} uses one of bias, {', '.join(kinds)}, which cannot be merged here: merge it "
            "with peft."
        )
    state = read_weights(directory)
    if any(".lora_A." not in name and ".lora_B." not in name for name in state):
        raise UserError(
            f"{directory} holds tensors other than LoRA's A and B, which cannot be merged here: merge it with peft."
        )
    pairs = {f"{module}.weight": parts for module, parts in lora_pairs(state, directory).items()}

    def change(name, weight):
        if name not in pairs:
            return weight
        a, b = pairs[name]["A"].float(), pairs[name]["B"].float()
        rank = a.shape[0]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return weight.float() + scaling * (b @ a)

    return Fold(change=change, names=frozenset(pairs))
