"""Stopping a run: a resume state that takes longer than a launcher waits for, and an evaluation in between."""

import json
import os
import re
import signal
import time

import psutil
import pytest

from checkpoints.resume import read_state, state_directories
from parallel.stop import describe_slow_state, describe_stop
from tests import launch


def slow_options(output, **changes):
    """Options of an endless run on two ranks, which writes a state of 12 files every 10 steps."""
    options = launch.train_options("glm2", "lora", output, num_train_epochs=2000, save_state_step=10, **changes)
    options["train_path"] = launch.REPOSITORY / "data" / "spo_1.json"
    return options


def slow_disk(slow_file, seconds):
    """The environment of tests/slow_save.py."""
    return {"SLOW_SECONDS": seconds, "SLOW_FILE": str(slow_file), "GRACE": "2"}


def await_state(output, has_ended):
    """Wait until the run has written a state."""
    launch.wait_for(lambda: state_directories(output / "state"), has_ended)


@pytest.mark.slow
def test_ctrl_c_kills_a_save_that_takes_too_long(tmp_path):
    """The launcher's 30 seconds end before the state is written; the run resumes from the whole state before."""
    output, slow_file = tmp_path / "output", tmp_path / "slow"
    options = slow_options(output)
    process = launch.start_launched("tests/slow_save.py", options, **slow_disk(slow_file, "0.1 5"))
    await_state(output, lambda: process.poll() is not None)
    slow_file.touch()
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=200)[0]  # until the last process of the run has closed it
    assert "stopped by" not in text, text
    assert not psutil.wait_procs(family, timeout=60)[1]
    (state,) = state_directories(output / "state")
    assert read_state(state).position.step == 10
    assert re.search(rf"about \d s: if the signal came through a launcher, .* the run resumes from {state}", text), text
    stopped = launch.metrics(output)[-1]["step"]
    assert [path.name for path in (output / "state").glob(".*.tmp")] == [f".step-{stopped}.tmp"]
    again = launch.train({**options, "max_steps": stopped}, num_ranks=2)
    assert "after step 10" in again.stdout
    assert {path.name for path in (output / "state").iterdir()} == {f"step-{stopped}", "step-10"}


@pytest.mark.slow
def test_a_signal_to_the_rank_has_no_limit_of_time(tmp_path):
    """The state takes longer than the launcher would wait, and than the ranks may wait for one of them."""
    output, slow_file = tmp_path / "output", tmp_path / "slow"
    words = ["tests/slow_save.py", *launch.flags(slow_options(output, timeout_minutes=0.5))]
    run = launch.start_fork(words, 2, **slow_disk(slow_file, "0.1 3.2"))
    await_state(output, run.has_ended)
    slow_file.touch()
    run.processes[0].terminate()
    started = time.time()
    text = run.finish(200).stdout
    assert "stopped by SIGTERM; run the same command again to resume" in text, text
    assert time.time() - started > 30 and "error:" not in text
    assert re.search(rf"to stop: kill -TERM {run.processes[0].pid} on \S+ \(rank 0\)", text)
    state = state_directories(output / "state")[0]
    assert read_state(state).position.step == launch.metrics(output)[-1]["step"] > 10


def start_evaluating(output, **changes):
    """(options of a run of four steps that evaluates for seconds after step 2, that run on two ranks)."""
    records = (launch.REPOSITORY / "data" / "spo_0.json").read_text(encoding="utf-8").splitlines()[:600]
    dev_path = output.parent / "dev.jsonl"
    dev_path.write_text("\n".join(records), encoding="utf-8")
    options = launch.train_options("glm2", "lora", output, max_steps=4, num_train_epochs=2, eval_step=2, **changes)
    options |= {"dev_path": dev_path, "save_model_step": 2, "lora_dropout": 0.1}
    return options, launch.start_fork(["train.py", *launch.flags(options)], 2)


def rows_of(output):
    return [json.loads(line) for line in (output / "evaluation.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_evaluation_is_cut_short_and_made_when_the_run_resumes(tmp_path):
    """The state is written at once; evaluation and checkpoint of the step are those of a run that never stopped."""
    alone, output = tmp_path / "alone", tmp_path / "output"
    _, run = start_evaluating(alone)
    result = run.finish(200)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows_of(alone)] == [2, 3, 4]  # 3 ends an epoch

    options, run = start_evaluating(output)
    launch.wait_for_step(output, 2, run.has_ended)
    run.processes[1].terminate()
    result = run.finish(200)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    (state,) = state_directories(output / "state")
    assert read_state(state).position.step == 2 and read_state(state).position.pending
    assert not rows_of(output) and not list(output.glob("epoch-*")) and not (output / "best").exists()

    launch.train(options, num_ranks=2)
    assert rows_of(output) == rows_of(alone) and launch.losses(output) == launch.losses(alone)
    for name in ("epoch-1-step-2", "epoch-1-step-3", "epoch-2-step-4", "best"):
        record, expected = (
            json.loads((directory / name / "checkpoint.json").read_text()) for directory in (output, alone)
        )
        assert record["step"] == expected["step"]
    assert not any(read_state(state).position.pending for state in state_directories(output / "state"))


@pytest.mark.slow
def test_the_evaluation_before_training_is_cut_short(tmp_path):
    output = tmp_path / "output"
    options, run = start_evaluating(output, probe_path=tmp_path / "dev.jsonl")
    launch.wait_for((output / "evaluation.jsonl").exists, run.has_ended)
    time.sleep(0.5)
    run.processes[0].terminate()
    result = run.finish(200)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert not rows_of(output) and not launch.metrics(output) and not list(output.glob("state/step-*"))
    launch.train({**options, "max_steps": 1}, num_ranks=2)
    assert [row["step"] for row in rows_of(output)] == [0, 1]


def test_the_launcher_is_named_where_it_would_not_wait():
    (line,) = describe_stop(10**9)
    assert "a resume state (1.00 GB)" in line
    _, warning = describe_stop(75 * 10**9)
    assert "do not signal the launcher or press Ctrl-C" in warning and "writes 2.5 GB/s" in warning
    assert "took 95 s" in describe_slow_state(95.2)
