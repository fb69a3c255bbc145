"""training/metrics.py: what is written can be read again."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation.report import read_history
from tests.metric_rows import write_steps
from training.metrics import MetricsLog, peak_memory_bytes, plot_loss, smooth
from training.trackers import start_tensorboard

KEYS = ["step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "peak_memory_bytes"]


def test_metrics_file_curve_and_plain_lines(tmp_path, capsys):
    log = MetricsLog(tmp_path / "deep/out", 4, [start_tensorboard(tmp_path / "deep/out", 0, None, {})])
    write_steps(log, [1, 2])
    # flushed at once: a run that is killed loses nothing
    assert len((tmp_path / "deep/out/metrics.jsonl").read_text().splitlines()) == 2
    write_steps(log, [3, 4], lr=torch.tensor(2e-5, dtype=torch.float64), grad_norm=torch.tensor(0.25))
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "deep/out/metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 4
    assert rows[1] == dict(zip(KEYS, [2, 1, 0.5, 1e-4, 0.5, 1234.5, 3 * 2**30], strict=True))
    assert (rows[3]["lr"], rows[3]["grad_norm"]) == (2e-5, 0.25)
    assert sorted(path.name for path in (tmp_path / "deep/out").iterdir()) == [
        "loss.png",
        "metrics.jsonl",
        "tensorboard",
    ]
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("step 2/4, epoch 1, loss 0.5000, lr 0.0001, 1,234 tokens/s, peak 3.00 GiB, ")
    assert lines[3].endswith(" 00:00 left")
    assert printed.err == ""  # no bar where there is no terminal


def test_numbers_that_are_not_finite_keep_the_lines_valid(tmp_path):
    log = MetricsLog(tmp_path, 2)
    write_steps(log, [1], loss=float("nan"), grad_norm=float("inf"))
    write_steps(log, [2], grad_norm=None)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(name)

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert (rows[0]["loss"], rows[0]["grad_norm"], rows[1]["loss"], rows[1]["grad_norm"]) == (None, None, 0.5, None)


def test_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, 3, [start_tensorboard(tmp_path, 0, None, {})])
    write_steps(log, [1, 2, 3])
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{key}" for key in KEYS if key != "step"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]


def test_a_rank_that_is_not_enabled_writes_nothing(tmp_path, capsys):
    log = MetricsLog(tmp_path / "out", 2, enabled=False)
    write_steps(log, [1, 2])
    log.close()
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_the_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = MetricsLog(tmp_path, 2)
    write_steps(log, [1, 2])
    log.close()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2" in printed.err and "loss 0.5000, 1,234 tokens/s" in printed.err


def test_rows_of_a_run_that_went_back(tmp_path):
    log = MetricsLog(tmp_path, 4, [start_tensorboard(tmp_path, 0, None, {})])
    write_steps(log, [1, 2, 3])
    log.close()
    log = MetricsLog(
        tmp_path, 4, [start_tensorboard(tmp_path, 1, None, {})], start_step=1
    )  # resumed from a checkpoint at step 1
    write_steps(log, [2, 4], loss=8.0)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "epo')
    rows = read_history(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 4.0), (4, 2.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 4]


def test_smooth():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    values = smooth([0.0, 1.0], weight=0.5)
    assert values == pytest.approx([0.0, (0.5 * 0.0 * 0.5 + 0.5 * 1.0) / 0.75])
    assert smooth([]) == []


def test_loss_curve(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    metrics.write_text("")
    assert not plot_loss(metrics, png)
    metrics.write_text('{"step": 1, "loss": null}\n')
    assert not plot_loss(metrics, png)
    assert not png.exists()
    metrics.write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 100)))
    assert plot_loss(metrics, png)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == ["loss.png"]
    pixels = imread(png)
    assert pixels.shape == (600, 960, 4)
    assert np.unique(pixels.reshape(-1, 4), axis=0).shape[0] > 10  # something is drawn


def test_peak_memory_is_in_bytes():
    peak = peak_memory_bytes()
    if torch.cuda.is_available():
        assert peak == torch.cuda.max_memory_allocated()
    elif sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        assert peak == pytest.approx(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024, rel=0.05)


@pytest.mark.gpu
def test_peak_memory_of_a_gpu():
    block = torch.ones(2**20, device="cuda")
    assert peak_memory_bytes() >= block.numel() * 4


def test_a_line_that_a_killed_run_left_unfinished(tmp_path):
    numbers = {"epoch": 1, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1.0, "peak_memory_bytes": 1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, **numbers}) + '\n{"step": 2, "ep')
    log = MetricsLog(tmp_path, 3)
    for step in (2, 3):
        log.write(step=step, **numbers)
    log.close()
    assert [row["step"] for row in read_history(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_lines_that_no_run_has_written(tmp_path):
    numbers = {"epoch": 1, "loss": 1.0}
    lines = [json.dumps({"step": 1, **numbers}), "[1]", "3", '{"loss": 2.0}', '{"step": "2"}', "{", "", "\xff\xfe"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="latin-1")
    assert read_history(tmp_path / "metrics.jsonl") == [{"step": 1, **numbers}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n{"step": 2}\n')
    assert not plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
