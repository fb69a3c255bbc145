"""The models of a chat: a base, its adapters, or one checkpoint beside its base."""

import dataclasses
from pathlib import Path

import torch

from chatting.answers import CachedModel
from checkpoints.read import CheckpointInfo, read_model
from errors import UserError
from generation.adapters import find_adapters, load_adapters
from generation.models import UnloadedModel, choose_limits, find_base, find_model, load_model
from methods.adapter import Adapter
from options.chat import BASE, ChatOptions


@dataclasses.dataclass(frozen=True)
class UnloadedChat:
    """The checked models of a chat, without weights.

    model: of --model_path. base: the base of its checkpoint; None if --model_path is a whole model.
    adapters: name -> adapter; those share the weights of the base, or of `model`.
    """

    model: UnloadedModel
    base: UnloadedModel | None
    adapters: dict[str, UnloadedModel]

    @property
    def trained(self) -> dict:
        """The flags of the run that trained the model; {} if they are unknown."""
        first = next(iter(self.adapters.values()), self.model)
        return first.checkpoint.run_options


def find_chat(options: ChatOptions) -> UnloadedChat:
    """Find and check the models of a command line.

    Raises:
        UserError: one of them is missing or does not fit.
    """
    flags, limits = options.model, (options.answers.max_src_len, options.answers.max_len)
    checkpoint = read_model(Path(flags.model_path))
    if options.adapters.lora:
        base, adapters = find_adapters(checkpoint, options.adapters.directories, flags.mode, flags.quantization_bit)
        return UnloadedChat(
            with_limits(base, *limits), None, {name: with_limits(found, *limits) for name, found in adapters.items()}
        )
    model = find_model(
        checkpoint,
        flags.base_model,
        mode=flags.mode,
        quantization_bit=flags.quantization_bit,
        max_src_len=limits[0],
        max_len=limits[1],
    )
    if checkpoint.train_type == "all":
        return UnloadedChat(model, None, {})
    base = with_limits(find_base(model), *limits)
    is_adapter = isinstance(checkpoint.saved, Adapter)
    return UnloadedChat(model, base, {name_of(checkpoint): model} if is_adapter else {})


def with_limits(model: UnloadedModel, max_src_len: int | None, max_len: int | None) -> UnloadedModel:
    """A model with the limits of --max_src_len and --max_len, else those of training."""
    return dataclasses.replace(model, limits=choose_limits(model.checkpoint, max_src_len, max_len))


def name_of(checkpoint: CheckpointInfo) -> str:
    """The name of a checkpoint in the chat: that of its directory."""
    name = checkpoint.path.resolve().name
    return "tuned" if name == BASE else name


class Models:
    """Loaded models by name; a base beside a checkpoint that shares no weights is loaded on first use.

    Args:
        precision: --precision.
    """

    def __init__(self, unloaded: UnloadedChat, precision: str, device: torch.device):
        self.precision, self.device = precision, device
        self.loaded: dict[str, CachedModel] = {}
        self.later: UnloadedModel | None = None  # loaded as BASE
        if unloaded.adapters:
            base, adapters = load_adapters(unloaded.base or unloaded.model, unloaded.adapters, precision, device)
            self.loaded = {name: CachedModel(answerer) for name, answerer in adapters.items()}
            self.loaded[BASE] = CachedModel(base)
        elif unloaded.base is None:
            self.loaded[BASE] = CachedModel(load_model(unloaded.model, precision, device))
        else:
            name = name_of(unloaded.model.checkpoint)
            self.loaded[name] = CachedModel(load_model(unloaded.model, precision, device))
            self.later = unloaded.base
        self.current = next(iter(self.loaded))

    @property
    def names(self) -> list[str]:
        """All names; the first is that of the model that the chat starts with."""
        return [*self.loaded, *([BASE] if self.later else [])]

    def wait(self, seconds: float) -> bool:
        """Wait for the threads of answers, so many seconds for each model. Returns whether all have ended."""
        return all([model.wait(seconds) for model in self.loaded.values()])

    def get(self, name: str) -> CachedModel:
        """A model by name.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self.names:
            raise UserError(f"There is no adapter {name}: choose one of {', '.join(self.names)}.")
        if name not in self.loaded and self.later is not None:
            self.loaded[name] = CachedModel(load_model(self.later, self.precision, self.device))
            self.later = None
        return self.loaded[name]
