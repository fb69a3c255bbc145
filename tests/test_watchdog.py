"""parallel/watchdog.py: exactly the rank that the others wait for is named, whatever stopped it."""

import signal
import time
from pathlib import Path

import pytest

from parallel.watchdog import verdict
from tests import launch
from tests.watched_ranks import TIMEOUT


def start(scenario):
    """Two ranks, as a launcher would start them, each with output of its own."""
    of_all = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port())}
    words = ["tests/watched_ranks.py", scenario]
    return [launch.start_each(words, [{**of_all, "RANK": str(rank)}]) for rank in (0, 1)]


def outcome(runs, frozen=None):
    """Codes and error output of both ranks, once they have ended; a frozen one is ended as a launcher would."""
    ended = {rank: run.finish(60) for rank, run in enumerate(runs) if rank != frozen}
    if frozen is not None:
        runs[frozen].processes[0].kill()
        ended[frozen] = runs[frozen].finish(60)
    return [ended[rank].returncode for rank in (0, 1)], [ended[rank].stderr for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (
            "sleep-1",
            [
                "for rank 1:",
                "is still at 'step 3: reading data' (tests/forks.py:",
                "in tests/watched_ranks.py:",
                "rank 0 is at 'step 3: loss",
            ],
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
    runs = start(f"stop-{frozen}")
    started = time.time()
    codes, errors = outcome(runs, frozen)
    assert codes[1 - frozen] == 1 and codes[frozen] == -signal.SIGKILL
    assert time.time() - started < 30
    (sentence,) = errors[1 - frozen].splitlines()
    assert f"for rank {frozen}: rank {frozen} (process {runs[frozen].processes[0].pid} on" in sentence
    assert "has sent no report for" in sentence and "last at 'step 3: reading data'" in sentence


@pytest.mark.slow
def test_slow_is_not_late():
    codes, errors = outcome(start("slow-1"))
    assert codes == [0, 0] and errors == ["", ""]


@pytest.mark.slow
def test_a_run_that_was_stopped_as_a_whole_goes_on():
    """Ctrl-Z and fg: nobody has waited in the meantime."""
    runs = start("pause-1")
    said = Path(runs[1].directory.name, "stdout")
    launch.wait_for(lambda: said.exists() and said.read_text(), runs[1].has_ended, 60)
    processes = [process for run in runs for process in run.processes]
    for process in processes:
        process.suspend()
    time.sleep(1.5 * TIMEOUT)
    for process in processes:
        process.resume()
    codes, errors = outcome(runs)
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
