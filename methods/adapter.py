"""Read peft's adapter directories, from version 0.3 to today.

They contain LoRA, rsLoRA, DoRA and AdaLoRA on linear layers and embeddings, trained tensors of the base
(modules_to_save, biases, saved embeddings) and rows of embeddings (trainable_token_indices). Every tensor of a file is
used, or there is an error.
"""

import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError

from errors import UserError
from methods.adapter_config import CONFIG_FILE, check_config, first_match
from methods.tensors import check_finite
from texts import one_line

PREFIX = "base_model.model."  # peft's prefix of the official names
# Parts that torch.compile, DDP, FSDP, activation checkpointing and peft add to names.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
# An adapter's name, such as default, which peft removes from the names in its files.
ADAPTER_NAME = re.compile(r"(\.(?:lora_\w+|trainable_tokens_delta|modules_to_save))\.(?!(?:weight|bias)$)[^.]+")
PART = re.compile(r"(.+)\.lora_(A|B|E|magnitude_vector|embedding_A|embedding_B)(?:\.(weight|bias))?")
TOKENS = ".token_adapter.trainable_tokens_delta"
PARTS = {
    "LORA": [{"A", "B"}, {"embedding_A", "embedding_B"}],
    "ADALORA": [{"A", "B", "E"}],
}
MAGNITUDE, BIAS = "magnitude_vector", "B_bias"
RANK_EPSILON = 1e-5  # peft's, in the scale of AdaLoRA


