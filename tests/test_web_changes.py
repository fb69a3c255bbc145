"""web/changes.py and web/machine.py: what the watch tab reads of run directories and of this machine."""

import csv
import hashlib
import io
import json
import math
import os
import shutil

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from evaluation.report import append_row
from serving.errors import ApiError
from tests import launch
from tests.metric_rows import write_steps
from training.metrics import MetricsLog
from web import changes, machine
from web.paths import REPOSITORY, Root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/a").mkdir(parents=True)
    return Root.at(str(tmp_path / "root"))


@pytest.fixture
def get(root):
    """get(path, **query) -> the JSON of an answer; an ApiError is raised."""
    app = FastAPI()
    app.include_router(changes.router(root))
    app.include_router(machine.router())
    client = TestClient(app)
    return lambda path, **query: client.get(f"/api/{path}", params=query).raise_for_status().json()


VENDORED = {  # sha256 of the files of uplot 1.6.32 at npm, which are never edited
    "uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def test_the_curve_library_is_as_it_was_published():
    directory = REPOSITORY / "web/static/vendor"
    assert {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in VENDORED} == VENDORED
    assert {path.name for path in directory.iterdir()} == {*VENDORED, "uPlot.VERSION"}


def points(answer):
    return list(zip(answer["columns"]["step"], answer["columns"]["loss"], strict=True))


def log_steps(directory, steps, loss=1.0, **changed):
    """Write rows as training does."""
    log = MetricsLog(directory, 100)
    write_steps(log, steps, loss, **changed)
    log.file.close()


def test_points_are_read_from_an_offset(root, get):
    log_steps(root.path / "a", range(1, 4))
    (first,) = get("changes", run="a", at=0, columns="loss")
    assert points(first) == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert first["begins"] and not first["more"] and first["newest"]["tokens_per_second"] == 1234.5
    log_steps(root.path / "a", [4])
    (second,) = get("changes", run="a", at=first["at"], columns="lr,no_such")
    assert second["columns"] == {"step": [4], "lr": [1e-4], "no_such": [None]} and not second["begins"]
    (third,) = get("changes", run="a", at=second["at"])
    assert points(third) == [] and third["at"] == second["at"] and third["newest"] is None


def test_a_line_that_is_being_written_waits(root, get):
    log_steps(root.path / "a", [1, 2])
    path = root.path / "a/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo')
    (torn,) = get("changes", run="a", at=0)
    assert torn["at"] == len(whole) and not torn["more"]
    log_steps(root.path / "a", [2, 3], loss=9.0)  # a resumed run ends the torn line
    (resumed,) = get("changes", run="a", at=torn["at"])
    assert points(resumed) == [(2, 4.5), (3, 3.0)]  # the page drops its own step 2
    assert points(get("changes", run="a", at=0)[0]) == [(1, 1.0), (2, 4.5), (3, 3.0)]


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "loss": 2}\n', b'{"step": 1,    "lr": 1, "loss": 2}\n' * 9])
def test_another_file_begins_again(root, get, content):
    log_steps(root.path / "a", range(1, 3))
    (answer,) = get("changes", run="a", at=0)
    (root.path / "a/metrics.jsonl").write_bytes(content)
    (again,) = get("changes", run="a", at=answer["at"])
    assert again["begins"] and again["at"] == len(content) and points(again) == [(1, 2)][: len(content)]


def test_a_long_file_comes_in_parts(root, get, monkeypatch):
    monkeypatch.setattr(changes, "SLICE", 1000)
    log_steps(root.path / "a", range(1, 40))
    at, more, seen = 0, True, []
    while more:
        (answer,) = get("changes", run="a", at=at)
        at, more, seen = answer["at"], answer["more"], seen + answer["columns"]["step"]
    assert seen == list(range(1, 40))


