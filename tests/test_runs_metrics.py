"""runs/metrics.py: new points and evaluations of runs that write them at this moment."""

import math

import pytest

from evaluation.report import append_row
from runs import metrics
from runs.places import Root
from tests.metric_rows import log_steps


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").mkdir()
    return Root.at(str(tmp_path))


def changes(root, at, columns="loss", mark=""):
    """What the run "a" has written since an offset and a mark."""
    return metrics.changes_of(root, "a", at, mark, ["step", *columns.split(",")])


def points(answer):
    return list(zip(answer["columns"]["step"], answer["columns"]["loss"], strict=True))


def test_points_are_read_from_an_offset(root):
    log_steps(root.path / "a", range(1, 4))
    first = changes(root, at=0, columns="loss")
    assert points(first) == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert first["begins"] and not first["more"] and first["newest"]["tokens_per_second"] == 1234.5
    log_steps(root.path / "a", [4])
    second = changes(root, at=first["at"], columns="lr,no_such")
    assert second["columns"] == {"step": [4], "lr": [1e-4], "no_such": [None]} and not second["begins"]
    third = changes(root, at=second["at"])
    assert points(third) == [] and third["at"] == second["at"] and third["newest"] is None


def test_a_line_that_is_being_written_waits(root):
    log_steps(root.path / "a", [1, 2])
    path = root.path / "a/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo')
    torn = changes(root, at=0)
    assert torn["at"] == len(whole) and not torn["more"]
    log_steps(root.path / "a", [2, 3], loss=9.0)  # a resumed run ends the torn line
    resumed = changes(root, at=torn["at"])
    assert points(resumed) == [(2, 4.5), (3, 3.0)]  # the page drops its own step 2
    assert points(changes(root, at=0)) == [(1, 1.0), (2, 4.5), (3, 3.0)]


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "loss": 2}\n', b'{"step": 1,    "lr": 1, "loss": 2}\n' * 9])
def test_another_file_begins_again(root, content):
    log_steps(root.path / "a", range(1, 3))
    answer = changes(root, at=0)
    (root.path / "a/metrics.jsonl").write_bytes(content)
    again = changes(root, at=answer["at"])
    assert again["begins"] and again["at"] == len(content) and points(again) == [(1, 2)][: len(content)]


def test_a_long_file_comes_in_parts(root, monkeypatch):
    monkeypatch.setattr(metrics, "SLICE", 1000)
    log_steps(root.path / "a", range(1, 40))
    at, more, seen = 0, True, []
    while more:
        answer = changes(root, at=at)
        at, more, seen = answer["at"], answer["more"], seen + answer["columns"]["step"]
    assert seen == list(range(1, 40))


def test_only_finite_numbers_are_sent(root):
    values = ["NaN", "Infinity", "1e999", "9" * 400, "true", '"1"', "null", "[1]", "123456789", "0.123456789"]
    lines = [f'{{"step": {step}, "loss": {value}}}' for step, value in enumerate(values)]
    lines += ["[" * 100000, "5", '{"step": null}', "", "\udc80"]
    (root.path / "a/metrics.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    answer = changes(root, at=0)
    assert answer["columns"]["loss"] == [None] * 8 + [123456789, 0.123457]


def test_evaluations_are_sent_when_they_change(root):
    path = root.path / "a/evaluation.jsonl"
    append_row(path, {"step": 2, "epoch": 1, "dev_loss": 0.7, "triples_f1": math.nan})
    first = changes(root, at=0, mark="")
    assert first["evaluations"]["rows"] == [{"step": 2, "epoch": 1, "dev_loss": 0.7, "triples_f1": None}]
    same = changes(root, at=0, mark=first["evaluations"]["mark"])
    assert same["evaluations"] is None
    append_row(path, {"step": 1, "epoch": 1, "dev_loss": 0.9})  # resumed
    changed = changes(root, at=0, mark=first["evaluations"]["mark"])
    assert [row["step"] for row in changed["evaluations"]["rows"]] == [1]
