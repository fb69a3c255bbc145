"""Runs of the page on two real CPU ranks: neither their losses nor their lives depend on the server."""

import contextlib
import shutil
import signal
import socket

import pytest

from checkpoints.resume import read_state, state_directories
from processes import is_alive, session_of
from runs import job
from runs.reading import read
from tests import launch
from tests.servers import wait_until
from tests.web_server import open_session, page_server, start_webui

KILLS = 20
FLAGS = {
    "train_type": "lora", "max_len": 256, "max_src_len": 160, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1, "num_train_epochs": 3000, "max_steps": 9000, "learning_rate": 1e-3,
    "warmup_ratio": 0.01, "lora_dropout": 0.1, "show_loss_step": 1, "save_model_step": 60, "save_total_limit": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a base and records."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(launch.GOLDEN / "glm2" / "base", root / "base")
    records = (launch.GOLDEN / "samples.jsonl").read_text(encoding="utf-8")
    (root / "samples.jsonl").write_text(records, encoding="utf-8")
    yield root
    for path in root.glob("*/job.json"):
        job.kill(path.parent)  # what a failed test left


def values(name, **changes):
    """The page's form for a run."""
    paths = {"model_name_or_path": "base", "train_path": "samples.jsonl", "data_cache_dir": "cache", "output_dir": name}
    return {flag: str(value) for flag, value in {**FLAGS, **paths, **changes}.items()}


def in_terminal(root, name, **changes):
    """The same as flags."""
    paths = {"model_name_or_path": root / "base", "train_path": root / "samples.jsonl"}
    return {**FLAGS, **paths, "data_cache_dir": root / "cache", "output_dir": root / name, **changes}


@contextlib.contextmanager
def server_at(root, port):
    """A client of webui.py, which is killed at the end."""
    server = start_webui(root, port)
    with contextlib.closing(open_session(f"http://127.0.0.1:{port}")) as client:
        yield client
        server.send_signal(signal.SIGKILL)
    server.wait()


def start(client, name, status):
    """Start a run on two ranks."""
    devices = {"devices": [], "ranks": 2, "port": launch.free_port()}
    answer = client.post("/api/runs", json={"values": values(name), "launch": devices})
    assert answer.status_code == status, answer.text


def post(client, path, **body):
    answer = client.post(f"/api/runs{path}", json=body)
    assert answer.status_code == 200, answer.text


def run_of(client, name):
    """The run in the page's list."""
    runs = {run["run"]: run for run in client.get("/api/runs").raise_for_status().json()}
    return runs[name]


def await_state(client, name, *wanted, seconds=200):
    wait_until(lambda: run_of(client, name)["state"] in wanted, seconds)
    return run_of(client, name)


def members_of(directory):
    return read(directory / "process.json").get("members", [])


@pytest.mark.slow
def test_20_kills_of_the_server_change_no_loss(root):
    """The server is killed while a run starts and trains, each time after it has shown a further step.

    Another run waits meanwhile. When the first is stopped, it begins, and is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    steps = [-1]
    for kill in range(KILLS):
        with server_at(root, port) as client:
            if kill == 0:
                start(client, "page", 200)
                start(client, "page", 409)
                start(client, "next", 200)
            await_state(client, "page", "running" if kill else "starting")
            wait_until(lambda: run_of(client, "page")["step"] > steps[-1])
            steps.append(run_of(client, "page")["step"])
    with server_at(root, port) as client:
        assert run_of(client, "next")["state"] == "queued"
        post(client, "/stop", run="page")
        stopped = await_state(client, "page", "stopped")
        assert stopped["exit_code"] == 128 + signal.SIGTERM and stopped["step"] >= steps[-1] >= KILLS - 1
        assert len(members_of(root / "page")) == 2 and not any(map(is_alive, members_of(root / "page")))
        assert not session_of(read(root / "page" / "job.json")["pid"])
        assert read_state(state_directories(root / "page" / "state")[0]).position.step == stopped["step"]

        await_state(client, "next", "starting")
        leader = read(root / "next" / "job.json")["pid"]
        wait_until(lambda: len(session_of(leader)) >= 3, 200)  # two launchers and a rank
        post(client, "/kill", run="next")
        killed = await_state(client, "next", "stopped", seconds=5)
        assert killed["exit_code"] == -signal.SIGKILL and not session_of(leader)

    terminal = launch.start_fork(["train.py", *launch.flags(in_terminal(root, "terminal"))], 2)
    launch.wait_for_step(root / "terminal", stopped["step"], terminal.has_ended)
    terminal.kill()
    assert launch.losses(root / "page") == launch.losses(root / "terminal")[: stopped["step"]]  # to the last bit


@pytest.mark.slow
def test_a_run_of_a_terminal_is_stopped_and_resumed_by_the_page(root):
    forked = launch.start_fork(["train.py", *launch.flags(in_terminal(root, "forked", max_steps=60))], 2)
    with page_server(root) as page:
        wait_until(lambda: (root / "forked" / "process.json").exists(), 200)
        await_state(page.client, "forked", "running")
        wait_until(lambda: run_of(page.client, "forked")["step"] >= 5)
        post(page.client, "/stop", run="forked")
        result = forked.finish(200)
        assert result.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in result.stdout, result.stderr
        stopped = await_state(page.client, "forked", "stopped")
        (state, *_) = state_directories(root / "forked" / "state")
        assert read_state(state).position.step == stopped["step"] < 60
        assert len(members_of(root / "forked")) == 2 and not any(map(is_alive, members_of(root / "forked")))

        post(page.client, "/resume", run="forked")
        finished = await_state(page.client, "forked", "finished", "failed")
        assert finished["state"] == "finished", (root / "forked" / "train.log").read_text()[-3000:]
        assert "resumed from" in (root / "forked" / "train.log").read_text()
        assert read(root / "forked" / "process.json")["start_step"] == stopped["step"]
    assert [row["step"] for row in launch.metrics(root / "forked")] == list(range(1, 61))
