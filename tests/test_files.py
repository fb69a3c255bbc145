"""files.py: writes are atomic, and a file that cannot be read or written is reported in one sentence."""

import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest

import files
from errors import UserError
from files import (
    own_temporary_directory,
    read_json,
    read_problem,
    remove_leftovers,
    remove_whole,
    whole_directory,
    whole_file,
    write_json,
    write_json_lines,
    write_problem,
    write_text,
)
from tests.launch import REPOSITORY

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    write_text(path, "新")
    assert path.read_bytes() == "新".encode() and names(tmp_path) == ["a.txt"]


def test_a_directory_is_replaced_when_the_new_one_is_whole(tmp_path):
    target = tmp_path / "target"
    with whole_directory(target) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_directory(target) as temporary:
        (temporary / "new").write_text("2")
        1 / 0  # noqa: B018
    assert names(target) == ["old"] and names(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, kind, monkeypatch):
    """A power cut after the rename finds the content, not an empty file."""
    path, synced = tmp_path / "target", []
    sync = files.sync
    monkeypatch.setattr(files, "sync", lambda file: (synced.append((file.name, path.exists())), sync(file)))
    if kind == "file":
        write_text(path, "content")
        assert synced == [(".target.tmp", False)]
    else:
        with whole_directory(path) as temporary:
            (temporary / "a").write_text("1")
        assert synced == [("a", False), (".target.tmp", False), (tmp_path.name, True)]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_kill_leaves_the_old_one(tmp_path, kind):
    path = tmp_path / "target"
    (write_text if kind == "file" else lambda path, text: path.mkdir())(path, "old")
    code = f"""
import os, signal, sys
from pathlib import Path
from files import whole_directory, whole_file
with whole_{kind}(Path(sys.argv[1])) as temporary:
    (temporary if {kind == "file"} else temporary / "a").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, path], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL and names(tmp_path) == [".target.tmp", "target"]
    assert path.read_text() == "old" if kind == "file" else names(path) == []
    if kind == "directory":
        remove_leftovers(tmp_path, "*")
        assert names(tmp_path) == ["target"]


def test_a_directory_is_removed_at_once(tmp_path):
    for name in ("a", ".a.old"):
        (tmp_path / name / "b").mkdir(parents=True)
    remove_whole(tmp_path / "a")
    assert names(tmp_path) == []


def test_json_is_written_readable(tmp_path):
    write_json(tmp_path / "a.json", {"名": [1, 2.5]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "名": [\n    1,\n    2.5\n  ]\n}\n'
    assert write_json_lines(tmp_path / "b.jsonl", ({"i": i} for i in range(3))) == 3
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"i": 0}, {"i": 1}, {"i": 2}]
    with pytest.raises(TypeError):
        write_json_lines(tmp_path / "b.jsonl", [{"i": 7}, object()])
    assert (tmp_path / "b.jsonl").read_text().splitlines() == lines and names(tmp_path) == ["a.json", "b.jsonl"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{\n"a": 1\n"b": 2}', "{}:3 is not JSON (Expecting ',' delimiter): download it again."),
        (b"", "{}:1 is not JSON (Expecting value): download it again."),
        (b"[1]", "{} is not a JSON object, but [1]: download it again."),
        (b"\xff", "{} cannot be read, it is not UTF-8 text: download it again."),
        (b"[" * 100_000, "{} cannot be read as JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "{} cannot be read as JSON (Exceeds the limit"),
        (None, "{} is missing: download it again."),
    ],
)
def test_what_is_no_json_object_is_said_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, "download it again")
    assert str(error.value).startswith(sentence.format(path))


def test_json_that_people_write(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": {"b": 1}}', encoding="utf-8")
    assert read_json(path, "correct it", by_hand=True) == {"a": {"b": 1}}
    path.write_text('{"a": {"b": 1, "b": 2}}')
    assert read_json(path, "correct it") == {"a": {"b": 2}}
    said = rf'^--file {path} cannot be read as JSON \(the key "b" is given twice\): correct'
    with pytest.raises(UserError, match=said):
        read_json(path, "correct it", flag="--file", by_hand=True)
    with pytest.raises(UserError, match=f"^--file {path}2 is missing: give another one.$"):
        read_json(tmp_path / "a.json2", "correct it", missing="give another one", flag="--file")


def test_files_of_records_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    os.mkfifo(tmp_path / "pipe")
    assert read_problem(path) is None and read_problem(str(path)) is None
    assert read_problem(tmp_path / "b").startswith("does not exist: ")
    assert read_problem("x" * 300).startswith("does not exist: ")
    assert read_problem(tmp_path).startswith("is a directory: ")
    assert read_problem(tmp_path / "pipe").startswith("is not a regular file: ")


def test_directories_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert write_problem(tmp_path) is None
    assert write_problem(tmp_path / "a" / "b") is None and names(tmp_path) == ["file"]
    assert write_problem(tmp_path / "file") == "is a file: give a directory"
    assert write_problem(tmp_path / "file" / "a") == "cannot be written (Not a directory): choose another directory"
    assert write_problem("/proc/a").startswith("cannot be written (")


@as_root
def test_what_permissions_forbid(tmp_path):
    path, directory = tmp_path / "a.json", tmp_path / "directory"
    path.touch(mode=0)
    directory.mkdir(mode=0o500)
    assert read_problem(path).startswith("cannot be read (Permission denied): ")
    assert write_problem(directory).startswith("cannot be written (Permission denied): ")


def test_the_temporary_directory_of_this_user(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = own_temporary_directory()
    assert directory == own_temporary_directory() and directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: directory.stat().st_uid + 1)
    fallback = tmp_path / f"chatglm-finetuning-{os.getuid()}"
    fallback.mkdir()  # another user's, under our name
    assert own_temporary_directory() not in (directory, fallback)
