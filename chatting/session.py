"""The conversation of a chat, as messages of conversation.py, and as a record that data/ reads."""

import json
from collections import deque
from pathlib import Path

from conversation import Message, Record, is_ready, join_tools, messages_of, unsuited
from data.formats import Columns, normalize
from data.records import read_records
from errors import UserError
from modes.mode import Mode
from modes.text import encodable


class Session:
    """A conversation: system text, tools, and the messages after them.

    Args:
        system: system text of this and every later conversation; "" for none.
        prefix: prepended to every question in the prompt, as in training.
    """

    def __init__(self, mode: Mode, system: str = "", prefix: str = ""):
        self.mode = mode
        self.system = encodable(system)
        self.prefix = prefix
        self.tools: list = []
        self.messages: list[Message] = []

    def ask(self, question: str) -> None:
        """Add a question."""
        self.messages.append({"role": "user", "content": encodable(question)})

    def answer(self, text: str) -> None:
        """Add the assistant's answer, as `Mode.answer_text` returns it."""
        if self.call_in(text) is None:
            self.messages.append({"role": "assistant", "content": text})
        else:
            name, content = text.strip().split("\n", 1)
            message = {"role": "assistant", "content": content.strip(), "metadata": name.strip()}
            self.messages.append(message)

    def observe(self, result: str) -> None:
        """Add the result of a tool call."""
        self.messages.append({"role": "observation", "content": encodable(result)})

    def call_in(self, answer: str) -> tuple[str, str] | None:
        """(the tool's name, the code of the call) of an answer that calls one of the tools."""
        return self.mode.calls.split(answer) if self.tools and self.mode.calls else None

    def clear(self) -> None:
        """Forget the messages; system text and tools stay."""
        self.messages = []

    def undo(self) -> bool:
        """Remove the last question and everything after it. Returns whether there was one."""
        place = self._last_question()
        self.messages = self.messages[: max(place, 0)]
        return place >= 0

    def reopen(self) -> bool:
        """Remove what follows the last question, so that it can be answered again. Returns whether there is one."""
        place = self._last_question()
        self.messages = self.messages[: place + 1]
        return place >= 0

    def _last_question(self) -> int:
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return places[-1] if places else -1

    def as_object(self) -> dict:
        """The conversation as an object of a training file."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        tools = {"tools": self.tools} if self.tools else {}
        return {"messages": [*system, *self.messages], **tools}

    def record(self) -> Record:
        """The record whose prompt ends with the last message; built by the code that reads training files."""
        return normalize(self.as_object(), "chat", Columns(prefix=self.prefix), require_output=False)

    def save(self, path: Path) -> None:
        """Append the conversation as a line of JSON, ready for --train_path.

        Raises:
            UserError: there is no answer yet, the file holds something else, or it cannot be written.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise UserError("The conversation does not end with an answer: ask first, or /undo the last question.")
        try:
            before = path.read_bytes()[:1] if path.exists() else b""
            if before not in (b"", b"{"):
                raise UserError(f"{path} holds no lines of JSON: choose a new file, such as chats.jsonl.")
            with path.open("ab+") as file:
                file.seek(0, 2)
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(json.dumps(self.as_object(), ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another file.") from error

    def load(self, path: Path) -> None:
        """Continue the last record of a file, in any format of data/.

        Raises:
            UserError: the file cannot be read, or its last record does not suit the model.
        """
        ((_, record),) = deque(read_records(path, require_output=False), maxlen=1)
        clause = unsuited(record, self.mode.roles)
        if clause or is_ready(record):
            reason = clause or "a complete prompt, which is no conversation"
            raise UserError(f"The last record of {path} has {reason}: choose another file.")
        messages = messages_of(self.mode.written(record))
        system: Message = messages[0] if messages[0]["role"] == "system" else {"content": ""}
        self.tools = system.get("tools", [])
        joined = join_tools("", self.tools) if self.tools else ""
        self.system = system["content"].removesuffix(joined)
        self.messages = [dict(message) for message in messages if message["role"] != "system"]
