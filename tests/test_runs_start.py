"""runs/start.py and runs/config.py: how runs are resumed, and which devices a run uses."""

import os

import pytest

from runs.config import values_again
from runs.errors import Conflict
from runs.job import kill
from runs.places import REPOSITORY, Root
from runs.start import check_start, devices_of, launch_again, occupied
from runs.states import Run
from tests.launch import GOLDEN
from tests.run_jobs import SLEEP, make_run, start_job


def test_the_values_of_a_resumed_run(tmp_path):
    """run.yaml has paths from the repository; the run lies elsewhere now."""
    base = os.path.relpath(GOLDEN / "glm2" / "base", REPOSITORY)
    flags = {"lora_dim": 9, "lora_module_name": ["query_key_value", "dense"], "ds_file": "ds_zero3_offload.json"}
    run = make_run(tmp_path / "moved", model_name_or_path=base, output_dir="before", gpu_memory=24, **flags)
    values = {
        "model_name_or_path": str(REPOSITORY / base),
        "lora_dim": "9",
        "lora_module_name": "query_key_value,dense",
        "ds_file": "ds_zero3_offload.json",
        "output_dir": "moved",
    }
    assert values_again(Root.at(str(tmp_path)), run) == values
    (run / "state" / "step-3").mkdir(parents=True)
    assert values_again(Root.at(str(tmp_path)), run) == {**values, "resume_from_checkpoint": "auto"}


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, {"devices": [], "ranks": 2}),
        ({"devices": ["3", "1"]}, {"devices": [1, 3], "ranks": 2}),
        ({"devices": ["GPU-1f2e"]}, "used GPU-1f2e: resume it in a terminal"),
        ({"ranks": 4}, "several machines"),
        ({"cwd": "/elsewhere"}, "started in /elsewhere: resume it there"),
    ],
)
def test_how_a_run_of_a_terminal_is_resumed(tmp_path, changes, result):
    facts = {"pid": 1, "members": [{}, {}], "ranks": 2, "devices": ["cpu"], "cwd": str(REPOSITORY), **changes}
    run = Run.at(make_run(tmp_path / "a", facts))
    if isinstance(result, str):
        with pytest.raises(Conflict, match=result):
            launch_again(run)
    else:
        assert launch_again(run) == result


@pytest.mark.parametrize(
    ("chosen", "of_server", "installed", "used"),
    [
        ("3,1", "0", 8, ["3", "1"]),
        (None, None, 2, ["0", "1"]),
        (None, None, 0, ["cpu"]),
        (None, "4, 5", 8, ["4", "5"]),
        (None, "", 2, ["cpu"]),
    ],
)
def test_the_devices_that_a_run_waits_for(tmp_path, monkeypatch, chosen, of_server, installed, used):
    """Without a choice, those that deepspeed finds. Here a program prints what nvidia-smi would."""
    program = tmp_path / "nvidia-smi"
    lines = "".join(f"echo '{gpu}, NVIDIA H200, 1, 2, 3, 4, 5'\n" for gpu in range(installed))
    program.write_text(f"#!/bin/sh\n{lines}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if of_server is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", of_server)
    assert devices_of({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}) == used


def test_an_output_directory_that_is_in_use(tmp_path):
    root = Root.at(str(tmp_path))
    ended = {"created": 1.0, "outcome": "finished"}
    make_run(tmp_path / "done", process=ended, max_steps=9, num_train_epochs=2.0)
    make_run(tmp_path / "stopped", process={**ended, "outcome": "stopped"})

    def problems(directory, **values):
        return [problem["text"] for problem in occupied(root, tmp_path / directory, values)]

    same = {"max_steps": "9", "num_train_epochs": "2"}
    assert problems("new") == problems("stopped") == problems("done", **{**same, "max_steps": "12"}) == []
    assert problems("done", **same, resume_from_checkpoint="none") == []
    [text] = problems("done", **same)
    assert text.startswith("--output_dir: done has a finished run: choose another directory")
    start_job(tmp_path / "live", SLEEP)
    [text] = problems("live", resume_from_checkpoint="none")
    assert "live has a run that is" in text and text.endswith("stop it in the Watch tab.")
    kill(tmp_path / "live")


@pytest.mark.parametrize(
    ("name", "reason"), [("base", "is a model"), (".", "cannot name a run"), ("a/state/b", "cannot name a run")]
)
def test_output_directories_that_cannot_be_a_run(tmp_path, name, reason):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    problems = check_start(Root.at(str(tmp_path)), {"output_dir": name}, {}).problems
    [text] = [problem["text"] for problem in problems if problem["field"] == "output_dir"]
    assert text.startswith(f"--output_dir: {name} {reason}: choose another directory")
