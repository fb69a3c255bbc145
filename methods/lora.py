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
from methods.tensors import Fold

OPTIONS = ("lora_dim", "lora_alpha", "lora_dropout", "lora_module_name")
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


def prepare(model, *, lora_dim: int, lora_alpha: float, lora_dropout: float, lora_module_name: list[str]):
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


def load(model, directory: Path):
    """Wrap the model with the adapters of `directory` (peft 0.3 to today)."""
    check_config(directory)
    read_weights(directory)
    return peft.PeftModel.from_pretrained(model, directory)


def check_config(directory: Path) -> dict:
    """adapter_config.json as a dict.

    Raises:
        UserError: it is missing, broken or of another kind than LoRA.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the directory of a finished checkpoint.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path} does not describe a LoRA adapter: give the directory of a LoRA checkpoint.")
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{directory} holds neither {' nor '.join(WEIGHT_FILES)}: the checkpoint is incomplete.")
    return config


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by peft's names; a .bin file is read with `weights_only`.

    Raises:
        UserError: the file is cut short, or holds anything but tensors.
    """
    try:
        return peft.load_peft_weights(str(directory), device="cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the adapter_model file in {directory} cannot be read ({reason}): use another.") from None


def fold(directory: Path, **_) -> Fold:
    """W + scaling * B A, in float32, for every adapted weight."""
    config = check_config(directory)
    if config.get("use_dora") or config.get("bias", "none") != "none" or config.get("fan_in_fan_out"):
        raise UserError(f"{directory / CONFIG_FILE} uses DoRA, biases or fan_in_fan_out, which cannot be merged here.")
    state = read_weights(directory)
    if any(".lora_" not in name for name in state):
        raise UserError(f"{directory} holds tensors other than LoRA's A and B, which cannot be merged here.")

    prefix, pairs = "base_model.model.", {}
    for name, tensor in state.items():
        module, part = name.removeprefix(prefix).rsplit(".lora_", 1)
        pairs.setdefault(module + ".weight", {})[part[0]] = tensor.float()

    def change(name, weight):
        if name not in pairs:
            return weight
        a, b = pairs[name]["A"], pairs[name]["B"]  # [r, in], [out, r]
        rank = a.shape[0]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return weight.float() + scaling * (b @ a)

    return Fold(change=change, names=frozenset(pairs))
