"""runs/log.py: slices of logs, forward and back, as a terminal would show them."""

import os

import pytest

from runs.log import LOG_FILE, SLICE, log_slice
from runs.places import Root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").mkdir()
    return Root.at(str(tmp_path))


def lines_of(root, start=0, before=0):
    """A slice of the log of the run "a"."""
    return log_slice(root.file("a", LOG_FILE), start, before)


def test_a_pipe_is_no_file(root):
    os.mkfifo(root.path / "a/train.log")
    assert lines_of(root, before=-1) == {"from": 0, "to": 0, "text": "", "rest": "", "size": 0}


def test_a_log_is_read_from_its_end_and_back(root):
    lines = [f"step {number} 损失".encode() for number in range(20000)]
    content = b"\n".join(lines)
    (root.path / "a/train.log").write_bytes(content)
    tail = lines_of(root, before=-1)
    assert tail["rest"] == "step 19999 损失" and tail["size"] == len(content)
    assert len(tail["text"].encode()) > SLICE - 100
    text, start = tail["text"], tail["from"]
    while start:
        part = lines_of(root, before=start)
        assert part["to"] == start and part["rest"] == ""
        text, start = part["text"] + text, part["from"]
    assert text.encode() + lines[-1] == content
    forward, at = "", 0
    while at < tail["to"]:
        part = lines_of(root, at)
        forward, at = forward + part["text"], part["to"]
    assert forward == text
    with (root.path / "a/train.log").open("ab") as file:
        file.write(b"!\nmore")
    grown = lines_of(root, tail["to"])
    assert (grown["text"], grown["rest"]) == ("step 19999 损失!\n", "more")


def test_a_line_longer_than_an_answer_is_cut(root):
    (root.path / "a/train.log").write_bytes(b"begin\n" + b"x" * 150_000)
    at, lengths = 0, []
    while True:
        part = lines_of(root, at)
        lengths.append(len(part["text"]))
        if part["to"] == at:
            break
        at = part["to"]
    assert lengths == [6, 65536, 65536, 0] and len(part["rest"]) == 150_000 - 2 * 65536
    assert lines_of(root, before=-1)["to"] == 150_006


def test_a_log_shows_what_a_terminal_would(root):
    text = b"10%|#\r50%|##\r\x1b[32m100%\x1b[0m\r\n\x1b]0;title\x07plain\x1b[2K\ttab\x00\n\xff\n"
    (root.path / "a/train.log").write_bytes(text)
    assert lines_of(root)["text"] == "100%\nplain\ttab\n\ufffd\n"
