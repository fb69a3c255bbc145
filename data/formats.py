"""The formats of records: recognize a record's format by its keys, and normalize it to a conversation.

    normalize({"context": "Instruction: …\\nAnswer: ", "target": "…"}, "a.json:1", Columns(), require_output=True)
    # {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}], "ready": True, "source": …}

FORMATS is the list, in order of precedence; docs/data.md shows it. conversation.py describes a record.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeGuard

from conversation import calls_tool, is_pair, messages_of
from data.messages import (
    ANSWER_KEYS,
    answer_messages,
    is_moss_text,
    is_moss_turns,
    is_turns,
    read_history,
    read_moss_text,
    read_moss_turns,
    read_turns,
    text_of,
    unused_in_turns,
    with_tools,
)
from data.tally import Tally
from data.values import is_empty, quoted
from errors import UserError

FOLLOWS = {
    "": ("system", "user", "assistant"),
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user", "assistant", "observation"),
    "observation": ("assistant", "observation"),
}
SIMPLE = {"instruction", "input", "output"}
SYSTEM_KEYS, HISTORY_KEYS, TOOLS_KEYS = ("system", "system_prompt"), ("history",), ("tools", "functions")
MEDIA_KEYS = ("images", "image", "img", "videos", "video", "audios", "audio")
IMAGE = "<image>"
KTO_KEYS = ("label", "kto_tag")  # false, also as text in a table


@dataclass(frozen=True)
class Columns:
    """The keys of a file's records; None: recognized by their usual names.

    prompt, query: texts of the question, concatenated after `prefix`. response: the answer. history: earlier turns.
    system: system text. messages: a whole conversation. tools: the tools that an assistant may call.
    roles: other names of roles, as (name, role).
    """

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    system: str | None = None
    messages: str | None = None
    tools: str | None = None
    prefix: str = ""
    roles: tuple[tuple[str, str], ...] = ()


ANY = Columns()
# (record, key of its conversation, place, names of roles) -> messages
ReadTurns = Callable[[dict, str, str, tuple[tuple[str, str], ...]], list[dict]]


@dataclass(frozen=True)
class Format:
    """A format of records.

    question: keys whose texts are the question, joined by `joint`; or the key of a conversation.
    needed: number of these keys that a record must have.
    answer: keys of the answer, of which the first that is not empty is used; () if the conversation contains it.
    turns: reads the conversation; None if the question is text. holds: whether a value may be such a conversation.
    ready: whether the question is a complete prompt.
    """

    name: str
    question: tuple[str, ...]
    answer: tuple[str, ...] = ()
    needed: int = 1
    joint: str = ""
    turns: ReadTurns | None = None
    holds: Callable[[object], bool] = is_turns
    ready: bool = False

    def answer_in(self, value: dict) -> str | None:
        """The key of a record's answer, even of an empty one; None if there is none."""
        given = [key for key in self.answer if value.get(key) is not None]
        return next((key for key in given if not is_empty(value[key])), given[0] if given else None)

    def covered(self, value: dict) -> int:
        """Number of the question's keys that are not empty."""
        return sum(not is_empty(value.get(key)) for key in self.question)

    def is_complete(self, value: dict) -> bool:
        """Whether question and answer are not empty."""
        if self.turns:
            return self.holds(value.get(self.question[0])) and all(not is_empty(value.get(key)) for key in self.answer)
        key = self.answer_in(value)
        given = all(not is_empty(value.get(name)) for name in self.question[: self.needed])
        return given and key is not None and not is_empty(value[key])

    def is_present(self, value: dict) -> bool:
        """Whether question and answer exist, even if empty; False for a conversation."""
        given = all(value.get(key) is not None for key in self.question[: self.needed])
        return given and self.answer_in(value) is not None


# In order of precedence; `recognize` chooses a record's format.
FORMATS = (
    Format("messages", ("messages",), turns=read_turns),
    Format("conversations", ("conversations",), turns=read_turns),
    Format("conversation", ("conversation",), turns=read_turns),
    Format("chat", ("chat",), turns=read_moss_turns, holds=is_moss_turns),
    Format("plain_text", ("plain_text",), turns=read_moss_text, holds=is_moss_text),
    Format("paragraph", ("paragraph",), turns=read_turns),
    Format("instruction/output", ("instruction", "input"), ("output",)),
    Format("context/target", ("context",), ("target",), ready=True),
    Format("prompt/response", ("prompt", "query", "input"), ("response", "completion", "output", "answer")),
    Format("instruction/context/response", ("instruction", "context"), ("response",), needed=2, joint="\n"),
    Format("instruction/response", ("instruction", "input"), ("response", "answer")),
    Format("query/response", ("query",), ("response", "answer", "output")),
    Format("context/question/answer", ("context", "question"), ("answer", "response"), needed=2, joint="\n"),
    Format("question/answer", ("question",), ("answer", "response", "output")),
    Format("input/output", ("input",), ("output",)),
    Format("input/target", ("input",), ("target",)),
    Format("content/summary", ("content",), ("summary",)),
)


