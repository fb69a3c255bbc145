"""training/trackers.py: each tracker's own package, offline, gets the figures of a run and of its continuation."""

import importlib.util
import json
import os
import sqlite3
import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checkpoints.output_names import kind_of
from errors import UserError
from evaluation.report import read_history
from tests import launch
from tests.metric_rows import write_steps
from training.metrics import MetricsLog
from training.trackers import TRACKERS, check_trackers, close_trackers, start_trackers

OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}
CONFIG = {"lora_dim": 8, "lora_module_name": ("query", "value"), "dev_path": None, "source_prefix": "", "lr": 1e-4}


def records(data):
    """The payloads of a file in LevelDB's log format behind a header of 7 bytes: wandb's and swanlab's runs."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # the last part
            yield b"".join(parts)
            parts = []


def read_tensorboard(output, evaluated=True):
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert ("evaluation/dev_loss" in events.Tags()["scalars"]) is evaluated
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def read_wandb(output, evaluated=True):
    from wandb.proto import wandb_internal_pb2

    steps, evaluations = [], []
    for file in sorted(output.glob("wandb/*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        if file.parent.is_symlink():  # latest-run
            continue
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
            if "train/loss" in row:
                steps.append((int(row["train/global_step"]), float(row["train/loss"])))
            evaluations += [row for key in row if key == "evaluation/dev_loss"]
    assert bool(evaluations) is evaluated
    return steps


def read_swanlab(output, evaluated=True):
    from swanlab.proto.swanlab.record.v1 import record_pb2

    values = {}
    for file in sorted(output.glob("swanlog/*/*.swanlab"), key=lambda path: path.stat().st_mtime_ns):
        for data in records(file.read_bytes()):
            record = record_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("scalar"):
                logged = record.scalar
                values.setdefault(logged.key, []).append((logged.step, logged.value.number))
    assert ("evaluation/dev_loss" in values) is evaluated
    return values["train/loss"]


def read_mlflow(output, evaluated=True):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("chatglm-finetuning").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["lora_dim"] == "8"
    assert bool(client.get_metric_history(run.info.run_id, "evaluation/dev_loss")) is evaluated
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "swanlab": read_swanlab, "mlflow": read_mlflow}


@pytest.fixture
def offline(monkeypatch):
    """No variable of a tracker but those that keep it from the network."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SWANLAB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", TRACKERS)
def test_figures_of_a_run_and_of_its_continuation(name, tmp_path, offline):
    pytest.importorskip(TRACKERS[name][0])
    output, ids = tmp_path / "out", []
    for start_step, steps in ((0, (1, 2)), (1, (2, 3))):  # resumed from a state that is a step behind
        trackers = start_trackers((name, name), output, start_step, CONFIG)
        ids.append([tracker.run_id for tracker in trackers])
        log = MetricsLog(output, 3, trackers, start_step=start_step)
        write_steps(log, steps, loss=1.0 + start_step)
        log.write_evaluation({"step": steps[-1], "epoch": 1, "dev_loss": 0.5, "rougeL": float("nan")})
        log.close()
    assert ids[0] == ids[1] and len(ids[0]) == 1
    expected = {1: 1.0, 2: 1.0, 3: 2 / 3}
    assert dict(READERS[name](output)) == pytest.approx(expected, rel=1e-6)  # step 2: that of the second run
    if name != "tensorboard":
        assert json.loads((output / "trackers.json").read_text()) == {name: ids[0][0]}
        (other,) = start_trackers((name,), output, 0, CONFIG)  # started again
        assert other.run_id != ids[0][0]
        close_trackers([other])


def test_none(tmp_path):
    assert check_trackers(("none",), 0) == [] and start_trackers(("none",), tmp_path, 0, CONFIG) == []
    log = MetricsLog(tmp_path, 2, [])
    write_steps(log, [1, 2])
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


# names: what the sentence says on rank 0
REFUSED = {
    ("all",): "--report_to all is unknown: choose from tensorboard, wandb, swanlab, mlflow or none",
    ("tensorboard", "none"): "--report_to tensorboard,none has none and others",
    ("wandb",): "--report_to wandb needs the package wandb: run pip install wandb",
    ("swanlab",): "--report_to swanlab needs the package swanlab: run pip install swanlab",
    ("mlflow",): "--report_to mlflow needs the package mlflow: run pip install mlflow",
}


@pytest.mark.parametrize("names", REFUSED, ids=",".join)
def test_refused_before_anything_is_loaded(names, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in OFFLINE_PACKAGES else name)
    (sentence,) = check_trackers(names, 0)
    assert REFUSED[names] in sentence
    assert len(check_trackers(names, 1)) == (names[0] not in TRACKERS or len(names) > 1)  # another machine's packages


OFFLINE_PACKAGES = ("wandb", "swanlab", "mlflow")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_a_login_a_sentence_before_the_weights(name, tmp_path, offline, monkeypatch):
    pytest.importorskip(name)
    for variable in OFFLINE:
        monkeypatch.delenv(variable)
    options = launch.train_options("glm3", "lora", tmp_path / "out", report_to=name)
    result = launch.fork(["train.py", *launch.flags(options)], HOME=str(tmp_path))
    assert result.returncode == 2 and "trained parameters" not in result.stdout
    assert f"error: --report_to {name} cannot start (" in result.stderr and f"`{name} login`" in result.stderr


@pytest.mark.slow
def test_a_run_with_every_tracker_that_is_installed(tmp_path, offline):
    names = [name for name, (package, _) in TRACKERS.items() if importlib.util.find_spec(package)]
    output = tmp_path / "out"
    for steps in (2, 3):  # the second one resumes
        launch.train(
            launch.train_options("glm3", "lora", output, max_steps=steps, report_to=",".join(names)), num_ranks=2
        )
    losses = {row["step"]: row["loss"] for row in launch.metrics(output)}
    assert len(losses) == 3
    assert [path.name for path in output.iterdir() if kind_of(path.name) == (None, False)] == []
    for name in names:
        assert dict(READERS[name](output, evaluated=False)) == pytest.approx(losses, rel=1e-6), name


def test_a_server_that_is_not_there(tmp_path, offline, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{launch.free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="^--report_to mlflow cannot start .*MLFLOW_TRACKING_URI"):
        start_trackers(("mlflow",), tmp_path / "out", 0, CONFIG)


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, offline, capsys):
    pytest.importorskip("mlflow")
    log = MetricsLog(tmp_path, 3, start_trackers(("mlflow",), tmp_path, 0, CONFIG))
    write_steps(log, [1])
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE metrics")
    write_steps(log, [2, 3])
    log.close()
    assert [row["step"] for row in read_history(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert capsys.readouterr().err.count("the run continues without it") == 1
