"""A rank that dies or fails takes the run down: soon, with its own error once, and with no traceback of the others."""

import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from parallel.lost_peer import lost_peer
from tests import launch


def endless(output, train_type="lora", **changes):
    """The command of a run that would not end."""
    options = launch.train_options("glm2", train_type, output, num_train_epochs=10000, **changes)
    return ["train.py", *launch.flags(options)]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_is_killed(killed, tmp_path):
    run = launch.start_fork(endless(tmp_path / "output", "all", ds_file="ds_zero3_offload.json"), 2)
    launch.wait_for_step(tmp_path / "output", 3, run.has_ended)
    run.processes[killed].kill()
    result = run.finish(60)
    assert result.returncode == -signal.SIGKILL
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    (sentence,) = [line for line in lines if line.startswith("error:")]
    assert f"rank {1 - killed} cannot continue, rank {killed} is gone" in sentence
    assert lines[-1] == sentence


@pytest.mark.slow
def test_a_rank_is_frozen(tmp_path):
    """It is named after --timeout_minutes; a launcher then ends it. tests/test_watchdog.py freezes rank 1 too."""
    frozen = 0
    run = launch.start_fork(endless(tmp_path / "output", timeout_minutes=0.25), 2)
    launch.wait_for_step(tmp_path / "output", 3, run.has_ended)
    time.sleep(3)  # two reports: the other rank has heard of a step
    run.processes[frozen].suspend()
    launch.wait_for(run.has_ended, lambda: False, 15 + 30)
    run.processes[frozen].kill()
    result = run.finish(60)
    assert result.returncode != 0
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    pid = run.processes[frozen].pid
    assert f"have waited 0.25 minutes for rank {frozen}: rank {frozen} (process {pid} on" in sentence
    assert "has sent no report" in sentence and "last at 'step " in sentence
    assert "Traceback" not in result.stderr, result.stderr


FAILING = """
import sys
sys.path.insert(0, {root!r})
import torch
import torch.distributed as dist
from errors import run_program
from parallel import ranks
from parallel.lost_peer import explain_lost_peer

@explain_lost_peer
def main():
    ranks.start_ranks()
    if ranks.rank() == {failing}:
        raise OSError("a bug")
    dist.all_reduce(torch.ones(1))

run_program(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_the_traceback_of_one_rank_stays(failing, tmp_path):
    """Its own error is shown, once; the other rank, whose collective fails, says a sentence."""
    program = tmp_path / "program.py"
    program.write_text(FAILING.format(root=str(launch.REPOSITORY), failing=failing))
    result = launch.fork([program], 2)
    assert result.returncode != 0
    assert result.stderr.count("Traceback (most recent call last)") == 1, result.stderr
    assert result.stderr.count("OSError: a bug\n") == 1
    sentence = f"rank {1 - failing} cannot continue, rank {failing} is gone: see the messages above"
    assert result.stderr.count("error: ") == result.stderr.count(sentence) == 1


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
    assert alone.communicate(timeout=200)[1] == "error: as it is\n" and alone.returncode == 2


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
    assert lost_peer(dist.DistNetworkError("Broken pipe"))  # of torch's store
    assert lost_peer(dist.DistBackendError("store->get('0') got error: Failed to recv, got 0 bytes"))
    assert not lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not lost_peer(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"))
    assert not lost_peer(raised(KeyError("a bug"), RuntimeError(CLOSED)))
    assert lost_peer(raised(RuntimeError(CLOSED), RuntimeError(CLOSED)))
