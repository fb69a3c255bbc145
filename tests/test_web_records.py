"""web/records.py and files.append_line: what the chat appends can be trained on, and no file ends in half a line."""

import json
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from conversation import messages_of
from data.formats import Columns
from data.records import read_records
from files import append_line
from runs.places import Root
from web import records
from web.app import answer_errors

QUESTION = [{"role": "system", "content": "简短"}, {"role": "user", "content": "发动机\n异响"}]
GOOD, BAD = {"role": "assistant", "content": "好"}, {"role": "assistant", "content": "坏"}


@pytest.fixture
def root(tmp_path):
    return Root.at(str(tmp_path))


@pytest.fixture
def post(root):
    """post(**body) -> the response to api/records."""
    app = FastAPI()
    answer_errors(app)
    app.include_router(records.router(root))
    client = TestClient(app)
    return lambda **body: client.post("/api/records", json=body)


def contents(path, **options):
    """(role, content) of all messages of each record in a file."""
    read = read_records(path, **options)
    return [[(message["role"], message["content"]) for message in messages_of(record)] for _, record in read]


def test_records_to_train_on(root, post):
    for answer in (GOOD, BAD):
        response = post(kind="training", file="new/chosen.jsonl", messages=[*QUESTION, answer])
        assert response.json() == {"file": "new/chosen.jsonl"}
    spoken = [("system", "简短"), ("user", "发动机\n异响")]
    assert contents(root.path / "new/chosen.jsonl") == [[*spoken, ("assistant", word)] for word in "好坏"]


def test_pairs(root, post):
    """They are read with --response_column chosen, and rejected."""
    assert post(kind="preference", file="pairs.jsonl", prompt=QUESTION, chosen=[GOOD], rejected=[BAD]).is_success
    spoken = [("system", "简短"), ("user", "发动机\n异响")]
    for column, word in (("chosen", "好"), ("rejected", "坏")):
        columns = Columns(prompt="prompt", response=column)
        assert contents(root.path / "pairs.jsonl", columns=columns) == [[*spoken, ("assistant", word)]]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"file": "records.json"}, "no file for records"),
        ({"file": "run/metrics.jsonl"}, "no file for records"),
        ({"file": ".hidden/a.jsonl"}, "no file for records"),
        ({"file": "directory.jsonl"}, "no file for records"),
        ({"file": "../a.jsonl"}, "outside of the root"),
        ({"file": "link/a.jsonl"}, "outside of the root"),
        ({"file": None}, "is not a path"),
        ({"kind": "other"}, "kind is neither"),
        ({"kind": ["training"]}, "kind is neither"),
        ({"messages": QUESTION}, "training: "),
        ({"messages": [GOOD]}, "training: "),
        ({"messages": "x"}, "not lists of messages"),
        ({"kind": "preference", "prompt": QUESTION, "chosen": [GOOD]}, "rejected"),
        ({"kind": "preference", "prompt": [], "chosen": [GOOD], "rejected": [BAD]}, "preference: "),
    ],
)
def test_what_is_refused(root, post, fields, text, tmp_path_factory):
    (root.path / "directory.jsonl").mkdir()
    (root.path / "link").symlink_to(tmp_path_factory.mktemp("outside"))
    response = post(**{"kind": "training", "file": "a.jsonl", "messages": [*QUESTION, GOOD], **fields})
    assert response.status_code in (400, 403) and text in response.json()["error"]["message"]
    assert not list(root.path.rglob("a.jsonl"))


def test_lines_of_many_writers_are_whole(tmp_path):
    path, lines = tmp_path / "a.jsonl", [json.dumps({"n": n, "text": "字" * 5000}).encode() for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append_line, [path] * len(lines), lines))
    assert sorted(path.read_bytes().splitlines()) == sorted(lines)


def test_a_line_after_a_torn_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b')
    append_line(path, b"{}")
    assert path.read_bytes() == b'{"a": 1}\n{"b\n{}\n'


def test_no_half_line_stays_on_a_full_disk(tmp_path, post, root):
    """A limit of the file's size stands for the disk: a part of the line can be written."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
    try:
        response = post(kind="training", file="a.jsonl", messages=[*QUESTION, GOOD])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert response.status_code == 507 and "a.jsonl cannot be written" in response.json()["error"]["message"]
    assert path.read_bytes() == b"{}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_directory_that_is_read_only(tmp_path, post):
    tmp_path.chmod(0o500)
    assert post(kind="training", file="a.jsonl", messages=[*QUESTION, GOOD]).status_code == 507
    tmp_path.chmod(0o700)
