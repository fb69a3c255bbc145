"""web/changes.py and web/machine.py: what the watch tab asks of run directories and of this machine."""

import csv
import hashlib
import io
import json
import shutil

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from memory.gpus import gpus
from runs.errors import Outside, Refused
from runs.log import LOG_FILE
from runs.metrics import METRICS, PREDICTIONS, as_csv, merged
from runs.places import REPOSITORY, Root
from tests import launch
from tests.metric_rows import log_steps
from web import changes, machine


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/a").mkdir(parents=True)
    return Root.at(str(tmp_path / "root"))


@pytest.fixture
def get(root):
    """get(path, **query) -> the JSON of an answer; a UserError is raised."""
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


def test_several_runs_are_asked_for_at_once(root, get):
    for name, steps in (("a", [1]), ("b", [1, 2])):
        log_steps(root.path / name, steps)
    answers = get("changes", run=["a", "b", "missing"], at=[0, 0, 7], evaluated=["", "", ""])
    assert [(one["run"], one["columns"]["step"]) for one in answers] == [("a", [1]), ("b", [1, 2]), ("missing", [])]
    for wrong in ({"run": ["a", "b"], "at": 0}, {"run": "a", "at": -1}, {"run": "a", "at": 0, "evaluated": ["", ""]}):
        with pytest.raises(Refused, match="one offset"):
            get("changes", **wrong)


@pytest.mark.parametrize("run", ["..", "/etc", "outside", "a/../..", "linked"])
@pytest.mark.parametrize("path", ["changes?at=0", "log", "predictions", "differences", "curves"])
def test_nothing_outside_of_the_root_is_read(root, get, run, path):
    (root.path / "outside").symlink_to("/etc")
    (root.path / "linked").mkdir()
    names = (METRICS, LOG_FILE, PREDICTIONS, "run.yaml")
    for name in names:
        (root.path / "linked" / name).symlink_to("/etc/passwd")
    path, _, query = path.partition("?")
    with pytest.raises(Outside, match="outside of the root"):
        get(path, run=run, **({"at": 0} if query else {}))


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
    assert 0 <= answer["percent"] <= 100 and len(answer["gpus"]) == len(gpus())


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
    response = as_csv({"real": merged(root, "real")})
    rows = list(csv.DictReader(io.StringIO(response)))
    assert [float(one["loss"]) for one in rows] == launch.losses(run)
    assert [bool(one["dev_loss"]) for one in rows] == [False] * (len(rows) - 1) + [True]
