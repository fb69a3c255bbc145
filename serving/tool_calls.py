"""Generated ids as deltas of OpenAI's API where an answer may call a tool: content, or the call in pieces.

    writer = CallWriter(AnswerStream(mode, tokenizer), mode.calls)
    writer.feed(ids)    # [{"tool_calls": [{"index": 0, "id": "call_…", "type": "function", "function": {"name": …
    writer.feed(ids)    # [{"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "北京"'}}]}]
    writer.finish()     # [{"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}]

What a model generates is parsed and never executed. A call that cannot be read is content.
"""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from generation.stream import AnswerStream
from modes.calls import CallGrammar

Delta = dict[str, Any]


class CallWriter:
    """One answer, which may be a call.

    Args:
        grammar: of the generation's calls.
        whole: return a call only at its end. Otherwise one that turns out unreadable was begun before it is content.
    """

    def __init__(self, stream: AnswerStream, grammar: CallGrammar, whole: bool = False):
        self.calls = False
        """Whether the answer calls a tool; known at its end."""
        self._stream = stream
        self._grammar = grammar
        self._whole = whole
        self._growing = grammar.growing()
        self._is_text = False
        self._held = ""  # the answer so far, while it may be a call
        self._opened = False  # whether the call's first delta was returned
        self._sent = 0  # number of arguments returned

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stream.stopped

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        """The deltas that are final after these ids."""
        text = self._stream.feed(ids)
        if self._is_text:
            return as_content(text)
        self._held += text
        arguments = self._growing.feed(text)
        if not (self._stream.may_be_call and self._growing.possible):
            return self._as_text()
        return [] if self._whole or not self._growing.name else self._call(self._growing.name, arguments)

    def finish(self) -> list[Delta]:
        """The deltas that were held back."""
        text = self._stream.finish()
        if self._is_text:
            return as_content(text)
        self._held += text
        call = read_call(self._grammar, self._held) if self._stream.may_be_call else None
        if call is None:
            return self._as_text()
        self.calls = True
        name, arguments = call
        rest = dict(list(arguments.items())[self._sent :])
        return [*self._call(name, rest), more("}" if self._sent else "{}")]

    def _as_text(self) -> list[Delta]:
        self._is_text = True
        return as_content(self._held)

    def _call(self, name: str, arguments: dict[str, object]) -> list[Delta]:
        """Deltas for further arguments, after the first delta of a call."""
        deltas = [] if self._opened else [first(name)]
        self._opened = True
        for key, value in arguments.items():
            text = member(key, value)
            if text is None:
                break  # the call is unreadable
            deltas.append(more(f"{', ' if self._sent else '{'}{text}"))
            self._sent += 1
        return deltas


def read_call(grammar: CallGrammar, text: str) -> tuple[str, dict[str, object]] | None:
    """(the tool's name, its arguments) of an answer that calls a tool with values of JSON; None for any other."""
    split = grammar.split(text)
    arguments = grammar.read_arguments(split[1]) if split else None
    if split is None or arguments is None or any(member(*item) is None for item in arguments.items()):
        return None
    return split[0], arguments


def member(name: str, value: object) -> str | None:
    """A member of a JSON object; None for a value that JSON does not have, such as bytes."""
    try:
        text = json.dumps({name: value}, ensure_ascii=False, allow_nan=False)[1:-1]
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps({name: value})[1:-1]
    except (TypeError, ValueError):
        return None
    return text


def as_content(text: str) -> list[Delta]:
    """Some text as deltas; none if it is empty."""
    return [{"content": text}] if text else []


def first(name: str) -> Delta:
    """The first delta of a call."""
    function = {"name": name, "arguments": ""}
    return {
        "tool_calls": [{"index": 0, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}]
    }


def more(arguments: str) -> Delta:
    """A further part of a call's arguments, which are JSON."""
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
