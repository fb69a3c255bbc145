"""The answers of an engine to the requests of one HTTP request, as an asynchronous iterator of pieces.

    async with Answers(engine, [Choice(request, stream)]) as pieces:
        async for piece in pieces:    # Piece(0, {"content": "你"}, [token], None) … Piece(0, {}, [], "stop")

Leaving the block ends what is still being generated.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from generation.request import End, Engine, Request, Token
from generation.stream import AnswerStream
from serving.errors import ApiError
from serving.tool_calls import Delta, as_content


class Writer(Protocol):
    """Makes deltas of ids."""

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        """The deltas that are final after these ids."""
        ...

    def finish(self) -> list[Delta]:
        """The deltas that were held back."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the answer ends here, at a stop string."""
        ...

    @property
    def calls(self) -> bool:
        """Whether the answer calls a tool."""
        ...


class TextWriter:
    """An answer that is text."""

    calls = False

    def __init__(self, stream: AnswerStream):
        self._stream = stream

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stream.stopped

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        """The text that is final."""
        return as_content(self._stream.feed(ids))

    def finish(self) -> list[Delta]:
        """The text that was held back."""
        return as_content(self._stream.finish())


@dataclass
class Choice:
    """One answer: its request of the engine, and its state. num_tokens: generated so far."""

    request: Request
    writer: Writer
    num_tokens: int = 0
    pending: list[Token] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(frozen=True)
class Piece:
    """What one answer gains. index: of the choice. tokens: with logprobs, those since the last piece.

    finish_reason: "stop", "length" or "tool_calls" in the last piece of an answer.
    """

    index: int
    deltas: list[Delta]
    tokens: list[Token]
    finish_reason: str | None


class Answers:
    """See the top of the file."""

    def __init__(self, engine: Engine, choices: Sequence[Choice]):
        self.choices = choices
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(self._loop)

    async def __aenter__(self) -> Self:
        for index, choice in enumerate(self.choices):
            self._engine.submit(choice.request, self._inbox.of(index))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for choice in self.choices:
            if choice.finish_reason is None:
                self._engine.cancel(choice.request)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        left = len(self.choices)
        while left:
            for index, events in (await self._inbox.take()).items():
                choice = self.choices[index]
                piece = self._piece(index, choice, events) if choice.finish_reason is None else None
                if piece is not None:
                    left -= piece.finish_reason is not None
                    yield piece

    def _piece(self, index: int, choice: Choice, events: list[Token | End]) -> Piece | None:
        """What an answer gains by some events; None for nothing."""
        tokens = [event for event in events if isinstance(event, Token)]
        end = events[-1] if isinstance(events[-1], End) else None
        deltas: list[Delta] = []
        for token in tokens:
            deltas += choice.writer.feed([token.id])
            choice.num_tokens += 1
            if choice.request.sampling.logprobs is not None:
                choice.pending.append(token)
            if choice.writer.stopped:
                self._engine.cancel(choice.request)
                end = End("stop")
                break
        if end is not None:
            if end.reason not in ("stop", "length"):
                raise ended(end)
            deltas += choice.writer.finish()
            choice.finish_reason = "tool_calls" if choice.writer.calls and end.reason == "stop" else end.reason
        if not deltas and end is None:
            return None
        tokens, choice.pending = choice.pending, []
        return Piece(index, deltas, tokens, choice.finish_reason)


def ended(end: End) -> ApiError:
    """The error of an answer that the engine did not complete."""
    if end.reason == "cancelled":
        return ApiError(503, "The model was unloaded, or the server is shutting down: try again.", code="shutting_down")
    return ApiError(500, "The model failed: the server's log says why.", code="engine_error")


class Inbox:
    """What the engine's thread delivers, taken by the event loop as often as it can."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._lock = threading.Lock()
        self._events: dict[int, list[Token | End]] = {}
        self._arrived = asyncio.Event()

    def of(self, index: int) -> "Deliver":
        """The function that delivers the events of a choice."""
        return Deliver(self, index)

    def put(self, index: int, event: Token | End) -> None:
        """Add an event; called from the engine's thread."""
        with self._lock:
            is_first = not self._events
            self._events.setdefault(index, []).append(event)
        if is_first:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> dict[int, list[Token | End]]:
        """All events since the last call, at least one: index -> in order."""
        await self._arrived.wait()
        with self._lock:
            events, self._events = self._events, {}
            self._arrived.clear()
        return events


@dataclass(frozen=True)
class Deliver:
    """Delivers the events of one choice."""

    inbox: Inbox
    index: int

    def __call__(self, event: Token | End) -> None:
        self.inbox.put(self.index, event)
