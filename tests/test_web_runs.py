"""web/runs.py without torch: what the page does to runs."""

import os
from pathlib import Path

import pytest

from runs.directories import TRASH, trash_of
from runs.places import Root
from tests.run_jobs import SLEEP, await_state, make_run, start_job
from tests.web_server import page_server

pytestmark = pytest.mark.usefixtures("no_job_stays")


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


def test_what_the_page_does_to_a_run_that_ended(page):
    make_run(page.root / "out" / "a", rows=[{"step": 1, "loss": 3.0}])
    assert post(page, "/note", run="out/a", note="the first\n")["run"] == "out/a"
    assert listed(page)["out/a"]["note"] == "the first\n"
    post(page, "/note", 400, run="out/a", note="x" * 2001)
    assert post(page, "/rename", run="out/a", name="new/a") == {"run": "new/a"}
    assert post(page, "/rename", run="new/a", name="out/b") == {"run": "out/b"}
    make_run(page.root / "c")
    assert "exists already" in post(page, "/rename", 409, run="c", name="out/b")["message"]
    for name in (".hidden", "out/state", "out/.x/a", ".", "", 3, "a\0", "c/inside"):
        post(page, "/rename", 400, run="c", name=name)
    for name in ("../c", "/etc/c", "out/../../c"):
        post(page, "/rename", 403, run="c", name=name)
    assert post(page, "/delete", run="out/b")["run"].startswith(".webui/trash/out-b-20")
    (kept,) = (page.root / TRASH).iterdir()
    assert (kept / "metrics.jsonl").exists() and set(listed(page)) == {"c"}


def test_the_newest_run_is_first(page):
    for name, time in (("a", 100), ("c", 300), ("b", 200)):
        os.utime(make_run(page.root / name) / "metrics.jsonl", (time, time))
    assert list(listed(page)) == ["c", "b", "a"]


def test_the_trash_of_a_run_is_on_its_own_file_system():
    assert trash_of(Root(Path("/")), Path("/proc/sys/kernel")) == Path("/proc") / TRASH
    assert trash_of(Root(Path("/")), Path("/proc")) == Path("/") / TRASH
    assert trash_of(Root(Path("/proc/sys")), Path("/proc/sys/kernel")) == Path("/proc/sys") / TRASH


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