@cache
def formats_of(columns: Columns) -> tuple[Format, ...]:
    """The possible formats of a file's records, given the user's keys."""
    answer = (columns.response,) if columns.response else None
    if columns.prompt:
        question = (columns.prompt, columns.query) if columns.query else (columns.prompt,)
        return (Format("/".join((*question, columns.response or "answer")), question, answer or ANSWER_KEYS),)
    if columns.messages:
        return (Format(columns.messages, (columns.messages,), answer or (), turns=read_turns),)
    if answer:
        return tuple(
            replace(
                format_, answer=answer, name=f"{format_.name.rpartition('/')[0] or format_.name}/{columns.response}"
            )
            for format_ in FORMATS
        )
    return FORMATS


def recognize(value: dict, columns: Columns = ANY) -> Format | None:
    """The format of a record; None if its keys match no format.

    A key with null, "", [] or {} does not count. The format is the first complete one in the table; else the first with
    all its keys, even if empty; else the one with most of the question (an unanswered record); else the first with a
    key of the question. All other keys are not used.
    """
    formats = formats_of(columns)
    for fits in (Format.is_complete, Format.is_present):
        for format_ in formats:
            if fits(format_, value):
                return format_
    asked = [format_ for format_ in formats if format_.covered(value) >= format_.needed]
    if asked:
        return max(asked, key=lambda format_: format_.covered(value))  # the first of the largest
    named = formats if len(formats) == 1 else [format_ for format_ in formats if format_.question[0] in value]
    return named[0] if named else None


def is_ordinary(value: object) -> TypeGuard[dict]:
    """Whether a value is {"instruction", "input", "output"} of three texts, the first not empty.

    A fast path: `normalize` would return such a record unchanged after a dozen steps.
    """
    if type(value) is not dict or value.keys() != SIMPLE:
        return False
    instruction, question, answer = value["instruction"], value["input"], value["output"]
    if not type(instruction) is type(question) is type(answer) is str or not instruction:
        return False
    if IMAGE in instruction or IMAGE in question:
        return False
    try:
        (instruction + question + answer).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def normalize(value: dict, place: str, columns: Columns, *, require_output: bool, tally: Tally | None = None) -> dict:
    """Convert an object of a file to a record.

    Args:
        require_output: whether a record without an answer is an error.
        tally: counts the format and the unused keys.

    Raises:
        UserError: the keys match no format, or a value is invalid; starts with `place`.
    """
    chosen = recognize(value, columns)
    if chosen is None:
        raise UserError(f"{place}: {unrecognized(value)}")
    check_kind(value, chosen, place, require_output)
    used: set[str] = set()
    record = (read_conversation if chosen.turns else read_flat)(value, chosen, place, columns, require_output, used)
    messages = messages_of(record)
    if not is_pair(record):
        check_order(messages, place, require_output, preferred=not is_empty(value.get("chosen")))
    if any(message["role"] == "user" and IMAGE in message["content"] for message in messages):
        raise UserError(f"{place}: a question holds {IMAGE}, a place for an image; remove the record from a text set.")
    if tally is not None:
        unused = [key for key, content in value.items() if key not in used and not is_empty(content)]
        unused += sorted(unused_in_turns(value, chosen.question[0], place)) if chosen.turns else []
        tally.count(chosen.name, unused)
    return record


def unrecognized(value: dict) -> str:
    """The error about a record whose keys match no format."""
    clause = f"none of the keys ({quoted(value)}) belongs to a known format"
    if type(value.get("text")) is str:
        return f'{clause}; "text" alone is for pre-training, which is not supported; write questions and answers.'
    if "chosen" in value:
        return f"{clause}; a preference record needs a question, such as prompt, in addition to chosen."
    return (
        f"{clause}; a record needs instruction and output, prompt and response, context and target, conversations or "
        "messages (or give --prompt_column and --response_column)."
    )


def check_kind(value: dict, chosen: Format, place: str, require_output: bool) -> None:
    """Raise UserError for a record that cannot be trained on: an undesirable answer of KTO, or one with images."""
    marks = [key for key in KTO_KEYS if value.get(key) is False or str(value.get(key)).strip().lower() == "false"]
    if marks and require_output:
        raise UserError(
            f"{place}: {quoted(marks[:1])} is false, which marks an undesirable answer (KTO); remove the record, or "
            "rename the key if it means something else."
        )
    further = set(MEDIA_KEYS) - {*chosen.question, *chosen.answer}
    media = next((key for key in MEDIA_KEYS if key in further and not is_empty(value.get(key))), None)
    if media:
        raise UserError(
            f"{place}: {quoted([media])} belongs to a set of images or sound, which these models cannot read; remove "
            "the key or the record."
        )


