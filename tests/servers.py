"""A real server in a thread of the test, on a free port."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from options.serve import ServeOptions, parse_serve
from serving.app import make_app
from serving.models import ServedModel, find_models
from serving.server import bind, make_server, url_of
from serving.service import Service
from tests import golden

KEY = "a-key"


@dataclass(frozen=True)
class Running:
    """A server that runs. client: of httpx, with the key if the server has one."""

    url: str
    service: Service
    client: httpx.Client

    @property
    def model(self) -> ServedModel:
        """The first model."""
        return next(iter(self.service.models.by_name.values()))

    def chat(self, **fields) -> httpx.Response:
        """Post a chat request with one question, unless messages are given."""
        body = {
            "model": self.model.name,
            "messages": [{"role": "user", "content": "发动机"}],
            "temperature": 0,
            **fields,
        }
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, **fields) -> httpx.Response:
        """Post a completion request, by default with a text."""
        body = {"model": self.model.name, "prompt": "发动机", "temperature": 0, **fields}
        return self.client.post("/v1/completions", json=body)


def options_for(mode: str, *flags: str, model_path: Path | None = None) -> ServeOptions:
    """Options for a model, by default the golden base of a generation, on the CPU at a free port."""
    words = ["--model_path", str(model_path or golden.base_path(mode))]
    words += ["--served_model_name", mode, "--device", "cpu", "--port", "0"]
    options, problems = parse_serve([*words, *flags])
    assert problems == []
    return options


@contextlib.contextmanager
def serving(
    mode: str, *flags: str, model_path: Path | None = None, key: str | None = None, body_seconds: float = 30
) -> Iterator[Running]:
    """Run a server of a model, by default the golden base of a generation, with further flags."""
    options = options_for(mode, *flags, model_path=model_path)
    service = Service(options.limits, find_models(options).load(options, torch.device("cpu")))
    listener = bind(options.server.host, options.server.port, options.limits.request_timeout)
    server = make_server(make_app(service, key, body_seconds), "")
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    url = url_of(listener)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            wait_until(lambda: server.started)
            yield Running(url, service, client)
    finally:
        service.models.close()
        server.should_exit = True
        thread.join()


def wait_until(condition, seconds: float = 60) -> None:
    """Wait until a condition holds; fails if it takes longer."""
    ended = threading.Event()
    for _ in range(int(seconds * 200)):
        if condition():
            return
        ended.wait(0.005)
    raise AssertionError("the condition does not hold in time")
