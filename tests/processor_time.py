"""How much processor time a program takes until it answers; wall-clock time depends on what else the machine does."""

import resource
import subprocess
import sys

from tests.launch import REPOSITORY, environment

SECONDS = 0.5  # of processor time until a program has answered --help or an invalid command line
TRIES = 3


def processor_seconds(words: list[str]) -> tuple[float, subprocess.CompletedProcess]:
    """(processor time of a Python program, what it printed and its exit code)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=200
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended


def check_quick_answer(words: list[str], code: int, text: str) -> None:
    """Fail unless a program prints a text and exits with a code, within SECONDS in one of a few tries."""
    times = []
    for _ in range(TRIES):
        seconds, ended = processor_seconds(words)
        times.append(seconds)
        assert ended.returncode == code and text in ended.stdout + ended.stderr and "Traceback" not in ended.stderr
        if seconds < SECONDS:
            return
    raise AssertionError(f"{' '.join(words)} took {times} s of processor time")
