"""processes.py: the identity of a process, when its id was given to another, and the processes of a session."""

import os
import signal
import subprocess
import sys
import time

import pytest

from processes import identity, is_alive, send, session_of


@pytest.fixture
def sleeper():
    """A process that sleeps, in a session of its own."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_process_from_start_to_end(sleeper):
    facts = identity(sleeper.pid)
    assert is_alive(facts) is True and is_alive(identity()) is True
    assert abs(facts["created"] - time.time()) < 5 and facts["pid"] == sleeper.pid
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(facts) is False  # a zombie, until its parent asks for it
    sleeper.wait()
    assert is_alive(facts) is False


def test_an_id_that_was_given_to_another_process(sleeper):
    facts = identity(sleeper.pid)
    before = {**facts, "since_boot": facts["since_boot"] - 0.05}
    assert is_alive(before) is False
    assert send(before, signal.SIGKILL) is False and sleeper.poll() is None


def test_a_clock_that_was_changed(sleeper):
    assert is_alive({**identity(sleeper.pid), "created": 0.0}) is True


def test_another_host():
    assert is_alive({**identity(), "host": "elsewhere"}) is None
    assert send({**identity(), "host": "elsewhere"}, 0) is False


@pytest.mark.parametrize(
    "changes", [{"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": True}, {"pid": 2**40}, {"since_boot": None}, {"host": 1}]
)
def test_facts_that_are_no_identity(changes):
    assert not is_alive({**identity(), **changes}) and not is_alive({})


def test_a_signal(sleeper):
    assert send(identity(sleeper.pid), signal.SIGTERM) is True
    assert sleeper.wait(10) == -signal.SIGTERM


def test_the_processes_of_a_session():
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    child = int(leader.stdout.readline())
    assert session_of(leader.pid) == [identity(child)]
    leader.kill()
    leader.wait()
    (facts,) = session_of(leader.pid)  # it is known by its leader's id after the leader's end
    assert send(facts, signal.SIGKILL)
    give_up = time.monotonic() + 60
    while session_of(leader.pid) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert session_of(leader.pid) == []