def test_only_finite_numbers_are_sent(root, get):
    values = ["NaN", "Infinity", "1e999", "9" * 400, "true", '"1"', "null", "[1]", "123456789", "0.123456789"]
    lines = [f'{{"step": {step}, "loss": {value}}}' for step, value in enumerate(values)]
    lines += ["[" * 100000, "5", '{"step": null}', "", "\udc80"]
    (root.path / "a/metrics.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    (answer,) = get("changes", run="a", at=0)
    assert answer["columns"]["loss"] == [None] * 8 + [123456789, 0.123457]


def test_evaluations_are_sent_when_they_change(root, get):
    path = root.path / "a/evaluation.jsonl"
    append_row(path, {"step": 2, "epoch": 1, "dev_loss": 0.7, "triples_f1": math.nan})
    (first,) = get("changes", run="a", at=0, evaluated="")
    assert first["evaluations"]["rows"] == [{"step": 2, "epoch": 1, "dev_loss": 0.7, "triples_f1": None}]
    (same,) = get("changes", run="a", at=0, evaluated=first["evaluations"]["mark"])
    assert same["evaluations"] is None
    append_row(path, {"step": 1, "epoch": 1, "dev_loss": 0.9})  # resumed
    (changed,) = get("changes", run="a", at=0, evaluated=first["evaluations"]["mark"])
    assert [row["step"] for row in changed["evaluations"]["rows"]] == [1]


def test_several_runs_are_asked_for_at_once(root, get):
    for name, steps in (("a", [1]), ("b", [1, 2])):
        log_steps(root.path / name, steps)
    answers = get("changes", run=["a", "b", "missing"], at=[0, 0, 7], evaluated=["", "", ""])
    assert [(one["run"], one["columns"]["step"]) for one in answers] == [("a", [1]), ("b", [1, 2]), ("missing", [])]
    for wrong in ({"run": ["a", "b"], "at": 0}, {"run": "a", "at": -1}, {"run": "a", "at": 0, "evaluated": ["", ""]}):
        with pytest.raises(ApiError, match="one offset"):
            get("changes", **wrong)


@pytest.mark.parametrize("run", ["..", "/etc", "outside", "a/../..", "linked"])
@pytest.mark.parametrize("path", ["changes?at=0", "log", "predictions", "differences", "curves"])
def test_nothing_outside_of_the_root_is_read(root, get, run, path):
    (root.path / "outside").symlink_to("/etc")
    (root.path / "linked").mkdir()
    names = (changes.METRICS, changes.LOG, changes.PREDICTIONS, "run.yaml")
    for name in names:
        (root.path / "linked" / name).symlink_to("/etc/passwd")
    path, _, query = path.partition("?")
    with pytest.raises(ApiError, match="outside of the root"):
        get(path, run=run, **({"at": 0} if query else {}))


def test_a_pipe_is_no_file(root, get):
    os.mkfifo(root.path / "a/train.log")
    assert get("log", run="a", before=-1) == {"from": 0, "to": 0, "text": "", "rest": "", "size": 0}


def test_a_log_is_read_from_its_end_and_back(root, get):
    lines = [f"step {number} 损失".encode() for number in range(20000)]
    content = b"\n".join(lines)
    (root.path / "a/train.log").write_bytes(content)
    tail = get("log", run="a", before=-1)
    assert tail["rest"] == "step 19999 损失" and tail["size"] == len(content)
    assert len(tail["text"].encode()) > changes.LOG_SLICE - 100
    text, start = tail["text"], tail["from"]
    while start:
        part = get("log", run="a", before=start)
        assert part["to"] == start and part["rest"] == ""
        text, start = part["text"] + text, part["from"]
    assert text.encode() + lines[-1] == content
    forward, at = "", 0
    while at < tail["to"]:
        part = get("log", run="a", **{"from": at})
        forward, at = forward + part["text"], part["to"]
    assert forward == text
    with (root.path / "a/train.log").open("ab") as file:
        file.write(b"!\nmore")
    grown = get("log", run="a", **{"from": tail["to"]})
    assert (grown["text"], grown["rest"]) == ("step 19999 损失!\n", "more")


def test_a_line_longer_than_an_answer_is_cut(root, get):
    (root.path / "a/train.log").write_bytes(b"begin\n" + b"x" * 150_000)
    at, lengths = 0, []
    while True:
        part = get("log", run="a", **{"from": at})
        lengths.append(len(part["text"]))
        if part["to"] == at:
            break
        at = part["to"]
    assert lengths == [6, 65536, 65536, 0] and len(part["rest"]) == 150_000 - 2 * 65536
    assert get("log", run="a", before=-1)["to"] == 150_006


def test_a_log_shows_what_a_terminal_would(root, get):
    text = b"10%|#\r50%|##\r\x1b[32m100%\x1b[0m\r\n\x1b]0;title\x07plain\x1b[2K\ttab\x00\n\xff\n"
    (root.path / "a/train.log").write_bytes(text)
    assert get("log", run="a")["text"] == "100%\nplain\ttab\n\ufffd\n"


def test_the_options_that_differ(root, get):
    texts = {
        "a": "max_len: 512\nlearning_rate: 1e-4\nlora_module_name: [query_key_value]\n",
        "b": "max_len: 512\nlearning_rate: 0.0002\nlora_module_name: query_key_value\nseed: 7\nno_such: 1\n",
    }
    for name, text in texts.items():
        (root.path / name).mkdir(exist_ok=True)
        (root.path / name / "run.yaml").write_text(text)
    rows = {row["name"]: row["values"] for row in get("differences", run=["a", "b"])}
    assert rows.pop("seed")[1] == "7" and rows == {"learning_rate": ["0.0001", "0.0002"]}
    aliases = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else ['x'])}]\n" for n in range(9))
    (root.path / "b/run.yaml").write_text(aliases)  # 9^8 texts, were they written out
    assert {row["name"] for row in get("differences", run=["a", "b"])} <= {
        "max_len",
        "learning_rate",
        "lora_module_name",
    }


