"""Writing and reading a generation's tool calls as text: a field of its Mode, None for a generation without tools.

grammar = MODES["glm3"].calls
grammar.write({"name": "get_weather", "arguments": {"city": "北京"}})   # a message as conversation.py describes it
grammar.split("get_weather\\n```python\\ntool_call(city='北京')\\n```")   # ("get_weather", "tool_call(city='北京')")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from conversation import Call, Message, Record, is_pair


class GrowingCall(Protocol):
    """The text of an answer that may call a tool, while it is generated."""

    possible: bool
    """Whether the answer is, or can still become, a readable call."""
    name: str
    """The tool's name; "" before the text has the start of a call."""

    def feed(self, text: str) -> dict[str, object]:
        """Take the next part of the text; return the arguments that it completes, in order."""
        ...


@dataclass(frozen=True)
class CallGrammar:
    """Functions that write and read the text of a tool call, which is never executed."""

    write: Callable[[Call], Message]  # the assistant's message: "metadata" is the tool's name, "content" the call
    # answer -> (the tool's name, the code of the call); None if it calls no tool
    split: Callable[[str], tuple[str, str] | None]
    read_arguments: Callable[[str], dict[str, object] | None]  # code of a call -> its arguments; None if unreadable
    # tools ({"name", "parameters"?} each) -> the grammar of an answer that calls one, for `Vocabulary.lark`
    constraint: Callable[[Sequence[Mapping[str, Any]]], str]
    growing: Callable[[], GrowingCall]

    def written(self, record: Record) -> Record:
        """The record with every call as text."""
        if is_pair(record) or not any("call" in message for message in record["messages"]):
            return record
        messages = [self.write(message["call"]) if "call" in message else message for message in record["messages"]]
        return {**record, "messages": messages}
