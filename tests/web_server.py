"""The page's server: in a thread of the test, or as a process of its own."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from options.webui import parse_webui
from runs.places import Root
from serving.hosting import ChatModels
from serving.server import bind, make_server, url_of
from tests.launch import REPOSITORY, environment
from tests.servers import wait_until
from web.app import make_app

PASSWORD = "a password"


@dataclass(frozen=True)
class Page:
    """A server that runs. client: of httpx, with a session's cookie and token, as a browser has them."""

    url: str
    root: Path
    client: httpx.Client


def open_session(url: str, password: str | None = None) -> httpx.Client:
    """A client with a session, as the page opens one."""
    client = httpx.Client(base_url=url, timeout=200)
    client.get("/").raise_for_status()
    if password is not None:
        client.post("/login", json={"password": password}).raise_for_status()
    client.headers["X-CSRF-Token"] = client.get("/api/start").raise_for_status().json()["token"]
    return client


@contextlib.contextmanager
def page_server(root: Path, *flags: str, password: str | None = None) -> Iterator[Page]:
    """Run the page's server for a root in a thread."""
    words = ["--root", str(root), "--port", "0", *flags, *(["--password", password] if password else [])]
    options, problems = parse_webui(words)
    assert problems == []
    listener = bind(options.host, options.port, 600)
    models = ChatModels(Root.at(options.root))
    server = make_server(make_app(options, Root.at(options.root), models), "")
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        wait_until(lambda: server.started)
        with contextlib.closing(open_session(url_of(listener), password)) as client:
            yield Page(url_of(listener), root, client)
    finally:
        server.should_exit = True
        thread.join()
        models.close()


def start_webui(root: Path, port: int, *flags: str) -> subprocess.Popen:
    """Start webui.py as a process, and wait until it answers."""
    words = [sys.executable, "webui.py", "--root", str(root), "--port", str(port), *flags]
    process = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment(CUDA_VISIBLE_DEVICES=""), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None and "The page is at" in process.stderr.readline()
    return process
