"""runs/job.py: real jobs, whose commands are short."""

import os
import signal
import socket
import sys
import threading
import time

import pytest

from files import write_json
from processes import identity, is_alive, session_of
from runs.errors import Conflict
from runs.job import kill, stop, with_free_port
from runs.reading import read
from runs.states import Run, summary
from tests.run_jobs import SLEEP, await_state, has_begun, log_of, make_run, start_job, state_of
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("no_job_stays")
STUBBORN = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '60']); "


def test_a_job_runs_in_a_session_of_its_own_and_records_its_end(tmp_path):
    code = "import os, sys; print(os.getsid(0), os.environ['HELLO'], sys.stdin.read() == ''); sys.exit(3)"
    run = start_job(tmp_path / "a", [sys.executable, "-c", code], environment={"HELLO": "there"})
    await_state(run, "failed")
    facts = read(run / "job.json")
    assert facts["exit_code"] == 3 and facts["queued"] <= facts["started"] <= facts["ended"]
    assert log_of(run).endswith(f"\n{facts['pid']} there True\n") and facts["pid"] != os.getsid(0)


def test_the_password_is_not_for_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("CHATGLM_PASSWORD", "secret")
    run = start_job(tmp_path / "a", [sys.executable, "-c", "import os; print('secret' in os.environ.values())"])
    await_state(run, "failed")
    assert log_of(run).endswith("\nFalse\n")


def test_a_command_that_somebody_else_writes_is_not_run(tmp_path):
    """A job runs what it was started with, whoever can write its directory."""
    run = start_job(tmp_path / "a", SLEEP)
    write_json(run / "job.json", {**read(run / "job.json"), "command": ["touch", str(tmp_path / "canary")]})
    wait_until(lambda: has_begun(run))
    assert read(run / "job.json")["command"] == SLEEP and not (tmp_path / "canary").exists()
    kill(run)
    await_state(run, "stopped")


def test_a_log_that_is_a_link(tmp_path):
    make_run(tmp_path / "a")
    (tmp_path / "a" / "train.log").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        start_job(tmp_path / "a", SLEEP)
    assert not (tmp_path / "outside").exists()


def test_a_program_that_is_not_installed(tmp_path):
    run = start_job(tmp_path / "a", ["no-such-program"])
    await_state(run, "failed")
    assert "No such file or directory: 'no-such-program'" in summary(Run.at(run))["reason"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("error: the disk is full.\nbye\n", "the disk is full."),
        ("[rank1]: torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("error: 2 problems:\n1. this.\n2. that.\nbye\n", "2 problems:\n1. this.\n2. that."),
        ("Killed\n\n", "Killed"),
    ],
)
def test_why_a_run_failed(tmp_path, text, reason):
    make_run(tmp_path / "a")
    (tmp_path / "a" / "train.log").write_text("error: of an attempt before\n")
    run = start_job(tmp_path / "a", [sys.executable, "-c", f"print({text!r}, end=''); raise SystemExit(1)"])
    await_state(run, "failed")
    assert summary(Run.at(run))["reason"] == reason


def test_jobs_wait_for_their_devices_in_order(tmp_path):
    first = start_job(tmp_path / "first", SLEEP, queue=True, devices=("0", "1"))
    await_state(first, "starting")
    last = start_job(tmp_path / "last", SLEEP, queue=True, devices=("1",))
    later = start_job(tmp_path / "later", SLEEP, queue=True, devices=("1", "2"))
    other = start_job(tmp_path / "other", SLEEP, queue=True, devices=("3",))
    at_once = start_job(tmp_path / "at-once", SLEEP, queue=False, devices=("0",))
    await_state(other, "starting")
    await_state(at_once, "starting")
    assert state_of(last) == state_of(later) == "queued"
    stop(first)
    await_state(first, "stopped")
    await_state(last, "starting")
    assert state_of(later) == "queued" and read(last / "job.json")["started"] > time.time() - 10
    stop(later)  # it leaves the queue
    await_state(later, "stopped")
    assert read(later / "job.json")["canceled"] and log_of(later) == ""
    for run in (last, other, at_once):
        kill(run)
        await_state(run, "stopped")


def test_a_job_waits_for_a_run_of_a_terminal(tmp_path, sleeper):
    make_run(tmp_path / "a", {**identity(sleeper.pid), "devices": ["cpu"], "ready": 1.0, "outcome": None})
    waiting = start_job(tmp_path / "b", [sys.executable, "-c", "print('begins')"], queue=True)
    wait_until(lambda: is_alive(read(waiting / "job.json")))
    time.sleep(0.5)
    assert state_of(waiting) == "queued"
    sleeper.kill()
    sleeper.wait()
    wait_until(lambda: has_begun(waiting))


def test_kill_ends_every_process_of_the_session(tmp_path):
    run = start_job(tmp_path / "a", [sys.executable, "-c", STUBBORN + "print('begins', flush=True); time.sleep(60)"])
    wait_until(lambda: has_begun(run))
    stop(run)
    time.sleep(0.3)
    leader = read(run / "job.json")["pid"]
    assert state_of(run) == "stopping" and len(session_of(leader)) == 2  # both ignore SIGTERM
    kill(run)
    await_state(run, "stopped")
    assert session_of(leader) == [] and read(run / "job.json")["exit_code"] == -signal.SIGKILL


@pytest.mark.parametrize("end", [stop, kill])
def test_a_run_on_a_full_disk_can_be_ended(tmp_path, end):
    run = start_job(tmp_path / "a", SLEEP)
    wait_until(lambda: has_begun(run))
    (run / "stop.json").mkdir()  # nothing can be written there
    end(run)
    await_state(run, "stopped" if end is stop else "failed")


def test_kill_after_the_job_itself_was_killed(tmp_path):
    run = start_job(tmp_path / "a", SLEEP)
    wait_until(lambda: has_begun(run))
    facts = read(run / "job.json")
    os.kill(facts["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(facts))
    assert session_of(facts["pid"])
    kill(run)
    wait_until(lambda: not session_of(facts["pid"]))


def test_of_several_starts_one_succeeds(tmp_path):
    make_run(tmp_path / "a")
    results = []

    def attempt():
        try:
            results.append(start_job(tmp_path / "a", SLEEP))
        except Conflict as error:
            results.append(type(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(Conflict) == 7 and results.count(tmp_path / "a") == 1
    wait_until(lambda: has_begun(tmp_path / "a"))
    assert log_of(tmp_path / "a").count("$ ") == 1


def test_a_port_in_use_is_replaced():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = with_free_port(["deepspeed", "--master_port", port, "train.py"])
    assert command[2] != port and int(command[2]) > 0
    assert with_free_port(command) == command and with_free_port(["python"]) == ["python"]
