"""The commands of a chat: a table of names, functions and help."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chatting import settings
from chatting.chat import Chat
from chatting.lines import FILE, Words
from chatting.tools import read_tools, split_command
from errors import UserError
from texts import counted

SWITCH = {"on": True, "off": False}
# "clear" and "stop" are words of the official demos, "exit" of LLaMA-Factory; the commands are Ollama's.
SPECIAL_WORDS = {"clear": "/clear", "/?": "/help", **dict.fromkeys(("stop", "exit", "quit", "/bye", "/quit"), "/exit")}


@dataclass(frozen=True)
class Command:
    """One command. run: (chat, the text after the command) -> None. arguments: placeholder of that text."""

    run: Callable[[Chat, str], None]
    help: str
    arguments: str = ""


def set_value(chat: Chat, text: str) -> None:
    name, _, value = text.partition(" ")
    if not name:
        chat.screen.table(settings.describe(chat.options))
        return
    if not value.strip():
        raise UserError(f"/set {name} has no value: write /set NAME VALUE.")
    chat.options = settings.change(chat.options, name, value.strip())
    chat.screen.note(f"{name} is {settings.describe(chat.options)[name]}.")
    if name in ("top_p", "top_k", "seed") and not chat.options.do_sample:
        chat.screen.note(f"{name} has an effect with /set temperature above 0.")


def set_system(chat: Chat, text: str) -> None:
    if not text:
        chat.screen.note(chat.session.system or "There is no system text.")
        return
    chat.session.system = "" if text == "off" else text
    chat.screen.note("The system text is removed." if text == "off" else "The system text is set.")


def set_tools(chat: Chat, text: str) -> None:
    words = text.split(maxsplit=1)
    if not words:
        names = [str(tool.get("name") or tool.get("function", {}).get("name")) for tool in chat.session.tools]
        chat.screen.note(f"Tools: {', '.join(names)}" if names else "There are no tools.")
        return
    if words[0] == "off":
        chat.session.tools, chat.command = [], []
        chat.screen.note("The tools are removed.")
        return
    if chat.session.mode.calls is None:
        raise UserError(f"{chat.session.mode.title} calls no tools: use a generation that does, such as ChatGLM3-6B.")
    command = split_command(words[1]) if len(words) > 1 else []
    chat.session.tools, chat.command = read_tools(path_of(words[0])), command
    source = f"from {shlex.join(command)}, which you confirm each time" if command else "from you"
    chat.screen.note(f"{counted(len(chat.session.tools), 'tool')}; results come {source}.")


def clear(chat: Chat, text: str) -> None:
    chat.session.clear()
    chat.screen.note("The conversation is cleared.")


def undo(chat: Chat, text: str) -> None:
    if not chat.session.undo():
        raise UserError("There is no question to undo: ask one first.")
    chat.screen.note(f"The last question is removed; {counted(len(chat.session.messages), 'message')} left.")


def regenerate(chat: Chat, text: str) -> None:
    if not chat.session.reopen():
        raise UserError("There is no question to answer again: ask one first.")
    chat.reply()


def choose_adapter(chat: Chat, text: str) -> None:
    if text:
        chat.models.get(text)
        chat.models.current = text
    others = ", ".join(name for name in chat.models.names if name != chat.models.current)
    chat.screen.note(f"{chat.models.current} answers; {'others: ' + others if others else '--lora adds adapters'}.")


def compare(chat: Chat, text: str) -> None:
    if text in SWITCH or not text:
        comparing = SWITCH.get(text, not chat.comparing)
        if comparing:
            chat.compared()
        chat.comparing = comparing
        chat.screen.note(f"Comparison is {'on' if chat.comparing else 'off'}.")
        return
    before, chat.comparing = chat.comparing, True
    try:
        chat.ask(text)
    finally:
        chat.comparing = before


def save(chat: Chat, text: str) -> None:
    chat.save(path_of(text))


def load(chat: Chat, text: str) -> None:
    chat.session.load(path_of(text))
    chat.screen.note(f"Loaded {counted(len(chat.session.messages), 'message')}.")


def switch_verbose(chat: Chat, text: str) -> None:
    chat.verbose = SWITCH.get(text, not chat.verbose)
    chat.screen.note(f"The line about speed is {'on' if chat.verbose else 'off'}.")


def show_help(chat: Chat, text: str) -> None:
    rows = {f"{name} {command.arguments}".strip(): command.help for name, command in COMMANDS.items()}
    rows |= {'"""': "Begin and end a question of several lines."}
    if chat.screen.interactive:
        rows |= {"Ctrl-C": "Stop the answer.", "Ctrl-D": "Leave.", "Ctrl-G": "Write in $EDITOR."}
    chat.screen.table(rows)


def leave(chat: Chat, text: str) -> None:
    chat.leaving = True


COMMANDS = {
    "/help": Command(show_help, "Show this list."),
    "/set": Command(set_value, "Change how answers are generated; alone: show it.", "NAME VALUE"),
    "/system": Command(set_system, "Set the system text; off removes it.", "TEXT"),
    "/clear": Command(clear, "Start a new conversation; system text and tools stay."),
    "/undo": Command(undo, "Remove the last question and its answer."),
    "/regenerate": Command(regenerate, "Answer the last question again."),
    "/adapter": Command(choose_adapter, "Let another adapter answer; base: none.", "NAME"),
    "/compare": Command(compare, "Show the answer of the base beside it, once or always.", "QUESTION|on|off"),
    "/tools": Command(set_tools, "Offer tools; COMMAND computes results, after your consent.", "FILE [COMMAND]|off"),
    "/save": Command(save, "Append the conversation to a file as a training record.", "FILE"),
    "/load": Command(load, "Continue the last record of a file.", "FILE"),
    "/verbose": Command(switch_verbose, "Show tokens, speed and memory after each answer.", "on|off"),
    "/exit": Command(leave, "Leave; so do Ctrl-D and stop."),
}


def path_of(text: str) -> Path:
    """The file of a command.

    Raises:
        UserError: none is given.
    """
    if not text:
        raise UserError("The name of a file is missing: write it after the command.")
    return Path(text).expanduser()


def words(chat: Chat) -> Words:
    """Command -> what may follow it, for completion."""
    after = {
        "/set": settings.NAMES,
        "/adapter": chat.models.names,
        "/compare": [*SWITCH],
        "/verbose": [*SWITCH],
        **dict.fromkeys(("/tools", "/save", "/load"), FILE),
    }
    return {name: after.get(name, ()) for name in COMMANDS}


def run(chat: Chat, line: str) -> None:
    """Run a command, or ask a question.

    Raises:
        UserError: the command is unknown or fails.
    """
    text = SPECIAL_WORDS.get(line.strip().lower(), line.strip())
    if not text:
        return
    if not text.startswith("/"):
        chat.ask(line)
        return
    name, _, rest = text.partition(" ")
    if name not in COMMANDS:
        raise UserError(f"{name} is an unknown command: /help lists all; begin a question with another character.")
    COMMANDS[name].run(chat, rest.strip())


def converse(chat: Chat) -> None:
    """Read and handle lines until the user leaves.

    Raises:
        UserError: a line of a pipe fails; in a terminal it is shown.
    """
    while not chat.leaving:
        try:
            run(chat, chat.screen.read(chat.prompt))
        except EOFError:
            return
        except KeyboardInterrupt:
            if not chat.screen.interactive:
                raise
            chat.screen.note("Ctrl-D or /exit leaves.")
        except UserError as error:
            if not chat.screen.interactive:
                raise
            chat.screen.error(str(error))
