"""peft's adapter directories, of version 0.3 to today: LoRA, DoRA, AdaLoRA, and modules that were trained whole."""

import json
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError

from errors import UserError
from methods.tensors import check_finite

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # what peft puts in front of the official names
PART = re.compile(r"(.+)\.lora_(A|B|E|magnitude_vector)(?:\.weight)?")
PARTS = {"LORA": ({"A", "B"}, {"A", "B", "magnitude_vector"}), "ADALORA": ({"A", "B", "E"},)}
RANK_EPSILON = 1e-5  # peft's, in the scale of AdaLoRA
# Initialisations that change the base: peft does that again whenever it loads such an adapter.
CHANGE_THE_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga|orthogonal")


@dataclass(frozen=True)
class Adapter:
    """What an adapter directory holds.

    layers: official module name -> {"A": [r, in], "B": [out, r]}, with "E" [r, 1] (AdaLoRA) or "magnitude_vector"
        [out] (DoRA) beside them.
    whole: official name -> tensor, of the modules that were trained whole.
    """

    config: dict
    layers: dict[str, dict[str, torch.Tensor]]
    whole: dict[str, torch.Tensor]

    @property
    def kind(self) -> str:
        """ "adalora", "dora", "rslora" or "lora"."""
        if self.config["peft_type"] == "ADALORA":
            return "adalora"
        return "dora" if self.config.get("use_dora") else "rslora" if self.config.get("use_rslora") else "lora"

    @property
    def rank(self) -> int:
        """The rank that the adapter was made with."""
        return self.config["init_r" if self.kind == "adalora" else "r"]

    def update(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """A module's weight [out, in] as the adapter makes it, in float32."""
        parts = {name: tensor.float() for name, tensor in self.layers[module].items()}
        a, b, alpha = parts["A"], parts["B"], self.config["lora_alpha"]
        for name, other in (self.config.get("alpha_pattern") or {}).items():
            alpha = other if f".{module}".endswith(f".{name}") else alpha
        if "E" in parts:
            return weight.float() + alpha / (self.rank + RANK_EPSILON) * (b @ (a * parts["E"]))
        rank = a.shape[0]
        summed = weight.float() + alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank) * (b @ a)
        if "magnitude_vector" not in parts:
            return summed
        return parts["magnitude_vector"][:, None] / torch.linalg.norm(summed, dim=1, keepdim=True) * summed


def read_adapter(directory: Path) -> Adapter:
    """An adapter directory, checked as far as that is possible without its base.

    Raises:
        UserError: it is broken, or of a kind that nothing here can apply.
    """
    config = check_config(directory)
    layers, whole = {}, {}
    for name, tensor in read_weights(directory).items():
        check_finite(name, tensor, directory)
        official = name.removeprefix(PREFIX)
        part = PART.fullmatch(official)
        if part:
            layers.setdefault(part[1], {})[part[2]] = tensor
        elif config.get("modules_to_save") and "lora_" not in official:
            whole[official] = tensor
        else:
            raise UserError(
                f"{directory} holds {name}, which cannot be applied here: merge it with peft, or use another adapter."
            )
    adapter = Adapter(config, layers, whole)
    broken = [module for module, parts in layers.items() if not is_whole(parts, config["peft_type"])]
    if broken or not layers:
        raise UserError(f"{directory} holds no whole pair of LoRA matrices for {broken[0] if broken else 'any layer'}:"
                        " use another checkpoint.")  # fmt: skip
    ranks = {parts["A"].shape[0] for parts in layers.values()}
    if not config.get("rank_pattern") and ranks != {adapter.rank}:
        raise UserError(
            f"{directory / CONFIG_FILE} has r {adapter.rank}, its tensors have {max(ranks - {adapter.rank})}: use "
            "another checkpoint."
        )
    return adapter


def is_whole(parts: dict[str, torch.Tensor], peft_type: str) -> bool:
    """Whether a layer's tensors are all there and fit each other."""
    if set(parts) not in PARTS[peft_type] or parts["A"].ndim != 2 or parts["B"].ndim != 2:
        return False
    rank = parts["A"].shape[0]
    wanted = {"E": [rank, 1], "magnitude_vector": [parts["B"].shape[0]]}
    others = all(list(tensor.shape) == wanted[name] for name, tensor in parts.items() if name in wanted)
    return others and parts["B"].shape[1] == rank


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a value of a JSON file is a number from `low` to `high`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_names(value: object) -> bool:
    """Whether a value of a JSON file is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def check_config(directory: Path) -> dict:
    """adapter_config.json as a dict.

    Raises:
        UserError: it is missing, broken or of a kind that cannot be applied here.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the directory of a finished checkpoint.") from None
    if not isinstance(config, dict) or config.get("peft_type") not in PARTS:
        raise UserError(f"{path} does not describe a LoRA adapter: give the directory of a LoRA checkpoint.")
    rank = "init_r" if config["peft_type"] == "ADALORA" else "r"
    targets, pattern, start = (config.get(key) for key in ("target_modules", "alpha_pattern", "init_lora_weights"))
    right = {
        rank: type(config.get(rank)) is int and is_number(config[rank], 1, 10**6),
        "lora_alpha": is_number(config.get("lora_alpha"), -1e9, 1e9),
        "lora_dropout": is_number(config.get("lora_dropout", 0), 0, 1),
        "target_modules": targets and (isinstance(targets, str) or is_names(targets)),
        "modules_to_save": config.get("modules_to_save") is None or is_names(config["modules_to_save"]),
        "alpha_pattern": not pattern
        or (isinstance(pattern, dict) and all(re.fullmatch(r"[\w.]+", name) for name in pattern))  # no other patterns
        and all(is_number(value, -1e9, 1e9) for value in pattern.values()),
        "megatron_config": not config.get("megatron_config"),  # peft would import a module that the file names
        "bias": config.get("bias", "none") == "none",
        "fan_in_fan_out": not config.get("fan_in_fan_out"),
        "layer_replication": not config.get("layer_replication"),
        "init_lora_weights": not (isinstance(start, str) and CHANGE_THE_BASE.match(start)),
    }
    wrong = [f"{key} {json.dumps(config.get(key))[:80]}" for key, fine in right.items() if not fine]
    if wrong:
        raise UserError(f"{path} has {wrong[0]}, which cannot be applied here: use another checkpoint.")
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


def first_line(error: Exception) -> str:
    """What a library says, without the rest of its paragraph."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
