"""Clients of an OpenAI-compatible server, at once and each with one request after another, and what they measure.

questions = make_questions(64, seed=0)
answers, seconds = run_clients("http://127.0.0.1:8000", "glm3", questions, clients=16)
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = REPOSITORY / "data" / "spo_1.json"
TIMEOUT = 600  # seconds without a byte


@dataclass(frozen=True)
class Question:
    """A greedy chat request with one message."""

    text: str
    max_tokens: int

    def body(self, model: str, stream: bool) -> dict[str, Any]:
        """The JSON of the request."""
        messages = [{"role": "user", "content": self.text}]
        return {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0, "stream": stream}


@dataclass(frozen=True)
class Answered:
    """An answer. first, whole: seconds until its first text and its end. tokens: of the answer."""

    first: float
    whole: float
    tokens: int
    text: str


@cache
def texts() -> tuple[str, ...]:
    """The inputs of a sample set."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["input"] for line in lines[:500])


def make_questions(count: int, seed: int, longest: int = 150, tokens: tuple[int, int] = (16, 64)) -> list[Question]:
    """Questions of random lengths.

    Args:
        longest: characters of a question. tokens: least and most of an answer.
    """
    pick = random.Random(seed)
    return [
        Question("".join(pick.sample(texts(), 9))[: pick.randint(8, longest)], pick.randint(*tokens))
        for _ in range(count)
    ]


async def ask(client: httpx.AsyncClient, model: str, question: Question) -> Answered:
    """Stream an answer; the tokens are as many as asked for if the server does not say."""
    begun, first, parts, tokens = time.perf_counter(), 0.0, [], question.max_tokens
    body = {**question.body(model, stream=True), "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in chunks(response):
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if text and not first:
                first = time.perf_counter() - begun
            parts.append(text)
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return Answered(first, time.perf_counter() - begun, tokens, "".join(parts))


async def chunks(response: httpx.Response) -> Any:
    """The objects of a stream of server-sent events."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def all_answers(url: str, model: str, questions: Sequence[Question], clients: int) -> list[Answered]:
    """The answers, in order; each client asks the next question when it has an answer."""
    answers: list[Answered | None] = [None] * len(questions)
    left = iter(enumerate(questions))

    async def one_client(client: httpx.AsyncClient, left: Iterator[tuple[int, Question]]) -> None:
        for place, question in left:
            answers[place] = await ask(client, model, question)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one_client(client, left))
    return [answer for answer in answers if answer is not None]


def run_clients(url: str, model: str, questions: Sequence[Question], clients: int) -> tuple[list[Answered], float]:
    """(answers in order, seconds of all of them)."""
    begun = time.perf_counter()
    answers = asyncio.run(all_answers(url, model, questions, clients))
    return answers, time.perf_counter() - begun


def in_a_queue(answers: Sequence[Answered], clients: int) -> tuple[list[float], float]:
    """(seconds to each first text, seconds of all answers) if clients ask a program that answers one after another.

    Args:
        answers: measured alone, in the order in which the questions come.
    """
    ends: list[float] = []
    firsts = []
    for i, answer in enumerate(answers):
        asked = ends[i - clients] if i >= clients else 0.0
        begun = ends[-1] if ends else 0.0
        firsts.append(begun - asked + answer.first)
        ends.append(begun + answer.whole)
    return firsts, ends[-1]
