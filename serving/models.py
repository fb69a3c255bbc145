"""The models that a server offers: a base or checkpoint, and LoRA adapters of it, each by its name."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from checkpoints.read import read_model
from errors import UserError
from generation.adapters import find_adapters, load_adapters
from generation.answerer import Answerer
from generation.constraint import Vocabulary
from generation.engines import start_engines, token_bytes
from generation.models import UnloadedModel, choose_dtype, find_model, load_model
from generation.request import Engine
from modes.mode import Mode
from modes.tokenizer import Tokenizer
from options.serve import LimitOptions, ServeOptions
from serving.errors import ApiError
from shards import DTYPES

OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
BOUNDS = {"temperature": (0, 2), "top_p": (0, 1), "top_k": (0, math.inf), "repetition_penalty": (0.01, 100)}
LEAST_TOKENS = 64  # in the cache of a model: one page
PRECISION_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model of a server.

    name: for clients. parent: the name of the base, if it is an adapter.
    max_model_len: maximum tokens of a prompt with its answer. max_new_tokens: maximum tokens of an answer.
    defaults: fields of sampling for requests that do not say them.
    fingerprint: changes with the weights.
    """

    name: str
    parent: str | None
    mode: Mode
    tokenizer: Tokenizer
    engine: Engine
    vocab_size: int
    max_model_len: int
    max_new_tokens: int
    defaults: Mapping[str, float]
    fingerprint: str
    created: int

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self.mode.stop_ids(self.tokenizer))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token's text."""
        texts = self.tokenizer.token_bytes()
        return texts + [b""] * (self.vocab_size - len(texts))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For constraints; the first use takes about a second."""
        return Vocabulary(self.tokenizer, self.stop_ids, self.vocab_size)

    @property
    def card(self) -> dict[str, Any]:
        """The model object of /v1/models, with vLLM's further fields."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "chatglm-finetuning",
            "parent": self.parent,
            "max_model_len": self.max_model_len,
        }


class Models:
    """The models of a server, which may change while it runs."""

    def __init__(self) -> None:
        self.by_name: dict[str, ServedModel] = {}

    def find(self, name: str) -> ServedModel:
        """The model with a name.

        Raises:
            ApiError: there is none.
        """
        if name not in self.by_name:
            message = f"The model {name[:100]!r} does not exist: GET /v1/models lists those of this server."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.by_name[name]

    @property
    def alive(self) -> bool:
        """Whether every engine accepts requests."""
        return all(model.engine.alive for model in self.by_name.values())

    def close(self) -> None:
        """End the engines."""
        for model in list(self.by_name.values()):
            model.engine.close()


@dataclass(frozen=True, eq=False)
class Found:
    """What --model_path and --lora name, checked, without weights."""

    name: str
    base: UnloadedModel
    adapters: dict[str, UnloadedModel]

    def load(self, options: ServeOptions, device: torch.device) -> list[ServedModel]:
        """Load the weights and start the engines."""
        self.check_cache(options, device)
        return self.start(load_answerers(self, options, device), options, device, options.limits.cache_bytes)

    def start(
        self, answerers: Mapping[str, Answerer], options: ServeOptions, device: torch.device, cache_bytes: int | None
    ) -> list[ServedModel]:
        """Start the engines of loaded models, by their names; cache_bytes: of all, None for a part of the memory."""
        context = context_of(self.base, options.limits)
        engines = start_engines(answerers, options.limits.max_num_seqs, context, cache_bytes)
        created = int(time.time())
        return [
            ServedModel(
                name=name,
                parent=None if name == self.name else self.name,
                mode=unloaded.mode,
                tokenizer=unloaded.tokenizer,
                engine=engines[name],
                vocab_size=unloaded.config.vocab_size,
                max_model_len=min(engines[name].max_tokens, context_of(unloaded, options.limits)),
                max_new_tokens=options.limits.max_new_tokens,
                defaults=defaults_of(unloaded, options),
                fingerprint=fingerprint_of(unloaded, options, device),
                created=created,
            )
            for name, unloaded in {self.name: self.base, **self.adapters}.items()
        ]

    def check_cache(self, options: ServeOptions, device: torch.device) -> None:
        """Raise UserError if --kv_cache_memory has no room for a short prompt of each model."""
        cache_bytes = options.limits.cache_bytes
        if cache_bytes is None:
            return
        dtype, count = choose_dtype(options.model.precision, device), 1 + len(self.adapters)
        tokens = cache_bytes // token_bytes(self.base.mode, self.base.config, dtype) // count
        if tokens < LEAST_TOKENS:
            raise UserError(
                f"--kv_cache_memory {cache_bytes / 2**30:.3g} has room for {tokens} tokens per model: give "
                f"{LEAST_TOKENS * cache_bytes / 2**30 / max(tokens, 1):.2g} or more."
            )


