"""What the page refuses: paths out of the root, commands in values, other sites, forged sessions, too large bodies.

Each attack is a request of a browser with a session, unless it says otherwise. None may succeed, be a server error,
change anything outside of the root, or run anything.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from processes import identity, session_of
from tests.servers import wait_until
from tests.web_server import page_server

SECRET = "a secret outside of the root"
REFUSED = range(400, 500)


@dataclass(frozen=True)
class Attack:
    """A request. {outside} in its texts is a directory beside the root, {canary} a file that must not appear."""

    method: str
    path: str
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def train(**values: str) -> dict[str, object]:
    """The body that starts a run, or checks one."""
    return {"values": {"model_name_or_path": "base", "train_path": "data.json", "output_dir": "run", **values}}


ATTACKS = {
    # paths
    "parent directory": Attack("GET", "/api/browse?path=../outside"),
    "absolute path": Attack("GET", "/api/browse?path={outside}"),
    "link that leads outside": Attack("GET", "/api/browse?path=link"),
    "link in the middle of a path": Attack("GET", "/api/browse?path=link/inner"),
    "encoded parent directory": Attack("GET", "/api/browse?path=%2e%2e%2foutside"),
    "parent directory encoded twice": Attack("GET", "/api/browse?path=%252e%252e%252foutside"),
    "backslashes": Attack("GET", "/api/browse?path=..\\outside"),
    "null byte": Attack("GET", "/api/browse?path=base%00/../../outside"),
    "very long path": Attack("GET", "/api/browse?path=" + "a" * 5000),
    "static file outside": Attack("GET", "/../webui.py"),
    "encoded static file outside": Attack("GET", "/%2e%2e/%2e%2e/webui.py"),
    "static file by a link's path": Attack("GET", "/vendor/..%2f..%2f..%2fwebui.py"),
    "log of a link": Attack("GET", "/api/log?run=link"),
    "log that is a link": Attack("GET", "/api/log?run=run-with-links"),
    "predictions that are a link": Attack("GET", "/api/predictions?run=run-with-links"),
    "metrics that are a link": Attack("GET", "/api/changes?run=run-with-links&at=0"),
    "options that are a link": Attack("GET", "/api/differences?run=run-with-links&run=run-with-links"),
    "upload outside": Attack("POST", "/api/upload?directory=../outside&name=x.json", content=b"{}"),
    "upload through a link": Attack("POST", "/api/upload?directory=link&name=x.json", content=b"{}"),
    "upload with a path as name": Attack("POST", "/api/upload?directory=.&name=..%2Foutside%2Fx.json", content=b"{}"),
    "upload of a hidden file": Attack("POST", "/api/upload?directory=.&name=.webui.json", content=b"{}"),
    "upload of a program": Attack("POST", "/api/upload?directory=.&name=x.py", content=b"print()"),
    "upload over a file": Attack("POST", "/api/upload?directory=.&name=data.json", content=b"{}"),
    # values that become a command
    "data outside": Attack("POST", "/api/runs", train(train_path="{outside}/secret.json")),
    "second file of data outside": Attack("POST", "/api/runs", train(train_path="data.json,{outside}/secret.json")),
    "base outside": Attack("POST", "/api/runs", train(model_name_or_path="{outside}")),
    "base through a link": Attack("POST", "/api/runs", train(model_name_or_path="link")),
    "output outside": Attack("POST", "/api/runs", train(output_dir="{outside}/run")),
    "output through a link": Attack("POST", "/api/runs", train(output_dir="link/run")),
    "cache outside": Attack("POST", "/api/runs", train(data_cache_dir="{outside}/cache")),
    "resume state outside": Attack("POST", "/api/runs", train(resume_from_checkpoint="{outside}")),
    "DeepSpeed file outside": Attack("POST", "/api/runs", train(ds_file="{outside}/secret.json")),
    "DeepSpeed file of the system": Attack("POST", "/api/runs", train(ds_file="/etc/passwd")),
    "adapter outside": Attack("POST", "/api/runs", train(init_adapter="{outside}")),
    "command in backquotes": Attack("POST", "/api/runs", train(learning_rate="`touch {canary}`")),
    "command behind a semicolon": Attack("POST", "/api/runs", train(mode="glm3; touch {canary}")),
    "command behind a line end": Attack("POST", "/api/runs", train(output_dir="run\ntouch {canary}")),
    "a field that is no field": Attack("POST", "/api/runs", train(config="{outside}/secret.json")),
    "a field with dashes": Attack("POST", "/api/runs", train(**{"--dry_run": "True"})),
    "a value that is no text": Attack("POST", "/api/runs", {"values": {"output_dir": ["a", "b"]}}),
    "a device that is a command": Attack("POST", "/api/runs", {**train(), "launch": {"devices": ["0; reboot"]}}),
    "a number of ranks that is a command": Attack("POST", "/api/runs", {**train(), "launch": {"ranks": "$(reboot)"}}),
    "a million ranks": Attack("POST", "/api/runs", {**train(), "launch": {"ranks": 10**6}}),
    "output that replaces the page's own files": Attack("POST", "/api/runs", train(output_dir=".webui/run")),
    # runs
    "stop outside": Attack("POST", "/api/runs/stop", {"run": "../outside"}),
    "kill of what is no run": Attack("POST", "/api/runs/kill", {"run": "base"}),
    "delete outside": Attack("POST", "/api/runs/delete", {"run": "{outside}"}),
    "delete of the root": Attack("POST", "/api/runs/delete", {"run": "."}),
    "delete through a link": Attack("POST", "/api/runs/delete", {"run": "link"}),
    "rename to outside": Attack("POST", "/api/runs/rename", {"run": "done", "name": "../outside/run"}),
    "rename over another": Attack("POST", "/api/runs/rename", {"run": "done", "name": "base"}),
    "note in a link": Attack("POST", "/api/runs/note", {"run": "link", "note": "x"}),
    "start in a directory whose log is a link": Attack("POST", "/api/runs", train(output_dir="run-with-links")),
    "an offset beyond all files": Attack("GET", f"/api/changes?run=base&at=-{10**30}"),
    "a note without end": Attack("POST", "/api/runs/note", {"run": "done", "note": "x" * 100_000}),
    # bodies
    "body of another type": Attack("POST", "/api/check", headers={"Content-Type": "text/plain"}, content=b"{}"),
    "body that is a form": Attack(
        "POST", "/api/check", headers={"Content-Type": "application/x-www-form-urlencoded"}, content=b"values=1"
    ),
    "body that is a list": Attack("POST", "/api/check", []),
    "body that is too large": Attack("POST", "/api/check", {"values": {"train_path": "x" * 2**21}}),
    "body that is nested": Attack("POST", "/api/check", headers={"Content-Type": "application/json"},
                                  content=b"[" * 100_000),
    "body that is cut": Attack("POST", "/api/check", headers={"Content-Type": "application/json"}, content=b'{"va'),
    "body that is compressed": Attack(
        "POST", "/api/check", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}, content=b"x"
    ),
    # other sites
    "another site's page": Attack("POST", "/api/runs", train(), headers={"Sec-Fetch-Site": "cross-site"}),
    "another port's page": Attack("POST", "/api/runs", train(), headers={"Sec-Fetch-Site": "same-site"}),
    "another site's origin": Attack("POST", "/api/runs", train(), headers={"Origin": "https://evil.example"}),
    "another site reads": Attack("GET", "/api/start", headers={"Sec-Fetch-Site": "cross-site"}),
    "a name that was rebound": Attack("GET", "/api/start", headers={"Host": "evil.example:7860"}),
    "no token": Attack("POST", "/api/runs", train(), headers={"X-CSRF-Token": ""}),
    "no session": Attack("POST", "/api/runs", train(), headers={"Cookie": ""}),
    "another session": Attack("POST", "/api/runs", train(), headers={"Cookie": "{cookie}=1.2.3"}),
    "delete by a link": Attack("GET", "/api/runs/delete?run=done"),
    # what is not there
    "documentation of the server": Attack("GET", "/docs"),
    "another method": Attack("DELETE", "/api/runs"),
    "the secret": Attack("GET", "/.webui/secret"),
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page whose root has links that lead outside, and a run."""
    place = tmp_path_factory.mktemp("place")
    root, outside = place / "root", place / "outside"
    for directory in (root / "base", root / "done", root / "run-with-links", outside / "inner"):
        directory.mkdir(parents=True)
    (outside / "secret.json").write_text(json.dumps([{"instruction": SECRET, "output": SECRET}]))
    (root / "data.json").write_text("[]")
    os.mkdir(os.fsencode(root) + b"/\xc4\xe3")  # a name in GBK
    Path(os.fsdecode(os.fsencode(root) + b"/\xc4\xe3"), "job.json").write_text("{}")
    (root / "link").symlink_to(outside)
    for name in ("metrics.jsonl", "run.yaml"):
        (root / "done" / name).write_text("")
    for name in ("metrics.jsonl", "run.yaml", "train.log", "best_predictions.jsonl", "evaluation.jsonl", "note.txt"):
        (root / "run-with-links" / name).symlink_to(outside / "secret.json")
    with page_server(root) as page:
        yield page


