"""The screen of a chat, in a pty: lines, history, completion, pasted text, the editor, encodings, answers in pieces."""

import io
import os
import random
import stat
import sys
import time

import pytest

from chatting.screen import Screen
from generation.stream import AnswerStream
from modes import MODES
from tests import golden
from tests.launch import REPOSITORY, environment
from tests.terminals import Terminal

# Reads lines and shows each, as chat.py does, without a model.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
{{first}}
from errors import run_program
from chatting.screen import make_screen
def main():
    screen = make_screen(lambda: {{{{"/adapter": ["spo", "base"], "/set": ()}}}})
    while True:
        try:
            print(repr(screen.read("READY> ")))
            screen.write("水泵 😀 é \\x1b[2J")
            screen.end_line()
            screen.table({{{{"/a": "水泵 😀"}}}})
            screen.call("get_weather", "tool_call(city='北京')")
            screen.columns({{{{"base": iter(["水", "泵"]), "tuned": iter(["é", "😀"])}}}})
            screen.error("水泵 😀")
        except KeyboardInterrupt:
            print("INTERRUPTED")
        except EOFError:
            print("LEFT")
            return
run_program(main)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program in a terminal; first: a line of Python before its imports."""
    started = []

    def start(first="", **changes):
        path = tmp_path / "program.py"
        path.write_text(PROGRAM.format(first=first))
        home = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        terminal = Terminal([sys.executable, path], environment(**{**home, **changes}), tmp_path)
        started.append(terminal)
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def test_lines_history_completion_paste_and_leaving(start, tmp_path):
    terminal = start()
    terminal.wait_for("READY>")
    terminal.enter("第一 😀")
    terminal.wait_for("'第一 😀'")
    assert "水泵 😀 é ␛[2J" in terminal.wait_for("error: ")
    terminal.wait_for("READY>")
    terminal.enter("\x1b[A!")  # the arrow up
    terminal.wait_for("'第一 😀!'")
    terminal.wait_for("READY>")
    terminal.type("/ad\t")
    terminal.wait_for("apter")
    terminal.type(" sp\t")
    terminal.wait_for("o")
    terminal.type("\r")
    terminal.wait_for("'/adapter spo'")
    terminal.wait_for("READY>")
    terminal.type("\x1b[200~a\nb\x1b[201~")
    terminal.type("\r")
    terminal.wait_for(r"'a\nb'")
    terminal.wait_for("READY>")
    terminal.enter('"""c')
    terminal.wait_for("...")
    terminal.enter('d"""')
    terminal.wait_for(r"'c\nd'")
    terminal.wait_for("READY>")
    terminal.type("half\x03")
    terminal.wait_for("INTERRUPTED")
    terminal.wait_for("READY>")
    terminal.type("\x04")
    terminal.wait_for("LEFT")
    assert terminal.finish() == 0
    history = tmp_path / "state" / "chatglm-finetuning" / "chat_history"
    assert "+第一 😀!\n" in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600
    again = start()
    again.wait_for("READY>")
    again.enter("\x1b[A\x1b[A")
    again.wait_for('"""c')


def test_the_editor(start, tmp_path):
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "从编辑器\\n第二行" >> "$1"\n')
    editor.chmod(0o700)
    terminal = start(EDITOR=str(editor), VISUAL="")
    terminal.wait_for("READY>")
    terminal.type("写：\x07")
    terminal.wait_for("第二行")
    terminal.type("\r")
    terminal.wait_for(r"'写：从编辑器\n第二行'")


def test_without_prompt_toolkit(start):
    terminal = start("sys.modules['prompt_toolkit'] = None")
    terminal.wait_for("install: pip install -c constraints.txt -e '.[chat]'")
    terminal.wait_for("READY>")
    terminal.enter("第一 😀")
    terminal.wait_for("'第一 😀'")
    terminal.wait_for("READY>")
    time.sleep(0.5)  # Python's input() misses a signal just before it waits
    terminal.type("\x03")
    terminal.wait_for("INTERRUPTED")
    terminal.type("\x04")
    terminal.wait_for("LEFT")
    assert terminal.finish() == 0


def test_a_home_that_cannot_be_written(start, tmp_path):
    (tmp_path / "state").write_text("a file")
    terminal = start()
    terminal.wait_for("READY>")
    terminal.enter("a")
    terminal.wait_for("'a'")


@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "gbk"},
        {"TERM": "dumb"},
    ],
)
def test_any_terminal(start, changes):
    terminal = start(**changes)
    terminal.wait_for("READY>")
    terminal.enter("plain")
    terminal.wait_for("'plain'")
    terminal.wait_for("READY>")
    terminal.enter("水泵 😀")
    terminal.wait_for("tuned")
    terminal.wait_for("READY>")
    terminal.type("\x04")
    terminal.wait_for("LEFT")
    assert terminal.finish() == 0 and "Traceback" not in terminal.output


@pytest.mark.parametrize("mode", MODES)
def test_ten_thousand_answers_in_a_terminal_never_show_half_a_character(mode, monkeypatch):
    """A third of them in each generation: what the terminal gets at any time is whole characters."""
    rng, tokenizer = random.Random(2), golden.tokenizer(mode)
    characters = [chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(300)] + list("😀🎉🇨🇳👍🏽龘é")
    texts = ["".join(rng.choices(characters, k=rng.randint(1, 12))) for _ in range(10_002 // 3)]
    master, slave = os.openpty()
    with io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", write_through=True) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        screen = Screen(lambda prompt, is_reply=False: "", interactive=True)
        for text, ids in zip(texts, tokenizer.encode_texts(texts, num_threads=1), strict=True):
            stream = AnswerStream(MODES[mode], tokenizer)
            shown = ""
            for piece in (*(stream.feed([i]) for i in ids), stream.finish()):
                if piece:
                    screen.write(piece)
                    shown += os.read(master, 4096).decode()  # strict: an error for half a character
            assert shown == text and "\ufffd" not in shown
    os.close(master)
