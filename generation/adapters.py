"""Several LoRA adapters on one base, whose weights are in memory once."""

import copy
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from checkpoints.read import CheckpointInfo, read_model
from errors import UserError
from generation.answerer import Answerer
from generation.models import UnloadedModel, find_model, load_model
from methods.adapter import Adapter
from modes.model import LanguageModel


def find_adapters(
    base: CheckpointInfo,
    adapters: Mapping[str, str | Path],
    mode: str | None = None,
    quantization_bit: int | None = None,
) -> tuple[UnloadedModel, dict[str, UnloadedModel]]:
    """Find a base and adapters of it, and check everything that needs no weights.

    Args:
        adapters: name -> directory of a LoRA checkpoint or a peft adapter.
        mode, quantization_bit: see `find_model`; by default the base is quantized as the adapters were trained.

    Returns: (base, name -> base with the adapter).

    Raises:
        UserError: a directory is no such adapter, or belongs to another base.
    """
    if adapters and base.train_type != "all":
        raise UserError(
            f"--lora needs a base or a merged directory, and --model_path {base.path} is a checkpoint: give its base."
        )
    problems: list[str] = []
    read: dict[str, CheckpointInfo] = {}
    for name, directory in adapters.items():
        if not Path(directory).is_dir():
            problems.append(f"--lora {name}={directory} is not a directory: give a LoRA checkpoint or a peft adapter.")
            continue
        try:
            read[name] = read_model(Path(directory))
            if not isinstance(read[name].saved, Adapter):
                problems.append(f"--lora {name}={directory}: it is not a LoRA checkpoint; give one, or merge it first.")
        except UserError as error:
            problems += error.sentences
    if problems:
        raise UserError(*problems)
    bits = {info.run_options.get("quantization_bit") or 0 for info in read.values()}
    if quantization_bit is None and len(bits) > 1:
        raise UserError("The adapters of --lora were trained with different --quantization_bit: give one for all.")
    if quantization_bit is None and bits:
        quantization_bit = bits.pop()
    found: dict[str, UnloadedModel] = {}
    for name, info in read.items():
        try:
            found[name] = find_model(info, base.path, mode=mode, quantization_bit=quantization_bit)
        except UserError as error:
            problems += [f"--lora {name}: {sentence}" for sentence in error.sentences]
    if problems:
        raise UserError(*problems)
    return find_model(base, mode=mode, quantization_bit=quantization_bit), found


def load_adapters(
    base: UnloadedModel,
    adapters: Mapping[str, UnloadedModel],
    precision: str = "auto",
    device: torch.device | None = None,
) -> tuple[Answerer, dict[str, Answerer]]:
    """Load the weights of a base and of adapters from `find_adapters`.

    Returns: (base, name -> base with the adapter); all share the base's tensors.
    """
    answerer = load_model(base, precision, device)
    return answerer, {name: add_adapter(answerer, unloaded) for name, unloaded in adapters.items()}


def add_adapter(answerer: Answerer, unloaded: UnloadedModel) -> Answerer:
    """A base with an adapter of it, which shares the base's tensors; no engine may have the base yet."""
    model, saved = share_weights(answerer.model), unloaded.checkpoint.saved
    assert isinstance(saved, Adapter), "checked by find_adapters"
    unshare(model, (*saved.whole, *saved.rows))
    model = unloaded.checkpoint.method.load(model, saved).eval()
    return Answerer(unloaded.mode, answerer.tokenizer, model, unloaded.limits)


def share_weights(model: LanguageModel) -> LanguageModel:
    """A copy of a model with the same tensors: its modules can be replaced, its tensors must not be changed."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def unshare(model: nn.Module, names: Iterable[str]) -> None:
    """Replace parameters by copies, also where they are tied, so that they can be changed."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for shared in {id(parameters[name]): parameters[name] for name in names}.values():
        own = nn.Parameter(shared.detach().clone(), requires_grad=False)
        for name in [name for name, parameter in parameters.items() if parameter is shared]:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, own)
