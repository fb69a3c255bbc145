"""Random texts and conversations for comparisons of tokenizers: everything that may be split differently.

draw = random.Random(0)
text = random_text(draw, alphabet(tokenizer))
messages, tools = random_chat(draw, texts, roles, answered=False)
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from modes.chat_template import MARK

Alphabet = Sequence[Callable[[random.Random], str]]  # functions that draw a part of a text
Message = dict[str, Any]

RUNS = " \n\t\r▁a=-0。哈"
WORDS = (
    "philosophy",
    "people",
    "sop",
    "eop",
    "<s>",
    "</s",
    "<|user",
    "|>",
    "[Round 1]",
    "问：",
    "答：",
    "{{ x }}",
    "&<>'\"",
)
WORDS += ("\r\n", "é", "é", "\ufeff", "\u200d", "👩‍👩‍👧", "🇨🇳", "\u202e", "𠮷", MARK, "�", "<0x0A>", "<0xFF>", "\x00")
NAMES = (
    "city",
    "x",
    "date_1",
    "__init__",
    "名",
    "from",
    "True",
    "a b",
    "",
    "é",
    "1x",
    "print",
    "it's",
    "<|user|>",
    "match",
)
TOOLS = ("get_weather", "tool", "查询", "a.b-c", " padded ", "</s>")
SYSTEMS, OBSERVATIONS = ("system", "developer"), ("tool", "observation", "function")


def alphabet(pieces: Sequence[str], special: Sequence[str]) -> Alphabet:
    """The parts of texts.

    Args:
        pieces: of the vocabulary, with "▁" for a space. special: names of special tokens.
    """
    texts = [piece.replace("▁", " ") for piece in pieces]
    return (
        lambda draw: chr(draw.randrange(0x110000)),  # of any plane, halves of surrogate pairs too
        lambda draw: chr(draw.randrange(0x10000)),
        lambda draw: chr(draw.randrange(0x250)),  # controls and Latin
        lambda draw: chr(draw.randrange(0x4E00, 0xA000)),
        lambda draw: chr(draw.randrange(0x1F300, 0x1FB00)),
        lambda draw: draw.choice(RUNS) * draw.randint(1, 20),
        lambda draw: draw.choice(texts),
        lambda draw: draw.choice(texts) * draw.randint(2, 5),
        lambda draw: "".join(draw.choices(texts, k=8)),
        lambda draw: draw.choice(pieces),
        lambda draw: draw.choice(special),
        lambda draw: draw.choice(WORDS),
    )


def random_text(draw: random.Random, parts: Alphabet, longest: int = 12) -> str:
    """Up to `longest` parts."""
    return "".join(part(draw) for part in draw.choices(parts, k=draw.randint(0, longest)))


def random_value(draw: random.Random, texts: Sequence[str], depth: int = 2) -> Any:
    """A value of JSON."""
    kind = draw.randrange(7 if depth else 5)
    if kind == 5:
        return [random_value(draw, texts, depth - 1) for _ in range(draw.randint(0, 3))]
    if kind == 6:
        return {draw.choice(NAMES): random_value(draw, texts, depth - 1) for _ in range(draw.randint(0, 3))}
    if kind == 4:
        return draw.choice(texts)
    return (
        None,
        draw.random() < 0.5,
        draw.randint(-(10**20), 10**20),
        draw.uniform(-1, 1) * 10 ** draw.randint(-20, 20),
    )[kind]


def random_call(draw: random.Random, texts: Sequence[str]) -> dict[str, Any]:
    """{"name", "arguments"}"""
    names = draw.sample(NAMES, draw.randint(0, 4))
    return {"name": draw.choice(TOOLS), "arguments": {name: random_value(draw, texts) for name in names}}


def random_tools(draw: random.Random, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Descriptions of tools, plain or in OpenAI's format."""
    tools = [
        {"name": draw.choice(TOOLS), "description": draw.choice(texts), "parameters": random_value(draw, texts)}
        for _ in range(draw.randint(1, 2))
    ]
    return [{"type": "function", "function": tool} for tool in tools] if draw.random() < 0.5 else tools


def random_content(draw: random.Random, texts: Sequence[str]) -> str | list[dict[str, str]]:
    """A text, sometimes in parts."""
    if draw.random() < 0.9:
        return draw.choice(texts)
    return [{"type": "text", "text": draw.choice(texts)} for _ in range(draw.randint(1, 3))]


def random_answer(draw: random.Random, texts: Sequence[str], with_calls: bool) -> Message:
    """A message of the assistant."""
    message: Message = {"role": "assistant", "content": random_content(draw, texts)}
    kind = draw.randrange(6) if with_calls else 5
    if kind == 0:
        message["metadata"] = draw.choice(TOOLS)
    if kind in (1, 2):
        message["tool_calls"] = [
            {"type": "function", "function": random_call(draw, texts)} for _ in range(draw.randint(1, 2))
        ]
    if kind == 3:
        message["function_call"] = random_call(draw, texts)
    if kind in (2, 3):
        message["content"] = None
    return message


def random_chat(
    draw: random.Random, texts: Sequence[str], with_calls: bool, answered: bool
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Messages in OpenAI's format, and tools.

    Args:
        texts: possible contents. with_calls: whether there may be tools and their results.
        answered: whether the last message is the assistant's.
    """
    messages: list[Message] = []
    if draw.random() < 0.4:
        messages.append({"role": draw.choice(SYSTEMS), "content": random_content(draw, texts)})
        if with_calls and draw.random() < 0.2:
            messages[0]["tools"] = random_tools(draw, texts)
    if draw.random() < 0.1:
        messages.append({"role": "assistant", "content": draw.choice(texts)})
    for _ in range(draw.randint(0, 3)):
        messages.append({"role": "user", "content": random_content(draw, texts)})
        messages.append(random_answer(draw, texts, with_calls))
        while with_calls and draw.random() < 0.3:
            messages.append({"role": draw.choice(OBSERVATIONS), "content": random_content(draw, texts)})
            if draw.random() < 0.8:
                messages.append(random_answer(draw, texts, with_calls))
        if messages[-1]["role"] != "assistant":
            messages.append(random_answer(draw, texts, with_calls))
    messages.append({"role": "user", "content": random_content(draw, texts)})
    if with_calls and draw.random() < 0.2:
        messages.append(random_answer(draw, texts, with_calls))
        messages.append({"role": draw.choice(OBSERVATIONS), "content": random_content(draw, texts)})
    if answered:
        messages.append(random_answer(draw, texts, with_calls))
    return messages, random_tools(draw, texts) if with_calls and draw.random() < 0.2 else None