@pytest.fixture
def sleeper():
    """The leader of a session with one more process."""
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    wait_until(lambda: len(session_of(leader.pid)) == 1)
    yield leader
    os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every file and directory below one, with its content."""
    paths = [Path(parent, name) for parent, dirs, files in os.walk(directory) for name in (*dirs, *files)]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def filled(value: object, **places: object) -> object:
    """The value with places in its texts."""
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace("{" + name + "}", str(place))
        return value
    if isinstance(value, dict):
        return {name: filled(part, **places) for name, part in value.items()}
    return [filled(part, **places) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(page, name):
    attack = ATTACKS[name]
    outside, canary = page.root.parent / "outside", page.root.parent / "canary"
    cookie = next(iter(page.client.cookies.jar))
    places = {"outside": outside, "canary": canary, "cookie": cookie.name}
    before, inside = tree(outside), set(tree(page.root))
    request = page.client.build_request(
        attack.method, page.url + filled(attack.path, **places), headers=filled(attack.headers, **places),
        **({"json": filled(attack.body, **places)} if attack.content is None and attack.body is not None else {}),
        **({"content": attack.content} if attack.content is not None else {}),
    )  # fmt: skip
    answer = page.client.send(request)
    assert answer.status_code in REFUSED, answer.text
    assert SECRET not in answer.text
    if answer.headers["content-type"] == "application/json":
        assert answer.json()["error"]["message"]
    assert tree(outside) == before and not canary.exists()
    new = {path for path in set(tree(page.root)) - inside if not path.endswith("/.job.lock")}
    assert new == set()


def test_there_are_enough():
    assert len(ATTACKS) >= 40


HUGE, SURROGATE, HOST = "1" + "0" * 400, '"\\ud83d"', json.dumps(socket.gethostname())
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise("abcdefghij")
)
FILES = {  # of a run, as somebody else may have written them
    "huge times": {"job.json": f'{{"queued": {HUGE}}}', "process.json": f'{{"created": {HUGE}, "ready": {HUGE}}}'},
    "a huge identity": {"process.json": f'{{"pid": 1, "since_boot": {HUGE}, "host": {HOST}}}'},
    "a huge offset": {"job.json": '{"kind": "train", "log_start": 1e299, "started": 1}', "train.log": "x"},
    "surrogates": {"job.json": f'{{"exit_code": {SURROGATE}}}', "run.yaml": f"mode: {SURROGATE}",
                   "metrics.jsonl": f'{{"step": 1, "loss": {SURROGATE}, {SURROGATE}: 1}}\n',
                   "best_predictions.jsonl": f'{{"step": 1, "asked": {SURROGATE}}}\n'},
    "nested facts": {"job.json": '{"exit_code": ' + "[" * 900 + "]" * 900 + "}"},
    "nested options": {"run.yaml": "a: " + "[" * 30_000},
    "options that multiply": {"run.yaml": MERGED},
    "other types": {"process.json": '{"members": 5, "ranks": "x", "devices": [[1]], "cwd": 3, "outcome": [1]}'},
    "a session without an identity": {"job.json": '{"started": 1, "devices": {}, "launch": []}'},
    "huge numbers": {"metrics.jsonl": f'{{"step": {HUGE}, "loss": {HUGE}}}\n'},
    "endless facts": {"job.json": Path("/dev/zero"), "process.json": Path("/dev/zero")},
    "endless options": {"run.yaml": Path("/dev/zero"), "checkpoint.json": Path("/dev/zero")},
    "pipes": dict.fromkeys(("run.yaml", "job.json", "process.json", "note.txt", "metrics.jsonl", "stop.json")),
}  # fmt: skip


@pytest.fixture
def foreign(page):
    """The directory of a run that lies below the root for one test."""
    run = page.root / "foreign"
    run.mkdir()
    yield run
    shutil.rmtree(run)


@pytest.mark.parametrize("name", FILES)
def test_files_that_somebody_else_wrote(page, foreign, name):
    """No file of a run makes the server fail or wait, and with it the list of all other runs."""
    for file, content in {"process.json": "{}", **FILES[name]}.items():
        if isinstance(content, str):
            (foreign / file).write_text(content)
        elif content is None:
            os.mkfifo(foreign / file)
        else:
            (foreign / file).symlink_to(content)
    began, of_run = time.process_time(), {"run": "foreign"}  # of the server, too; one that waits is given up
    answers = [page.client.get(f"/api/{path}") for path in ("runs", "models/found", "browse", "merges")]
    answers += [page.client.get("/api/changes", params={**of_run, "at": 10**22})]
    answers += [page.client.get(f"/api/{path}", params=of_run) for path in ("predictions", "curves", "differences")]
    answers += [page.client.post(f"/api/runs/{action}", json=of_run) for action in ("resume", "kill", "stop")]
    answers += [page.client.post("/api/check", json=train(output_dir="foreign"))]
    assert [answer.text for answer in answers if answer.status_code >= 500] == []
    assert {run["run"] for run in answers[0].json()} >= {"foreign", "done"}
    assert time.process_time() - began < 5


def test_a_note_is_not_written_through_a_link(page):
    """Of a temporary file that came with the run."""
    secret = page.root.parent / "outside" / "secret.json"
    before = secret.read_bytes()
    (page.root / "done" / ".note.txt.tmp").symlink_to(secret)
    page.client.post("/api/runs/note", json={"run": "done", "note": "mine"}).raise_for_status()
    assert secret.read_bytes() == before and (page.root / "done" / "note.txt").read_text() == "mine"


def test_a_job_of_another_host_or_boot_ends_no_process(page, sleeper):
    """A process id in job.json leads to no session, unless the process is the one that the file speaks of."""
    leader = identity(sleeper.pid)
    run = page.root / "stale"
    run.mkdir()
    for change in ({"host": "elsewhere"}, {"since_boot": leader["since_boot"] - 5}, {"since_boot": None}):
        (run / "job.json").write_text(json.dumps({**leader, "started": 1.0, **change}))
        page.client.post("/api/runs/kill", json={"run": "stale"}).raise_for_status()
        assert len(session_of(sleeper.pid)) == 1
    shutil.rmtree(run)


def test_a_table_has_no_formulas(page):
    run = page.root / "=cmd"
    run.mkdir()
    (run / "run.yaml").touch()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": -0.5, "@SUM(A1)": 2, "x": "=1+1"}\n')
    table = page.client.get("/api/curves", params={"run": "=cmd"}).text
    assert table == "run,step,loss,'@SUM(A1),x\r\n'=cmd,1,-0.5,2,\r\n"
    shutil.rmtree(run)


@pytest.mark.parametrize("text", ["$(touch canary)", "; touch canary", "--config=secret.yaml", "`id`", "a b'c\"d"])
def test_a_value_stays_one_argument(page, text):
    """No shell reads the command, and the line for copying quotes it."""
    shown = page.client.post("/api/check", json=train(output_dir=text)).json()["command"]
    words = shlex.split(shown)
    value = next(
        word for i, word in enumerate(words) if words[i - 1] == "--output_dir" or word.startswith("--output_dir=")
    )
    assert value.removeprefix("--output_dir=") == str(page.root / text)


def test_a_name_that_looks_like_markup_is_text(page):
    """Names come as they are; only a page that shows them as text is safe (the browser's tests check that)."""
    name = "<img src=x onerror=alert(1)>"
    (page.root / name).mkdir()
    entries = page.client.get("/api/browse").json()["entries"]
    assert name in [entry["name"] for entry in entries] and "link" not in [entry["name"] for entry in entries]
    (page.root / name).rmdir()


def test_an_upload_is_bounded(page, monkeypatch):
    monkeypatch.setattr("web.browse.MAX_UPLOAD", 1000)
    send = page.client.post
    assert send("/api/upload", params={"directory": ".", "name": "a.json"}, content=b"x" * 1001).status_code == 413
    assert send("/api/upload", params={"directory": ".", "name": "a.json"}, content=b"x" * 1000).status_code == 200
    assert (page.root / "a.json").read_bytes() == b"x" * 1000
    assert [path.name for path in page.root.glob(".*.upload")] == []
