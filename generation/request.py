"""A request for one answer, and the interface of the engines that answer many of them at once.

engine.submit(Request(prompt, max_new_tokens=64, stop_ids=frozenset(ids)), deliver)   # returns at once
deliver(Token(id=42))        # in the engine's thread, for every token of the answer, without the token that ends it
deliver(End("stop"))         # once, last
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch


class Constraint(Protocol):
    """A grammar that an answer follows, with the state of one answer."""

    def allowed(self) -> torch.Tensor:
        """The tokens that may come next: bool [v], on the CPU; with an end token where the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """Append a token, which was allowed."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen; by default the most likely one.

    temperature: 0 takes the most likely token. top_p: probability mass to draw from. top_k: number of most likely
    tokens to draw from, 0 for all. seed: the same seed gives the same answer; None for a random one.
    repetition_penalty: of tokens in prompt and answer (https://arxiv.org/abs/1909.05858), as in transformers.
    frequency_penalty, presence_penalty: subtracted for tokens of the answer, as in OpenAI's API.
    logit_bias: token id -> value added to its logit.
    logprobs: number of most likely alternatives to return with a token's log-probability; None for neither.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate.

    prompt: all ids before the answer. max_new_tokens: of the answer, without the token that ends it; at least 1.
    stop_ids: tokens that end it. constraint: of this request alone, because it has a state.
    """

    prompt: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    logprob: natural logarithm of its probability in the model, before temperature and penalties; None if not asked for.
    top: (id, log-probability) of the most likely tokens in its place, best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """The end of an answer.

    reason: "stop" (a stop token), "length" (max_new_tokens), "cancelled", or "error".
    error: what failed, for the log.
    """

    reason: str
    error: str = ""


def final_length(request: Request) -> int:
    """Tokens of a prompt with the longest answer."""
    return len(request.prompt) + request.max_new_tokens


def check_length(request: Request, max_tokens: int) -> None:
    """Raise ValueError if a prompt with the longest answer has more than `max_tokens` tokens."""
    if final_length(request) > max_tokens:
        raise ValueError(
            f"The prompt has {len(request.prompt)} tokens and max_new_tokens is {request.max_new_tokens}: at most "
            f"{max_tokens} tokens fit together."
        )


class Engine(Protocol):
    """Answers requests, which join and leave between the model's steps. Thread-safe."""

    max_tokens: int
    """Most tokens of a prompt with its answer that fit."""

    def submit(self, request: Request, deliver: Callable[[Token | End], None]) -> None:
        """Queue a request; `deliver` is called from the engine's thread and must not block."""
        ...

    def cancel(self, request: Request) -> None:
        """End a request and free its place; its End is delivered unless it already was."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it accepts requests: not after `close`, nor after an error that ended its thread."""
        ...

    @property
    def running(self) -> int:
        """Number of requests in the model's steps."""
        ...

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        ...

    def close(self) -> None:
        """Cancel what is left and free the memory."""
        ...
