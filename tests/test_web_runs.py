"""web/states.py, web/job.py and web/runs.py without torch: real jobs, whose commands are short."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from files import write_json
from processes import identity, is_alive, session_of
from serving.errors import ApiError
from tests.launch import GOLDEN
from tests.servers import wait_until
from tests.web_server import page_server
from web import states
from web.job import begin, kill, locked, stop, with_free_port
from web.paths import REPOSITORY, Root
from web.runs import TRASH, launch_again, values_again
from web.states import Run, find, summary

SLEEP = [sys.executable, "-c", "import time; print('begins', flush=True); time.sleep(60)"]
STUBBORN = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '60']); "
SHOWN = {"model_name_or_path": "ChatGLM3-6B", "train_type": "lora"}


def make_run(directory, process=None, rows=(), **options):
    """A run's directory, with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.yaml").write_text(json.dumps({**SHOWN, **options}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if process is not None:
        write_json(directory / "process.json", process)
    return directory


def start_job(directory, command, queue=False, devices=("cpu",), **facts):
    """Begin a job in a run's directory."""
    make_run(directory)
    facts = {"kind": "train", "environment": {}, "root": str(directory.parent), **facts}
    with locked(directory) as descriptor:
        begin(directory, {**facts, "command": command, "devices": list(devices), "queue": queue}, descriptor)
    return directory


def state_of(directory):
    return Run.at(directory).state


def log_of(directory):
    return (directory / "train.log").read_text()


def has_begun(directory):
    """Whether its command has written; the line before is the command."""
    return log_of(directory).endswith("\nbegins\n")


def await_state(directory, *wanted):
    wait_until(lambda: state_of(directory) in wanted, seconds=30)


@pytest.fixture(autouse=True)
def no_job_stays(tmp_path):
    """Kill what a failed test left."""
    yield
    for path in tmp_path.rglob("job.json"):
        if is_alive(states.read(path)):
            kill(path.parent)


