"""A place with good inputs that a test damages, and what must be true when a program refuses them."""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from errors import run_program
from tests import launch

RECORD = {"instruction": "抽取三元组：", "input": "水泵渗漏。", "output": "水泵_部件故障_渗漏"}
# Every sentence says what to do.
REMEDY = re.compile(
    r"\b(give|use|choose|change|correct|fetch|unpack|export|download|write|save|name|leave|remove|copy|put|move|needs?|"
    r"must (be|hold)|holds either|"
    r"take|existing|itself|update|raise|merge it|split|keep|add|go together|did you mean|lists all flags|is no text)\b",
    re.IGNORECASE,
)
LOADERS = ("generation.models.load_base", "training.models.load_base")  # read the weights of a base into a model


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def write(path: Path, content) -> Path:
    """A file of bytes, of text, or of anything else as JSON."""
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
    path.write_bytes(content)
    return path


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; a dotted one (base__path) is an inner key."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for name, change in changes.items():
        *outer, last = name.split("__")
        section = value
        for key in outer:
            section = section[key]
        section[last] = change
    write(path, value)


def cut(path: Path, length: int = 1000) -> None:
    """Leave the first bytes of a file."""
    write(path, path.read_bytes()[:length])


def snapshot(place: Path) -> dict[str, tuple]:
    """Every path of a directory, with what is there; tokenized data may be kept, but nothing half-finished."""
    contents = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if name.split("/")[0] == "cache":
            assert not name.endswith((".tmp", ".broken")), f"{name} was left behind"
        elif path.is_symlink():
            contents[name] = ("link", os.readlink(path))
        elif path.is_file():
            with path.open("rb") as file:
                contents[name] = ("file", path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
        else:
            contents[name] = ("other", path.stat().st_mode)
    return contents


def sentences_of(text: str) -> list[str]:
    """The sentences of an error: a line, or several, numbered from 1 below their count."""
    heading, *lines = text.splitlines()
    if not heading.endswith(" problems:"):
        return [heading, *lines]
    count = int(heading.removesuffix(" problems:"))
    numbers, sentences = zip(*(line.split(". ", 1) for line in lines), strict=True)
    assert count > 1 and numbers == tuple(str(number) for number in range(1, count + 1)), text
    return list(sentences)


def check_sentences(text: str, pattern: str) -> None:
    """`text` is what a program said: a sentence a line after one "error: ", each with a remedy."""
    assert "Traceback" not in text, text
    parts = re.split(r"^error: ", text, flags=re.MULTILINE)
    assert len(parts) == 2, text
    for sentence in sentences_of(parts[1]):
        assert sentence.endswith((".", "?")), sentence
        assert REMEDY.search(sentence), sentence
        assert len(sentence) < 1000, sentence
        assert "object has no attribute" not in sentence and "object at 0x" not in sentence, sentence
    assert re.search(pattern, parts[1]), f"{pattern} is not in: {parts[1]}"


def refused(main: Callable, flags: list[str], pattern: str, place: Path, *, before_loading: bool = True) -> None:
    """Run an entry point in this process; it must end with code 2 and its sentences, and leave `place` as it was."""
    before = snapshot(place)
    output = io.StringIO()
    with contextlib.ExitStack() as patched:
        for loader in LOADERS if before_loading else ():
            patched.enter_context(mock.patch(loader, side_effect=AssertionError("weights are loaded")))
        patched.enter_context(contextlib.redirect_stdout(output))
        patched.enter_context(contextlib.redirect_stderr(output))
        ended = patched.enter_context(pytest.raises(SystemExit))
        run_program(lambda: main(flags))
    assert ended.value.code == 2, output.getvalue()
    check_sentences(output.getvalue(), pattern)
    assert snapshot(place) == before


def train_flags(place: Path, **changes) -> list[str]:
    """The flags of a run over the good inputs of `place`."""
    options = launch.train_options("glm2", "lora", place / "output")
    return launch.flags(
        {**options, "model_name_or_path": place / "base", "train_path": place / "records.json", **changes}
    )
