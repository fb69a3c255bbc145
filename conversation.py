"""A record as a conversation: what data/ reads, modes/ write as ids, and evaluation/ scores.

A record is either {"instruction", "input" (may be absent), "output"}, or
{"messages": [{"role", "content", "metadata"?}], "ready": bool, "has_history": bool, "source": dict}, which
data/formats.py makes of every other format. Roles are system, user, assistant and observation; metadata is the name of
the tool that an assistant's message calls; "ready" is a prompt that needs no template; "has_history" is whether the
record has a list of earlier turns, which may be empty; "source" is the object of the file.
"""

from collections.abc import Iterator

ROLES = ("system", "user", "assistant", "observation")


def messages_of(record: dict) -> list[dict]:
    """The messages of a record of either kind; one that is to be answered ends with the user's."""
    if "source" in record and "messages" in record:
        return record["messages"]
    question = {"role": "user", "content": record["instruction"] + record.get("input", "")}
    answer = [{"role": "assistant", "content": record["output"]}] if "output" in record else []
    return [question, *answer]


def is_ready(record: dict) -> bool:
    """Whether the question is a complete prompt."""
    return "source" in record and "messages" in record and bool(record.get("ready"))


def split_answer(record: dict) -> tuple[list[dict], dict | None]:
    """(the messages in front of the last answer, the answer or None)."""
    messages = messages_of(record)
    return (messages[:-1], messages[-1]) if messages[-1]["role"] == "assistant" else (messages, None)


def answers_apart(record: dict) -> Iterator[dict]:
    """A record for each of the assistant's messages, with what came before it."""
    messages = messages_of(record)
    for end, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            yield record if end == len(messages) else {**record, "messages": messages[:end]}


def reference(record: dict) -> str | None:
    """The text that an answer is scored against; of a tool call the tool's name, a line end and the call."""
    _, answer = split_answer(record)
    if answer is None:
        return None
    return f"{answer['metadata']}\n{answer['content']}" if answer.get("metadata") else answer["content"]


def asked(record: dict) -> str:
    """The message that the answer answers."""
    return split_answer(record)[0][-1]["content"]


def as_read(record: dict) -> dict:
    """The object as it stood in the file."""
    return record["source"] if "source" in record and "messages" in record else record


def unsuited(record: dict, roles: tuple[str, ...]) -> str | None:
    """Why a generation with these roles cannot take a record, as a clause; None where it can."""
    before = ""
    for message in messages_of(record):
        if message["role"] not in roles:
            return f"a message from {message['role']}"
        if message.get("metadata") and "observation" not in roles:
            return "a tool call"
        if message["role"] == before == "assistant" and "observation" not in roles:
            return "two messages of the assistant in a row"
        before = message["role"]
    return None