def first_of(value: dict, named: str | None, usual: tuple[str, ...], used: set[str]) -> str:
    """The first of some keys that is not empty, else the first; adds it to `used`."""
    keys = (named,) if named else usual
    key = next((key for key in keys if not is_empty(value.get(key))), keys[0])
    used.add(key)
    return key


def read_flat(value: dict, chosen: Format, place: str, columns: Columns, require_output: bool, used: set[str]) -> dict:
    """Convert a record with question and answer under separate keys; adds the keys to `used`."""
    first, *other_keys = chosen.question
    key = chosen.answer_in(value)
    if require_output and key is None and not is_empty(value.get("chosen")):
        raise UserError(
            f'{place}: a preference record ("chosen") has no answer of its own; give --response_column chosen to use '
            "the preferred answer."
        )
    used |= {*chosen.question, *([key] if key else [])}
    asked = value.get(first)
    is_chat = type(asked) is list and asked and all(type(turn) is dict and "type" not in turn for turn in asked)
    earlier = prefixed(read_turns(value, first, place, columns.roles), columns.prefix) if is_chat else []
    instruction = columns.prefix + ("" if earlier else text_of(value, first, place, needed=True))
    further_texts = [text for other_key in other_keys if (text := text_of(value, other_key, place))]
    given = "".join(chosen.joint + text for text in further_texts)
    answer = answer_messages(value, key or chosen.answer[0], place, require_output) if key or require_output else []
    simple = len(answer) <= 1 and not (earlier or chosen.ready) and not (answer and calls_tool(answer[0]))
    if chosen.ready:  # a complete prompt cannot have a system text or earlier turns
        question = [{"role": "user", "content": instruction + given}]
        return {"messages": [*question, *answer], "ready": True, "source": value}
    system = text_of(value, first_of(value, columns.system, SYSTEM_KEYS, used), place)
    history = read_history(value, first_of(value, columns.history, HISTORY_KEYS, used), place)
    tools = first_of(value, columns.tools, TOOLS_KEYS, used)
    if simple and history is None and not (system or not is_empty(value.get(tools))):
        record = {"instruction": instruction, "input": given}
        record |= {"output": answer[0]["content"]} if answer else {}
        return value if record == value else {**record, "source": value}
    messages = [{"role": "system", "content": system}] if system else []
    messages += history or []
    messages += earlier or [{"role": "user", "content": instruction + given}]
    return {
        "messages": with_tools([*messages, *answer], value, tools, place),
        "ready": False,
        "has_history": history is not None,
        "source": value,
    }


def read_conversation(
    value: dict, chosen: Format, place: str, columns: Columns, require_output: bool, used: set[str]
) -> dict:
    """Convert a record with a conversation under one key; adds the keys to `used`."""
    assert chosen.turns is not None, "a format of conversations"
    key = chosen.question[0]
    used.add(key)
    system = text_of(value, first_of(value, columns.system, SYSTEM_KEYS, used), place)
    messages = [{"role": "system", "content": system}] if system else []
    messages += prefixed(chosen.turns(value, key, place, columns.roles), columns.prefix)
    if chosen.answer:
        used.add(chosen.answer[0])
        messages += answer_messages(value, chosen.answer[0], place, require_output)
    tools = first_of(value, columns.tools, TOOLS_KEYS, used)
    return {"messages": with_tools(messages, value, tools, place), "ready": False, "source": value}


def prefixed(messages: list[dict], prefix: str) -> list[dict]:
    """Add a prefix to every question."""
    return [
        {**message, "content": prefix + message["content"]} if message["role"] == "user" else message
        for message in messages
    ]


def check_order(messages: list[dict], place: str, require_output: bool, preferred: bool) -> None:
    """Raise UserError unless the order of the roles is valid.

    Args:
        preferred: whether the record has a preferred answer under another key.
    """
    before = ""
    for number, message in enumerate(messages, 1):
        if message["role"] not in FOLLOWS[before]:
            after = f"after one from {before}" if before else "at the start"
            raise UserError(
                f"{place}: message {number} is from {message['role']} {after}, where {' or '.join(FOLLOWS[before])} "
                "must follow; put the messages in order."
            )
        before = message["role"]
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{place}: no message is from user; write the question that is answered.")
    if require_output and before != "assistant":
        advice = "; give --response_column chosen to use the preferred answer" if preferred else ""
        raise UserError(f"{place}: the last message is from {before}; it must be the assistant's answer{advice}.")