def find_models(options: ServeOptions) -> Found:
    """Find the models of a command line, and check everything that needs no weights.

    Raises:
        UserError: a directory holds no such model, or a limit exceeds the model's.
    """
    model = options.model
    checkpoint = read_model(Path(model.model_path))
    adapters: dict[str, UnloadedModel] = {}
    if options.adapters:
        base, adapters = find_adapters(checkpoint, options.adapters, model.mode, model.quantization_bit)
    else:
        base = find_model(checkpoint, model.base_model, mode=model.mode, quantization_bit=model.quantization_bit)
    name = options.server.served_model_name or Path(model.model_path).resolve().name
    if name in adapters:
        raise UserError(f"--lora has the name {name}, which is the model's: choose another, or --served_model_name.")
    longest, asked = base.config.max_position_embeddings, options.limits.max_model_len
    if asked is not None and asked > longest:
        raise UserError(f"--max_model_len {asked} exceeds the model's {longest} tokens: lower it.")
    for unloaded in (base, *adapters.values()):
        defaults_of(unloaded, options)
    return Found(name, base, adapters)


def load_answerers(found: Found, options: ServeOptions, device: torch.device) -> dict[str, Answerer]:
    """Load the weights: name -> model."""
    if not found.adapters:
        return {found.name: load_model(found.base, options.model.precision, device)}
    base, adapters = load_adapters(found.base, found.adapters, options.model.precision, device)
    return {found.name: base, **adapters}


def context_of(unloaded: UnloadedModel, limits: LimitOptions) -> int:
    """Maximum tokens of a prompt with its answer."""
    return limits.max_model_len or unloaded.config.max_position_embeddings


def defaults_of(unloaded: UnloadedModel, options: ServeOptions) -> dict[str, float]:
    """Sampling of requests that do not say it: of the flags, else generation_config.json, else OpenAI's API.

    Raises:
        UserError: generation_config.json cannot be used.
    """
    flags = {name: value for name, value in vars(options.defaults).items() if value is not None}
    return {**OPENAI_DEFAULTS, **read_generation_config(unloaded.base.path / "generation_config.json"), **flags}


def read_generation_config(file: Path) -> dict[str, float]:
    """The fields of sampling in a generation_config.json; {} without one. do_sample false is temperature 0.

    Raises:
        UserError: it cannot be read, or a value is out of bounds.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: correct it, or remove it.")
    values = {name: content[name] for name in BOUNDS if content.get(name) is not None}
    for name, value in values.items():
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{file} has {name} {value!r}: give a number between {low} and {high}, or remove it.")
    return values | ({"temperature": 0} if content.get("do_sample") is False else {})


def fingerprint_of(unloaded: UnloadedModel, options: ServeOptions, device: torch.device) -> str:
    """The system_fingerprint of a model's answers: its weights, their precision, and the kind of device."""
    precision = PRECISION_NAMES[choose_dtype(options.model.precision, device)]
    bits = f"-{unloaded.quantization_bit}bit" if unloaded.quantization_bit else ""
    return f"fp_{unloaded.identity()}-{precision}{bits}-{device.type}"
