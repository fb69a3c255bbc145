"""runs/models.py: the models below a root, and what a run's checkpoint was trained on."""

import json

import pytest

from runs.models import find_models, links_of
from runs.places import Root
from tests.run_jobs import make_run


@pytest.fixture
def root(tmp_path):
    """A base, and directories that are none."""
    (tmp_path / "root" / "some" / "code").mkdir(parents=True)
    (tmp_path / "root" / "some" / "code" / "config.json").write_text("{}")
    make_model(tmp_path / "root" / "models" / "base")
    make_model(tmp_path / "root" / ".hidden")
    make_model(tmp_path / "outside")
    return Root.at(str(tmp_path / "root"))


def make_model(directory, record=None):
    """A directory with a config and weights, and a record as checkpoints have it."""
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_text("{}")
    if record is not None:
        (directory / "checkpoint.json").write_text(json.dumps(record))
    return directory


def test_models_and_the_checkpoints_of_runs(root):
    run = make_run(root.path / "a" / "output")
    assert links_of(root, run) == {"checkpoint": "", "base": ""}
    base = str(root.path / "models" / "base")
    for step in (9, 10):
        make_model(run / f"epoch-1-step-{step}", {"base": {"path": base}})
    newest = {"checkpoint": "a/output/epoch-1-step-10", "base": "models/base"}
    assert links_of(root, run) == newest
    make_model(run / "best", {"base": {"path": base}})
    assert links_of(root, run) == {**newest, "checkpoint": "a/output/best"}
    make_model(run / "state" / "step-3")
    make_model(run / "epoch-1-step-11.tmp")
    found = {model.pop("path"): model for model in find_models(root)}
    checkpoint = {"kind": "checkpoint", "base": "models/base"}
    names = ["a/output/best", "a/output/epoch-1-step-9", "a/output/epoch-1-step-10"]
    assert found == {"models/base": {"kind": "model", "base": ""}, **dict.fromkeys(names, checkpoint)}


@pytest.mark.parametrize(
    "record",
    [{}, [], {"base": 1}, {"base": {"path": 1}}, {"base": {"path": "models/base"}}, {"base": {"path": "/\x00"}}],
)
def test_a_record_without_a_base_that_can_be_used(root, record):
    run = make_run(root.path / "a")
    make_model(run / "best", record)
    assert links_of(root, run) == {"checkpoint": "a/best", "base": ""}


def test_a_base_outside_or_gone(root):
    run = make_run(root.path / "a")
    make_model(run / "epoch-1-step-1", {"base": {"path": str(root.path.parent / "outside")}})
    make_model(run / "best", {"base": {"path": str(root.path / "gone")}})
    assert links_of(root, run)["base"] == ""
    assert [model["base"] for model in find_models(root)] == ["", "", ""]