def test_this_machine(get):
    answer = get("machine")
    assert 0 < answer["memory_used"] < answer["memory_total"] and answer["cores"] >= 1
    assert 0 <= answer["percent"] <= 100 and len(answer["gpus"]) == len(machine.gpus())


def test_gpus_as_nvidia_smi_prints_them():
    (gpu, other) = machine.read_gpus(
        "0, NVIDIA H200, 1024, 143771, 97, 41, 612.25\n1, NVIDIA GB10, [N/A], [N/A], 3, [N/A], [N/A]\n"
    )
    assert gpu["name"] == "NVIDIA H200" and gpu["memory_used"] == 2**30 and gpu["watts"] == 612.25
    assert other == {**dict.fromkeys(gpu), "index": 1, "name": "NVIDIA GB10", "percent": 3}
    assert machine.read_gpus("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n") == []


@pytest.mark.slow
def test_a_run_as_train_writes_it(root, get):
    run = root.path / "real"
    records = [json.loads(line) for line in (launch.GOLDEN / "samples.jsonl").read_text().splitlines()[:2]]
    dev = root.path / "dev.jsonl"
    dev.write_text("".join(json.dumps({**one, "output": one["output"][:3]}) + "\n" for one in records))
    options = launch.train_options("glm3", "lora", run, dev_path=dev, eval_metric="exact_match", num_train_epochs=1)
    launch.train(options)
    (answer,) = get("changes", run="real", at=0, columns="loss,lr,grad_norm,tokens_per_second,peak_memory_bytes")
    assert answer["columns"]["loss"] == pytest.approx(launch.losses(run), rel=1e-5)
    assert all(None not in values for values in answer["columns"].values())
    (row,) = answer["evaluations"]["rows"]
    assert row["step"] == answer["columns"]["step"][-1] and row["dev_loss"] > 0 and row["exact_match"] >= 0
    first = get("predictions", run="real")[0]
    assert first["reference"] == records[0]["output"][:3] and first["step"] == row["step"] and first["asked"]
    shutil.copytree(run, root.path / "copy")
    assert get("differences", run=["real", "copy"]) == []
    response = changes.as_csv({"real": changes.merged(root, "real")})
    rows = list(csv.DictReader(io.StringIO(response)))
    assert [float(one["loss"]) for one in rows] == launch.losses(run)
    assert [bool(one["dev_loss"]) for one in rows] == [False] * (len(rows) - 1) + [True]
