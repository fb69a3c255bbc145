"""Pages of the documentation, read for tests."""

import re
import shlex
from pathlib import Path

from options.chat import CHAT
from options.merge import MERGE
from options.parser import Program, parse_and_check
from options.predict import PREDICT
from options.serve import SERVE
from options.train import TRAIN
from options.webui import WEBUI

PROGRAMS = {program.name: program for program in (TRAIN, PREDICT, MERGE, CHAT, SERVE, WEBUI)}


def check_command(program: Program, argv: list[str]) -> None:
    """Fail if a program finds something wrong with a command line and the values of its flags."""
    assert parse_and_check(program, argv).problems == []


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(document: Path) -> list[list[str]]:
    """Every command of the bash blocks as words, continued lines joined."""
    lines = [
        line
        for language, block in code_blocks(document)
        if language == "bash"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def headings(document: Path) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(document), re.M)]
