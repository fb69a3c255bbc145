"""runs/states.py: runs that are found below a root, and the state of each."""

import os
import signal
import time

import pytest

from files import write_json
from processes import identity
from runs import states
from runs.errors import Conflict
from runs.job import kill, locked, stop
from runs.states import Run, find, summary
from tests.run_jobs import make_run, state_of


def test_where_runs_are_found(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("output", "a/b/c", "output/again")]
    for name in (".trash/x", "output/state/x", "output/epoch-1-step-3", "output/tensorboard", "venv/x", "conda/x"):
        make_run(tmp_path / name)
    (tmp_path / "conda" / "conda-meta").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "only-config").mkdir()
    (tmp_path / "only-config" / "run.yaml").touch()
    assert sorted(find(tmp_path)) == sorted(runs)


def test_a_huge_tree_is_not_searched_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "MOST_ENTRIES", 20)
    near = make_run(tmp_path / "near")
    for i in range(30):
        (tmp_path / "deep" / str(i)).mkdir(parents=True)
    make_run(tmp_path / "deep" / "1" / "far")
    assert list(find(tmp_path)) == [near]


def test_a_run_of_a_terminal(tmp_path, sleeper):
    now = time.time()
    facts = {**identity(sleeper.pid), "devices": ["1"], "total_steps": 40, "start_step": 10, "outcome": None}
    run = make_run(tmp_path / "a", {**facts, "ready": now - 10}, [{"step": 12, "loss": 2.5}])
    seen = summary(Run.at(run))
    assert (seen["state"], seen["step"], seen["total_steps"], seen["loss"]) == ("running", 12, 40, 2.5)
    assert 100 < seen["seconds_left"] < 145 and seen["stoppable"] and seen["train_type"] == "lora"
    assert Run.at(run).devices == {"1"}
    os.utime(run / "metrics.jsonl", (now - 20, now - 20))  # the row is of the run that this one resumes
    assert summary(Run.at(run))["step"] == 10
    stop(run)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert state_of(run) == "stopped" and not summary(Run.at(run))["stoppable"]


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed"])
def test_how_a_run_of_a_terminal_ended(tmp_path, sleeper, outcome):
    facts = {**identity(sleeper.pid), "ready": 1.0, "outcome": None if outcome == "failed" else outcome}
    run = make_run(tmp_path / "a", facts)
    assert state_of(run) == "running"
    sleeper.kill()
    sleeper.wait()
    assert state_of(run) == outcome


def test_an_id_of_another_process_and_another_host(tmp_path, sleeper):
    facts = {**identity(sleeper.pid), "ready": 1.0, "outcome": None}
    run = make_run(tmp_path / "a", {**facts, "since_boot": facts["since_boot"] - 100})
    assert state_of(run) == "failed"
    stop(run)
    kill(run)
    assert sleeper.poll() is None
    write_json(run / "process.json", {**facts, "host": "elsewhere"})
    assert state_of(run) == "unknown" and not summary(Run.at(run))["stoppable"]
    with pytest.raises(Conflict, match="runs on elsewhere: stop it there"), locked(run):
        pass


def test_files_that_are_torn_or_nonsense(tmp_path):
    run = make_run(tmp_path / "a", rows=[{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    seen = summary(Run.at(run))
    assert (seen["step"], seen["loss"], seen["state"]) == (2, None, "unknown")
    for name in ("process.json", "job.json", "stop.json", "run.yaml"):
        for text in (
            "",
            "{",
            "[1]",
            '{"pid": [], "queued": "x", "created": {}}',
            '{"devices": 3, "pid": true}',
            "\x00",
        ):
            (run / name).write_text(text)
            assert summary(Run.at(run))["step"] == 2