@dataclass(frozen=True, eq=False)
class Adapter:
    """The content of an adapter directory.

    config: the content of adapter_config.json.
    layers: official module name -> {"A": [r, in], "B": [out, r]}, optionally "E" [r, 1] (AdaLoRA),
        "magnitude_vector" [out] (DoRA) or "B_bias" [out] (lora_bias); for an embedding of v tokens {"embedding_A":
        [r, v], "embedding_B": [h, r]}, optionally "magnitude_vector" [h].
    whole: official name -> tensor that replaces the base's.
    rows: official name -> (token ids [n], values [n, h] of these rows).
    """

    directory: Path
    config: dict
    layers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "adalora", "dora", "rslora" or "lora"."""
        if self.config["peft_type"] == "ADALORA":
            return "adalora"
        return "dora" if self.config.get("use_dora") else "rslora" if self.config.get("use_rslora") else "lora"

    @property
    def rank(self) -> int:
        """The adapter's rank, except for layers in rank_pattern."""
        return self.config["init_r" if self.kind == "adalora" else "r"]

    def alpha(self, module: str) -> float:
        """lora_alpha of a module."""
        patterns = None if self.kind == "adalora" else self.config.get("alpha_pattern")  # peft's AdaLoRA has none
        return first_match(patterns, module, self.config["lora_alpha"])

    def scale(self, module: str) -> float:
        """The factor of the product of a module's matrices."""
        if self.kind == "adalora":
            return self.alpha(module) / (self.rank + RANK_EPSILON)
        rank = len(low_rank(self.layers[module])[0])
        return self.alpha(module) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def update(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """A module's merged weight ([out, in], or [v, h] of an embedding), in float32."""
        parts = {name: tensor.float() for name, tensor in self.layers[module].items()}
        a, b = low_rank(parts)
        if "E" in parts:
            a = a * parts["E"]
        product, is_embedding = b @ a, "embedding_A" in parts
        summed = weight.float() + self.scale(module) * (product.T if is_embedding else product)
        if MAGNITUDE not in parts:
            return summed
        dim = 0 if is_embedding else 1
        return (parts[MAGNITUDE] / torch.linalg.norm(summed, dim=dim)).unsqueeze(dim) * summed

    def replaced(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A base's tensor, or the adapter's replacement."""
        if name in self.whole:
            tensor = self.whole[name].clone()  # tied names: a file has both
        if name in self.rows:
            indices, values = self.rows[name]
            tensor = tensor.float().index_copy(0, indices, values.float())
        return tensor

    def change(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A base's tensor, merged with the adapter."""
        module, _, leaf = name.rpartition(".")
        parts, tensor = self.layers.get(module, {}), self.replaced(name, tensor)
        if leaf == "bias" and BIAS in parts:
            tensor = tensor.float() + self.scale(module) * parts[BIAS].float()
        return self.update(module, tensor) if parts and leaf == "weight" else tensor

    def names(self) -> set[str]:
        """The official names of the tensors that `change` modifies."""
        biases = {f"{module}.bias" for module, parts in self.layers.items() if BIAS in parts}
        return {f"{module}.weight" for module in self.layers} | biases | self.whole.keys() | self.rows.keys()

    def lora_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in files of today's peft, tensor) of every layer."""
        leaf = "" if self.kind == "adalora" else ".weight"
        names = {"A": f"A{leaf}", "B": f"B{leaf}", BIAS: "B.bias"}
        for module, parts in self.layers.items():
            for part, tensor in parts.items():
                yield f"{module}.lora_{names.get(part, part)}", tensor


def low_rank(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices [r, in] and [out, r] of a layer."""
    start = "embedding_" if "embedding_A" in parts else ""
    return parts[f"{start}A"], parts[f"{start}B"]


def official_name(name: str) -> str:
    """A tensor's name without the parts that peft and other wrappers add."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    return ADAPTER_NAME.sub(r"\1", name).replace(".modules_to_save.", ".")


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter directory, and check it as far as possible without its base.

    Raises:
        UserError: it is broken, or of an unsupported kind.
    """
    config = check_config(directory)
    adapter = Adapter(directory, config)
    read: dict[str, str] = {}  # official name -> the file's
    for name, tensor in read_weights(directory).items():
        official = official_name(name)
        if official in read:
            raise UserError(
                f"{directory} holds both {read[official]} and {name}, which are one tensor of the model: use an "
                "adapter_model file that holds a single adapter."
            )
        read[official] = name
        if not tensor.is_floating_point():
            raise UserError(f"{name} in {directory} holds {tensor.dtype} values: use another checkpoint.")
        check_finite(name, tensor, directory)
        part, module = PART.fullmatch(official), official.removesuffix(TOKENS)
        if part:
            adapter.layers.setdefault(part[1], {})[part[2] + "_bias" * (part[3] == "bias")] = tensor
        elif module != official:
            adapter.rows[f"{module}.weight"] = token_indices(config, module, tensor, directory), tensor
        elif "lora_" in official or "original_module" in official:
            raise UserError(
                f"{directory} holds {name}, which cannot be applied here: merge it with peft, or use another adapter."
            )
        else:
            adapter.whole[official] = tensor
    check_layers(adapter)
    return adapter


def token_indices(config: dict, module: str, values: torch.Tensor, directory: Path) -> torch.Tensor:
    """The ids [n] of the tokens whose embedding rows an adapter has.

    Raises:
        UserError: adapter_config.json has no ids for this module, or another number than there are rows.
    """
    named = config.get("trainable_token_indices") or []
    if isinstance(named, dict):
        named = next((ids for name, ids in named.items() if f".{module}".endswith(f".{name}")), [])
    if values.ndim != 2 or len(values) != len(named):
        raise UserError(
            f"{directory / CONFIG_FILE} has {len(named)} trainable_token_indices for {module}, its tensor has shape "
            f"{list(values.shape)}: use another checkpoint."
        )
    return torch.tensor(named, dtype=torch.int64, device="cpu")  # not on the default device


def check_layers(adapter: Adapter) -> None:
    """Raise UserError unless every layer's tensors are complete, match each other, and have the config's rank."""
    directory = adapter.directory
    broken = [module for module, parts in adapter.layers.items() if not is_whole(parts, adapter.config["peft_type"])]
    if broken or not adapter.layers:
        raise UserError(f"{directory} holds no whole pair of LoRA matrices for {broken[0] if broken else 'any layer'}:"
                        " use another checkpoint.")  # fmt: skip
    for module, parts in adapter.layers.items():
        rank = len(low_rank(parts)[0])
        asked: float = adapter.rank
        if adapter.kind == "adalora" and adapter.config.get("rank_pattern"):
            continue
        if adapter.kind != "adalora":
            asked = first_match(adapter.config.get("rank_pattern"), module, asked)
        if rank != asked:
            raise UserError(
                f"{directory / CONFIG_FILE} has r {asked} for {module}, its tensors have {rank}: use another "
                "checkpoint."
            )


def is_whole(parts: dict[str, torch.Tensor], peft_type: str) -> bool:
    """Whether a layer's tensors are complete and match each other."""
    names = set(parts) - {MAGNITUDE, BIAS} if peft_type == "LORA" else set(parts)
    if names not in PARTS[peft_type] or (BIAS in parts and (MAGNITUDE in parts or "B" not in parts)):
        return False
    a, b = low_rank(parts)
    if a.ndim != 2 or b.ndim != 2:
        return False
    wanted = {"E": [len(a), 1], MAGNITUDE: [len(b)], BIAS: [len(b)]}
    sizes_match = all(list(tensor.shape) == wanted[name] for name, tensor in parts.items() if name in wanted)
    return sizes_match and b.shape[1] == len(a)


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by peft's names; a .bin file is read with `weights_only`.

    Raises:
        UserError: the file is truncated, or contains anything but tensors.
    """
    try:
        state = peft.load_peft_weights(str(directory), device="cpu")
    except pickle.UnpicklingError:  # torch's message explains at length how to load it anyway
        raise UserError(
            f"the adapter_model file in {directory} cannot be read (it contains more than tensors): use another."
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"the adapter_model file in {directory} cannot be read ({one_line(error)}): use another checkpoint."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"the adapter_model file in {directory} contains more than tensors: use another one.")
    return state
