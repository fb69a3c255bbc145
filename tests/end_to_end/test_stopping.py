"""Stopping a run whose resume state takes longer to write than a launcher waits for."""

import os
import re
import signal
import subprocess
import time

import psutil
import pytest

from tests import launch
from training.resume import read_state, state_directories
from training.stop import describe_slow_state, describe_stop


def start_slow(output, slow_file, seconds, **changes):
    """Two ranks under DeepSpeed's launcher, once they have written a state of 12 files, and the options."""
    options = launch.train_options("glm2", "lora", output, num_train_epochs=2000, save_state_step=30, **changes)
    options["train_path"] = launch.REPOSITORY / "data" / "spo_1.json"
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", str(launch.free_port())]
    process = subprocess.Popen(
        [*launcher, "tests/slow_save.py", *launch.flags(options)],
        cwd=launch.REPOSITORY,
        env=launch.environment(SLOW_SECONDS=seconds, SLOW_FILE=str(slow_file), GRACE="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    give_up = time.time() + 400
    while not state_directories(output / "state"):
        assert time.time() < give_up and process.poll() is None, "training did not get that far"
        time.sleep(0.05)
    slow_file.touch()
    return process, options


@pytest.mark.slow
def test_ctrl_c_kills_a_save_that_takes_too_long(tmp_path):
    """The launcher's 30 seconds end before the state is written; the run resumes from the whole state before."""
    output = tmp_path / "output"
    process, options = start_slow(output, tmp_path / "slow", "0.3 5")
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=200)[0]  # until the last process of the run has closed it
    assert "stopped by" not in text, text
    assert not psutil.wait_procs(family, timeout=60)[1]
    (state,) = state_directories(output / "state")
    assert read_state(state)["step"] == 30
    assert re.search(rf"about \d s: if the signal came through a launcher, .* the run resumes from {state}", text), text
    stopped = launch.metrics(output)[-1]["step"]
    assert [path.name for path in (output / "state").glob(".*.tmp")] == [f".step-{stopped}.tmp"]
    again = launch.train({**options, "max_steps": stopped}, num_ranks=2)
    assert "after step 30" in again.stdout
    assert {path.name for path in (output / "state").iterdir()} == {f"step-{stopped}", "step-30"}


@pytest.mark.slow
def test_a_signal_to_the_rank_has_no_limit_of_time(tmp_path):
    """The state takes longer than the launcher would wait, and than the ranks may wait for one of them."""
    output = tmp_path / "output"
    process, _ = start_slow(output, tmp_path / "slow", "0.3 4", timeout_minutes=0.5)
    family = psutil.Process(process.pid).children(recursive=True)
    (rank,) = [one for one in family if one.environ().get("RANK") == "0"]
    rank.terminate()
    started = time.time()
    text = process.communicate(timeout=200)[0]
    assert "stopped by SIGTERM; the same command goes on from here" in text, text
    assert time.time() - started > 30 and "error:" not in text
    assert re.search(rf"to stop: kill -TERM {rank.pid} on \S+ \(rank 0\)", text)
    state = state_directories(output / "state")[0]
    assert read_state(state)["step"] == launch.metrics(output)[-1]["step"] > 30


def test_the_launcher_is_named_where_it_would_not_wait():
    (line,) = describe_stop(10**9)
    assert "a resume state (1.00 GB)" in line
    _, warning = describe_stop(75 * 10**9)
    assert "do not signal the launcher or press Ctrl-C" in warning and "writes 2.5 GB/s" in warning
    assert "took 95 s" in describe_slow_state(95.2)
