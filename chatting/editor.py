"""The input line of a terminal: history, completion, pasted lines, and $EDITOR on Ctrl-G."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from chatting.lines import FILE, LineReader, Words


def history_path() -> Path:
    """The file of earlier questions: chat_history of chatglm-finetuning in $XDG_STATE_HOME or ~/.local/state."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "chatglm-finetuning" / "chat_history"


def make_history() -> History:
    """A history that only this user can read; in memory where it cannot be written."""
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def make_keys() -> KeyBindings:
    """Ctrl-G opens the line in $VISUAL or $EDITOR."""
    keys = KeyBindings()

    @keys.add("c-g")
    def open_editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


class CommandCompleter(Completer):
    """Completes commands and their arguments, which change during a chat."""

    def __init__(self, words: Callable[[], Words]):
        self.words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        name, space, rest = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        words = self.words()
        if not space:
            yield from (Completion(word, -len(name)) for word in words if word.startswith(name))
        elif words.get(name) is FILE:
            yield from PathCompleter(expanduser=True).get_completions(Document(rest), complete_event)
        else:
            yield from (Completion(word, -len(rest)) for word in words.get(name, ()) if word.startswith(rest))


def make_reader(words: Callable[[], Words]) -> LineReader:
    """A reader of lines with prompt_toolkit.

    Args:
        words: () -> what can be completed.
    """
    session: PromptSession[str] = PromptSession(
        history=make_history(),
        completer=CommandCompleter(words),
        complete_while_typing=False,
        reserve_space_for_menu=4,
        key_bindings=make_keys(),
        tempfile_suffix=".md",
    )

    replies: PromptSession[str] = PromptSession(key_bindings=make_keys(), tempfile_suffix=".md")

    def read_line(prompt: str, is_reply: bool = False) -> str:
        return (replies if is_reply else session).prompt(ANSI(prompt))

    return read_line