@pytest.fixture
def sleeper():
    """A process that sleeps."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def page(tmp_path):
    (tmp_path / "root").mkdir()
    with page_server(tmp_path / "root") as page:
        yield page


def post(page, path, status=200, **body):
    answer = page.client.post(f"/api/runs{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def listed(page):
    return {run["run"]: run for run in page.client.get("/api/runs").json()}


def test_where_runs_are_found(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("output", "a/b/c", "output/again")]
    for name in (".trash/x", "output/state/x", "output/epoch-1-step-3", "output/tensorboard", "venv/x"):
        make_run(tmp_path / name)
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
    assert 100 < seen["seconds_left"] < 145 and seen["stoppable"] and seen["base"] == "ChatGLM3-6B"
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
    with pytest.raises(ApiError, match="runs on elsewhere: stop it there"), locked(run):
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


def test_a_job_runs_in_a_session_of_its_own_and_records_its_end(tmp_path):
    code = "import os, sys; print(os.getsid(0), os.environ['HELLO'], sys.stdin.read() == ''); sys.exit(3)"
    run = start_job(tmp_path / "a", [sys.executable, "-c", code], environment={"HELLO": "there"})
    await_state(run, "failed")
    facts = states.read(run / "job.json")
    assert facts["exit_code"] == 3 and facts["queued"] <= facts["started"] <= facts["ended"]
    assert log_of(run).endswith(f"\n{facts['pid']} there True\n") and facts["pid"] != os.getsid(0)


def test_the_password_is_not_for_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("CHATGLM_PASSWORD", "secret")
    run = start_job(tmp_path / "a", [sys.executable, "-c", "import os; print('secret' in os.environ.values())"])
    await_state(run, "failed")
    assert log_of(run).endswith("\nFalse\n")


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
    assert state_of(later) == "queued" and states.read(last / "job.json")["started"] > time.time() - 10
    stop(later)  # it leaves the queue
    await_state(later, "stopped")
    assert states.read(later / "job.json")["canceled"] and log_of(later) == ""
    for run in (last, other, at_once):
        kill(run)
        await_state(run, "stopped")


def test_a_job_waits_for_a_run_of_a_terminal(tmp_path, sleeper):
    make_run(tmp_path / "a", {**identity(sleeper.pid), "devices": ["cpu"], "ready": 1.0, "outcome": None})
    waiting = start_job(tmp_path / "b", [sys.executable, "-c", "print('begins')"], queue=True)
    wait_until(lambda: is_alive(states.read(waiting / "job.json")))
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
    leader = states.read(run / "job.json")["pid"]
    assert state_of(run) == "stopping" and len(session_of(leader)) == 2  # both ignore SIGTERM
    kill(run)
    await_state(run, "stopped")
    assert session_of(leader) == [] and states.read(run / "job.json")["exit_code"] == -signal.SIGKILL


def test_kill_after_the_job_itself_was_killed(tmp_path):
    run = start_job(tmp_path / "a", SLEEP)
    wait_until(lambda: has_begun(run))
    facts = states.read(run / "job.json")
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
        except ApiError as error:
            results.append(error.status)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(409) == 7 and results.count(tmp_path / "a") == 1
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


def test_what_the_page_does_to_a_run_that_ended(page):
    make_run(page.root / "out" / "a", rows=[{"step": 1, "loss": 3.0}])
    assert post(page, "/note", run="out/a", note="the first\n")["run"] == "out/a"
    assert listed(page)["out/a"]["note"] == "the first\n"
    post(page, "/note", 400, run="out/a", note="x" * 2001)
    assert post(page, "/rename", run="out/a", name="out/b") == {"run": "out/b"}
    make_run(page.root / "c")
    assert "exists already" in post(page, "/rename", 409, run="c", name="out/b")["message"]
    for name in (".hidden", "out/state", "out/.x/a", ".", "", 3, "a\0", "no/such/directory"):
        post(page, "/rename", 400, run="c", name=name)
    for name in ("../c", "/etc/c", "out/../../c"):
        post(page, "/rename", 403, run="c", name=name)
    assert post(page, "/delete", run="out/b")["run"].startswith(".webui/trash/out-b-20")
    (kept,) = (page.root / TRASH).iterdir()
    assert (kept / "metrics.jsonl").exists() and set(listed(page)) == {"c"}


@pytest.mark.parametrize("action", ["stop", "kill", "resume", "rename", "note", "delete"])
def test_requests_about_what_is_no_run(page, action):
    (page.root / "data").mkdir()
    for name, status in (("data", 404), ("nothing", 404), ("../x", 403), ("/", 403), (None, 400), ("a\0b", 400)):
        post(page, f"/{action}", status, run=name, name="new", note="")
    assert not list((page.root / "data").iterdir())


def test_a_live_run_is_neither_moved_nor_deleted(page):
    outer = make_run(page.root / "outer")
    live = start_job(outer / "live", SLEEP)
    for action in ("rename", "delete", "resume"):
        for name in ("outer/live", "outer")[: 1 if action == "resume" else 2]:
            assert "is running: stop it first" in post(page, f"/{action}", 409, run=name, name="new")["message"]
    post(page, "/kill", run="outer/live")
    await_state(live, "stopped")
    assert post(page, "/rename", run="outer", name="new") == {"run": "new"} and "new/live" in listed(page)


def test_a_start_with_problems_starts_nothing(page):
    error = post(page, "", 400, values={"output_dir": "a", "train_path": "none.json", "lora_dim": "x"}, launch={})
    assert error["param"] in ("lora_dim", "train_path", "model_name_or_path")
    assert listed(page) == {} and not (page.root / "a").exists()


@pytest.mark.parametrize("name", ["process.json", "job.json", "stop.json"])
def test_files_of_runs_cannot_be_uploaded(page, name):
    """A process.json could name any process to be stopped."""
    answer = page.client.post("/api/upload", params={"directory": ".", "name": name}, content=b"{}")
    assert answer.status_code == 400 and not (page.root / name).exists()


def test_the_values_of_a_resumed_run(tmp_path):
    """run.yaml has paths from the repository; the run lies elsewhere now."""
    base = os.path.relpath(GOLDEN / "glm2" / "base", REPOSITORY)
    flags = {"lora_dim": 9, "lora_module_name": ["query_key_value", "dense"], "ds_file": "ds_zero3_offload.json"}
    run = make_run(tmp_path / "moved", model_name_or_path=base, output_dir="before", gpu_memory=24, **flags)
    values = {
        "model_name_or_path": str(REPOSITORY / base),
        "lora_dim": "9",
        "lora_module_name": "query_key_value,dense",
        "ds_file": "ds_zero3_offload.json",
        "output_dir": "moved",
    }
    assert values_again(Root.at(str(tmp_path)), run) == values
    (run / "state" / "step-3").mkdir(parents=True)
    assert values_again(Root.at(str(tmp_path)), run) == {**values, "resume_from_checkpoint": "auto"}


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, {"devices": [], "ranks": 2}),
        ({"devices": ["3", "1"]}, {"devices": [1, 3], "ranks": 2}),
        ({"devices": ["GPU-1f2e"]}, "used GPU-1f2e: resume it in a terminal"),
        ({"ranks": 4}, "several machines"),
        ({"cwd": "/elsewhere"}, "started in /elsewhere: resume it there"),
    ],
)
def test_how_a_run_of_a_terminal_is_resumed(tmp_path, changes, result):
    facts = {"pid": 1, "members": [{}, {}], "ranks": 2, "devices": ["cpu"], "cwd": str(REPOSITORY), **changes}
    run = Run.at(make_run(tmp_path / "a", facts))
    if isinstance(result, str):
        with pytest.raises(ApiError, match=result):
            launch_again(run)
    else:
        assert launch_again(run) == result
