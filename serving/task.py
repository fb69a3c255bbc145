"""What a checked request asks of a model: the answers to generate, and how to write them as OpenAI's objects."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from generation.request import Sampling
from serving.answers import Choice, Piece
from serving.errors import invalid
from serving.models import ServedModel
from serving.schema import SamplingFields

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0  # in place of minus infinity, which is not JSON


@dataclass(frozen=True)
class Head:
    """The fields that all chunks of a response share. prefix: of its id."""

    prefix: str
    model: ServedModel
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, kind: str, choices: list[Json]) -> Json:
        """A response or chunk. kind: the value of "object"."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
            "choices": choices,
        }


class Format(Protocol):
    """Writes the answers of one kind of request."""

    def opening(self) -> list[Json]:
        """The chunks before the first piece."""
        ...

    def chunks(self, piece: Piece) -> list[Json]:
        """The chunks of a piece."""
        ...

    def closing(self) -> Json:
        """A chunk without choices."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """The response with all pieces."""
        ...


@dataclass(frozen=True)
class Task:
    """See the top of the file. include_usage: whether a stream ends with the number of tokens."""

    model: ServedModel
    choices: list[Choice]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    format: Format

    def usage(self) -> Json:
        """The number of tokens so far."""
        generated = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


def sampling_of(fields: SamplingFields, model: ServedModel, index: int, logprobs: int | None) -> Sampling:
    """How the tokens of a choice are chosen; what the request does not say comes from the model's defaults.

    Args:
        index: of the choice; each draws other tokens.
        logprobs: see `Sampling`.
    """
    bias = {int(name): value for name, value in (fields.logit_bias or {}).items()}
    unknown = next((index for index in bias if index >= model.vocab_size), None)
    if unknown is not None:
        raise invalid(
            f"logit_bias has the token {unknown}, but the model's last is {model.vocab_size - 1}.", "logit_bias"
        )
    given = {name: value for name, value in vars(fields).items() if name in model.defaults and value is not None}
    chosen = {**model.defaults, **given}
    top_p, top_k = float(chosen["top_p"]), max(int(chosen["top_k"]), 0)
    return Sampling(
        temperature=float(chosen["temperature"]),
        top_p=top_p or 1.0,
        top_k=top_k if top_p else 1,  # no probability mass: the most likely token
        seed=None if fields.seed is None else (fields.seed + index) % 2**63,
        repetition_penalty=float(chosen["repetition_penalty"]),
        frequency_penalty=fields.frequency_penalty or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        logit_bias=bias,
        logprobs=logprobs,
    )


def stops_of(fields: SamplingFields) -> list[str]:
    """The strings that end an answer."""
    return [fields.stop] if isinstance(fields.stop, str) else fields.stop or []


def answer_tokens(prompt: int, asked: int | None, param: str, model: ServedModel, default: int | None = None) -> int:
    """The maximum number of tokens of an answer.

    Args:
        prompt: number of tokens of the prompt. asked: of the request. param: the field with `asked`.
        default: where nothing is asked; None for as many as fit.

    Raises:
        ApiError: they do not fit, or exceed the server's limit.
    """
    room = model.max_model_len - prompt
    code = "context_length_exceeded"
    if room < 1:
        message = f"The prompt has {prompt} tokens; prompt and answer have room for {model.max_model_len}: shorten it."
        raise invalid(message, "prompt" if param == "max_tokens" and default else "messages", code)
    if asked is None:
        return min(room, model.max_new_tokens, default or room)
    if asked > model.max_new_tokens:
        raise invalid(f"{param} is {asked}: this server generates at most {model.max_new_tokens}.", param)
    if asked > room:
        raise invalid(f"{param} is {asked}: after the prompt of {prompt} tokens there is room for {room}.", param, code)
    return asked


def stream_options(fields: SamplingFields) -> tuple[bool, bool]:
    """(whether to stream, whether the stream ends with usage)."""
    options = fields.stream_options
    if options is not None and not fields.stream:
        raise invalid("stream_options need stream: give both or neither.", "stream_options")
    return bool(fields.stream), bool(options and options.include_usage)


def finite(logprob: float | None) -> float:
    """A log-probability as a number of JSON."""
    return LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)
