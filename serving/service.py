"""Answering one request: a place in the queue, its time limit, its tokens in the metrics, its client's connection."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from options.serve import LimitOptions
from serving.answers import Answers, Piece
from serving.body import GONE
from serving.errors import ApiError
from serving.metrics import Metrics
from serving.models import Models, ServedModel
from serving.server import Received
from serving.sse import DONE, event
from serving.task import Json, Task

Result = TypeVar("Result")
SMOOTHING = 0.1  # weight of the last request in the mean duration
LONGEST_RETRY = 60  # seconds
POLL_SECONDS = 0.05


class ClientGone(Exception):
    """The client closed its connection before the response was complete."""


class Places:
    """The answers that may be generated or wait at once; more are refused. models: number of models."""

    def __init__(self, limits: LimitOptions):
        self.models = self.taken = 0
        self._limits = limits
        self._mean_seconds = 1.0

    @property
    def running(self) -> int:
        """Answers that may be generated at once."""
        return self._limits.max_num_seqs * max(self.models, 1)

    @property
    def most(self) -> int:
        """Answers that may be generated or wait at once."""
        return self.running + self._limits.max_queued_requests

    def take(self, count: int) -> None:
        """Take places.

        Raises:
            ApiError: that many are not free, with the time after which to try again.
        """
        if count > self.most:
            raise ApiError(400, f"The request asks for {count} answers: this server has {self.most} places.", param="n")
        if self.taken + count > self.most:
            rounds = math.ceil((self.taken - self.running + 1) / self.running)
            seconds = min(max(1, math.ceil(rounds * self._mean_seconds)), LONGEST_RETRY)
            raise ApiError(
                429, "The queue is full: try again later.", code="queue_full", headers={"retry-after": str(seconds)}
            )
        self.taken += count

    def free(self, count: int, seconds: float) -> None:
        """Give places back that were taken for some seconds."""
        self.taken -= count
        self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)


class Service:
    """What all requests share. Models come and go while it runs. draining: whether new requests are refused."""

    def __init__(self, limits: LimitOptions, models: Iterable[ServedModel] = ()):
        self.limits = limits
        self.models, self.metrics, self.places = Models(), Metrics(), Places(limits)
        self.draining = False
        for model in models:
            self.add(model)

    def add(self, model: ServedModel) -> None:
        """Accept requests for a model."""
        self.models.by_name[model.name] = model
        self.metrics.add(model)
        self.places.models += 1

    def remove(self, name: str) -> ServedModel:
        """Accept no more requests for a model, and return it; closing its engine ends the running ones."""
        self.metrics.remove(name)
        self.places.models -= 1
        return self.models.by_name.pop(name)

    def respond(self, task: Task, scope: Scope) -> "Reply":
        """The response to a task, whose places are taken now.

        Raises:
            ApiError: the queue is full.
        """
        self.places.take(len(task.choices))
        scope["state"]["task"] = task
        return Reply(self, task)

    async def drain(self, received: Received) -> None:
        """Refuse new requests, and wait for the running ones, up to --shutdown_timeout or another signal."""
        self.draining = True
        seconds, count = self.limits.shutdown_timeout, self.places.taken
        if count:
            print(f"Waiting up to {seconds:g} seconds for running answers: {count}.", file=sys.stderr, flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.places.taken and received.empty():
                    await asyncio.sleep(POLL_SECONDS)
        await asyncio.to_thread(self.models.close)

    async def pieces(self, task: Task) -> AsyncIterator[Piece]:
        """The pieces of a task's answers, which are counted."""
        name, metrics, started = task.model.name, self.metrics, time.monotonic()
        first: float | None = None
        metrics.prompt_tokens.labels(name).inc(task.prompt_tokens)
        try:
            async with Answers(task.model.engine, task.choices) as answers:
                async for piece in answers:
                    if first is None:
                        first = time.monotonic()
                        metrics.first_token.labels(name).observe(first - started)
                    if piece.finish_reason is not None:
                        metrics.success.labels(name, piece.finish_reason).inc()
                    yield piece
        finally:
            ended = time.monotonic()
            tokens = sum(choice.num_tokens for choice in task.choices)
            metrics.generation_tokens.labels(name).inc(tokens)
            metrics.whole.labels(name).observe(ended - started)
            if first is not None and tokens > 1:
                metrics.per_token.labels(name).observe((ended - first) / (tokens - 1))


class Reply(Response):
    """A response that is generated while it is sent, or before; its places are given back at its end."""

    def __init__(self, service: Service, task: Task):
        super().__init__()
        self._service, self._task = service, task
        self._started = False  # whether the status has been sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        try:
            await while_connected(receive, self._within_time(scope, receive, send))
        except ClientGone:
            scope["state"]["status"] = GONE
        finally:
            self._service.places.free(len(self._task.choices), time.monotonic() - began)

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._service.limits.request_timeout
        try:
            async with asyncio.timeout(seconds):
                await (self._stream(send) if self._task.stream else self._whole(scope, receive, send))
            return
        except TimeoutError:
            error = ApiError(
                504, f"The answer was not complete after {seconds:g} seconds: ask for less.", code="timeout"
            )
        except ApiError as of_model:
            error = of_model
        scope["state"]["error"] = error
        if not self._started:
            raise error
        with contextlib.suppress(TimeoutError):  # a client that reads nothing is not waited for
            async with asyncio.timeout(1):
                await send({"type": "http.response.body", "body": event(error.content), "more_body": False})

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = [piece async for piece in self._service.pieces(self._task)]
        content = {**self._task.format.whole(pieces), "usage": self._task.usage()}
        response = JSONResponse(content)
        self._started = True
        await response(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        self._started = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers += [(b"x-accel-buffering", b"no")]  # of nginx
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in self._task.format.opening():
            await send({"type": "http.response.body", "body": self._event(chunk), "more_body": True})
        async for piece in self._service.pieces(self._task):
            body = b"".join(self._event(chunk) for chunk in self._task.format.chunks(piece))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        last = DONE
        if self._task.include_usage:
            last = event({**self._task.format.closing(), "usage": self._task.usage()}) + last
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _event(self, chunk: Json) -> bytes:
        return event({**chunk, "usage": None} if self._task.include_usage else chunk)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled as soon as the client is gone.

    Raises:
        ClientGone: it is.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait({working, watching})


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
