"""A rank that dies or fails takes the run down: soon, with its own error once, and with no traceback of the others."""

import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest

from parallel.lost_peer import lost_peer
from tests import launch


def start_endless(output, train_type="lora", ds_file="ds_zero2_no_offload.json", **changes):
    """A two-rank run that would not end, once it has done three steps, and its ranks."""
    options = launch.train_options("glm2", train_type, output, num_train_epochs=10000, ds_file=ds_file, **changes)
    process = subprocess.Popen(
        ["deepspeed", "--num_gpus", "2", "--master_port", str(launch.free_port()), "train.py", *launch.flags(options)],
        cwd=launch.REPOSITORY,
        env=launch.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    give_up = time.time() + 120
    while not (output / "metrics.jsonl").exists() or len(launch.metrics(output)) < 3:
        assert time.time() < give_up and process.poll() is None, "training did not get that far"
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    of_rank = {int(one.environ()["RANK"]): one for one in children if "RANK" in one.environ()}
    return process, children, of_rank


def end_of(process, children):
    """Output without the launcher's own lines, and seconds until every process of the run was gone."""
    started = time.time()
    _, alive = psutil.wait_procs(children, timeout=120)
    for one in alive:
        one.kill()
    assert not alive
    lines = process.communicate(timeout=60)[0].splitlines()
    seconds = time.time() - started
    return [line for line in lines if "[launch.py:" not in line and "[real_accelerator.py:" not in line], seconds


@pytest.mark.slow
def test_a_rank_is_killed(tmp_path):
    """tests/end_to_end/test_two_hosts.py kills rank 1, under ZeRO-2."""
    killed = 0
    process, children, of_rank = start_endless(tmp_path / "output", "all", "ds_zero3_offload.json")
    of_rank[killed].kill()
    lines, seconds = end_of(process, children)
    assert process.returncode != 0 and seconds < 60
    assert not [line for line in lines if "Traceback" in line], lines
    (sentence,) = [line for line in lines if line.startswith("error:")]
    assert f"rank {1 - killed} cannot continue, rank {killed} is gone" in sentence
    assert lines[-1] == sentence


@pytest.mark.slow
def test_a_rank_is_frozen(tmp_path):
    """It is named after --timeout_minutes; DeepSpeed's launcher then grants it half a minute before it ends it.

    tests/test_watchdog.py freezes rank 1 too.
    """
    frozen = 0
    process, children, of_rank = start_endless(tmp_path / "output", timeout_minutes=0.25)
    time.sleep(3)  # two reports: the other rank has heard of a step
    of_rank[frozen].suspend()
    lines, seconds = end_of(process, children)
    assert process.returncode != 0 and seconds < 15 + 60
    (sentence,) = [line for line in lines if line.startswith("error:")]
    assert f"have waited 0.25 minutes for rank {frozen}: rank {frozen} (process {of_rank[frozen].pid} on" in sentence
    assert "has sent no report" in sentence and "last at 'step " in sentence
    assert not [line for line in lines if "Traceback" in line], lines


@pytest.mark.slow
def test_the_traceback_of_one_rank_stays(tmp_path):
    """Rank 1 alone can open no more files: its own error is shown, once."""
    process, children, of_rank = start_endless(tmp_path / "output")
    _, hard = of_rank[1].rlimit(resource.RLIMIT_NOFILE)
    of_rank[1].rlimit(resource.RLIMIT_NOFILE, (3, hard))
    lines, seconds = end_of(process, children)
    assert process.returncode != 0 and seconds < 60
    text = "\n".join(lines)
    assert text.count("Traceback (most recent call last)") == 1, text
    assert text.count("OSError: [Errno 24] Too many open files") == 1
    assert text.count("rank 0 cannot continue, rank 1 is gone: see its own message") == 1


@pytest.mark.slow
def test_a_user_error_of_one_rank_alone_is_said():
    """Where the first rank of a machine says it too, the launcher ends this one before it does."""
    source = (
        "import errors\ndef main():\n    print(flush=True)\n    raise errors.UserError('as it is')\n"
        "errors.run_program(main)"
    )
    alone, ended = (
        subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=launch.REPOSITORY,
            env=launch.environment(LOCAL_RANK="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    ended.stdout.readline()
    time.sleep(1)
    ended.terminate()
    assert ended.communicate()[1] == "" and ended.returncode == -signal.SIGTERM
    assert alone.communicate(timeout=60)[1] == "error: as it is\n" and alone.returncode == 2


def raised(first, then):
    """`then`, as raised while `first` was handled."""
    then.__context__ = first
    return then


CLOSED = "[/pytorch/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:17834: Connection reset by peer"


def test_only_a_lost_peer_is_told_in_a_sentence():
    assert lost_peer(RuntimeError(CLOSED))
    assert lost_peer(
        RuntimeError(CLOSED.replace("Read error [127.0.0.1]:17834: Connection reset", "Connection closed"))
    )
    assert not lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not lost_peer(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"))
    assert not lost_peer(raised(KeyError("a bug"), RuntimeError(CLOSED)))
    assert lost_peer(raised(RuntimeError(CLOSED), RuntimeError(CLOSED)))
