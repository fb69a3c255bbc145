"""parallel/watchdog.py: exactly the rank that the others wait for is named, whatever stopped it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from parallel.watchdog import verdict
from tests import launch

TIMEOUT = 3.0  # seconds


def rank_main(scenario: str) -> None:
    """One of two ranks: some steps with a collective in each; at step 3 something happens to one of them."""
    import torch
    import torch.distributed as dist

    from parallel.network import Peer, this_machine
    from parallel.watchdog import Watchdog

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pids: list = [None, None]
    dist.all_gather_object(pids, os.getpid())
    watchdog = Watchdog(
        TIMEOUT, [Peer(number, number, "here", this_machine(), "127.0.0.1", "cpu", pids[number]) for number in (0, 1)]
    )
    failure, late = scenario.split("-")
    for step in range(1, 7):
        watchdog.at(f"step {step}: reading data")
        if step == 3 and rank == int(late):
            print("here", flush=True)
            if failure == "stop":
                time.sleep(TIMEOUT / 4)  # the other rank receives its last position
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep({"sleep": 600, "slow": TIMEOUT / 2, "stop": 0, "pause": 0, "inside": 0}[failure])
            if failure == "pause":  # stopped for longer than the timeout, with everyone else
                time.sleep(0.1)
        watchdog.at(f"step {step}: loss of all ranks")
        if step == 3 and failure == "inside" and rank == int(late):
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
    watchdog.close()
    dist.barrier()
    dist.destroy_process_group()


def start(scenario):
    """Two ranks, as a launcher would start them."""
    port = str(launch.free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_watchdog", scenario],
            cwd=launch.REPOSITORY,
            env=launch.environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def outcome(processes, frozen=None):
    """Codes and error output of both ranks, once they have ended; a frozen one is ended as a launcher would."""
    try:
        for rank, process in enumerate(processes):
            if rank != frozen:
                process.wait(timeout=60)
    finally:
        for process in processes:
            process.kill()
    errors = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (
            "sleep-1",
            ["for rank 1:", "is still at 'step 3: reading data' (tests/test_watchdog.py", "rank 0 is at 'step 3: loss"],
        ),
        (
            "inside-0",
            ["for rank 0:", "rank 0 (process", "is at 'step 3: loss of all ranks'", "rank 1 waits at", "all_reduce"],
        ),
    ],
)
def test_a_rank_that_does_not_come(scenario, words):
    codes, errors = outcome(start(scenario))
    assert codes[0] == 1 and codes[1] != 0
    said = "".join(errors).splitlines()
    sentences = [line for line in said if line.startswith("error:")]
    assert len(sentences) == 1 and all(word in sentences[0] for word in words), said
    assert "--timeout_minutes 0.05" in sentences[0]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen(frozen):
    processes = start(f"stop-{frozen}")
    started = time.time()
    codes, errors = outcome(processes, frozen)
    assert codes[1 - frozen] == 1 and codes[frozen] == -signal.SIGKILL
    assert time.time() - started < 30
    (sentence,) = errors[1 - frozen].splitlines()
    assert f"for rank {frozen}: rank {frozen} (process {processes[frozen].pid} on" in sentence
    assert "has sent no report for" in sentence and "last at 'step 3: reading data'" in sentence


@pytest.mark.slow
def test_slow_is_not_late():
    codes, errors = outcome(start("slow-1"))
    assert codes == [0, 0] and errors == ["", ""]


@pytest.mark.slow
def test_a_run_that_was_stopped_as_a_whole_goes_on():
    """Ctrl-Z and fg: nobody has waited in the meantime."""
    processes = start("pause-1")
    processes[1].stdout.readline()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * TIMEOUT)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    codes, errors = outcome(processes)
    assert codes == [0, 0] and errors == ["", ""]


def report(count, mark, waits, closed=False):
    return {"count": count, "mark": mark, "place": "train.py:1 train", "waits": waits, "closed": closed}


NAMES = [f"process {rank} on machine" for rank in range(3)]
FRESH = dict.fromkeys(range(3), 1.0)


def test_silence_counts_more_than_being_behind():
    reports = {0: report(7, "b", True), 1: report(6, "a", False), 2: report(7, "b", True)}
    assert "for rank 1: rank 1 (process 1 on machine) is still at 'a'" in verdict(reports, FRESH, NAMES, 60)
    said = verdict(reports, {**FRESH, 2: 50.4}, NAMES, 60)
    assert "1 minutes for rank 2: rank 2 (process 2 on machine) has sent no report for 50 s, last at 'b'" in said


def test_two_are_late():
    reports = {0: report(7, "b", True), 1: report(6, "a", False), 2: report(5, "z", False)}
    said = verdict(reports, FRESH, NAMES, 1800)
    assert "30 minutes for rank 1 and 2: rank 1" in said and "; rank 2" in said


def test_nobody_is_behind():
    reports = {rank: report(7, "b", True) for rank in range(3)}
    said = verdict(reports, FRESH, NAMES, 60)
    assert "no rank is behind the others: rank 0 is at 'b'" in said and "rank 2 is at 'b'" in said


def test_who_has_left_in_order_is_not_late():
    reports = {0: report(7, "b", True), 1: report(9, "c", False, closed=True), 2: report(7, "b", True)}
    assert "no rank is behind" in verdict(reports, {**FRESH, 1: 59.0}, NAMES, 60)


def test_a_rank_that_was_never_heard_of():
    reports = {0: report(7, "b", True), 1: report(7, "b", True)}
    assert "for rank 2: rank 2 (process 2 on machine) has sent no report" in verdict(reports, FRESH, NAMES, 60)


if __name__ == "__main__":
    rank_main(sys.argv[1])
