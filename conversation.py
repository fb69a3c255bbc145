"""A record as a conversation: what data/ reads, modes/ write as ids, and evaluation/ scores.

A record is of one of two kinds, distinguished by the key "messages":

    {"instruction", "input"?, "output"?, "source"?}             a question and its answer
    {"messages": […], "ready", "has_history"?, "source"}        any other conversation; each message is
        {"role", "content", "metadata"?, "call"?, "tools"?}

data/formats.py converts every format to these keys and drops all others. Roles are system, user, assistant and
observation. A message of the assistant that calls a tool has one of two keys: "metadata" is the tool's name if the
content is the call in a generation's own text; "call" is an object, and the content is empty until the generation
writes the call (`Mode.written`). "tools" are the descriptions in a system message. "ready" is whether the prompt needs
no template. "has_history" is whether the record has a list of earlier turns, which may be empty. "source" is the object
of the file, absent if the record is that object.
"""

import json
from collections.abc import Iterator
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant", "observation")
Message = dict[str, Any]  # Any: values of the user's JSON; those of the keys above have been checked
Record = dict[str, Any]


class Call(TypedDict):
    """A tool call. name: of the tool, one line."""

    name: str
    arguments: dict[str, Any]


def join_tools(content: str, tools: object) -> str:
    """A system message followed by the descriptions of tools, as in ChatGLM3's official code."""
    return content + "\n" + json.dumps(tools, indent=4, ensure_ascii=False)


def is_pair(record: Record) -> bool:
    """Whether a record is one question and its answer."""
    return "messages" not in record


def messages_of(record: Record) -> list[Message]:
    """The messages of a record of either kind; a question to answer ends with the user's message."""
    if not is_pair(record):
        return record["messages"]
    question = {"role": "user", "content": record["instruction"] + record.get("input", "")}
    answer = [{"role": "assistant", "content": record["output"]}] if "output" in record else []
    return [question, *answer]


def is_ready(record: Record) -> bool:
    """Whether the question is a complete prompt."""
    return not is_pair(record) and record["ready"]


def split_answer(record: Record) -> tuple[list[Message], Message | None]:
    """(the messages before the last answer, the answer or None)."""
    messages = messages_of(record)
    return (messages[:-1], messages[-1]) if messages[-1]["role"] == "assistant" else (messages, None)


def calls_tool(message: Message) -> bool:
    """Whether a message of the assistant calls a tool."""
    return bool(message.get("metadata")) or "call" in message


def first_question(messages: list[Message]) -> int:
    """Index of the user's first message. Earlier messages of the assistant are greetings, never supervised."""
    return next(i for i, message in enumerate(messages) if message["role"] == "user")


def answers_apart(record: Record) -> Iterator[Record]:
    """A record for each of the assistant's answers, with the messages before it."""
    messages = messages_of(record)
    first = first_question(messages)
    for end, message in enumerate(messages, 1):
        if message["role"] == "assistant" and end > first:
            yield record if end == len(messages) else {**record, "messages": messages[:end]}


def reference(record: Record) -> str | None:
    """The text that an answer is scored against; for a written tool call, the tool's name, a line end and the call."""
    _, answer = split_answer(record)
    if answer is None:
        return None
    assert "call" not in answer, "a call is scored as the text that the generation writes"
    return f"{answer['metadata']}\n{answer['content']}" if answer.get("metadata") else answer["content"]


def expected(record: Record) -> str:
    """`reference` of a record that ends with an answer."""
    text = reference(record)
    assert text is not None, "records that are scored end with an answer"
    return text


def asked(record: Record) -> str:
    """The content of the last message before the answer."""
    return split_answer(record)[0][-1]["content"]


def has_empty_answer(record: Record, every: bool) -> bool:
    """Whether an answer to train on is empty or white space: the last one, or `every` one of a conversation."""
    if is_pair(record):
        return not record.get("output", "").strip()
    answers = [split_answer(part)[1] for part in (answers_apart(record) if every else [record])]
    return any(answer is None or not (calls_tool(answer) or answer["content"].strip()) for answer in answers)


def as_read(record: Record) -> dict[str, Any]:
    """The object of the file, unchanged."""
    return record.get("source", record)


def unsuited(record: Record, roles: tuple[str, ...]) -> str | None:
    """Why a generation with these roles cannot use a record, as a clause; None if it can."""
    before = ""
    for message in messages_of(record):
        if message["role"] not in roles:
            return f"a message from {message['role']}"
        if calls_tool(message) and "observation" not in roles:
            return "a tool call"
        if message["role"] == before == "assistant" and "observation" not in roles:
            return "two messages of the assistant in a row"
        before = message["role"]
    return None
