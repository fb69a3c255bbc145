"""serve.py as a process: what it prints, how it refuses, and how it ends."""

import json
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx

from tests.launch import GOLDEN, REPOSITORY, environment
from tests.servers import wait_until

pytestmark = pytest.mark.slow
SERVE = [sys.executable, str(REPOSITORY / "serve.py"), "--model_path", str(GOLDEN / "glm3" / "base"), "--device", "cpu"]
NO_END = {str(token): -100 for token in (2, 2406, 2408)}  # of all tokens that end an answer
ENDLESS = {"model": "base", "prompt": "发动机", "stream": True, "max_tokens": 4000, "logit_bias": NO_END}


class Served:
    """A process of serve.py. lines: of its standard error so far."""

    def __init__(self, *flags, **variables):
        self.process = subprocess.Popen(
            [*SERVE, "--port", "0", "--max_new_tokens", "4000", *flags],
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment(CUDA_VISIBLE_DEVICES="", **variables),
        )
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")))
        self.reader.start()
        wait_until(lambda: self.url or self.process.poll() is not None, seconds=200)

    @property
    def url(self):
        """The URL that it printed; None before."""
        found = [line.split(" at ")[1].split("/v1")[0] for line in self.lines if line.startswith("Serving ")]
        return found[0] if found else None


def read(served, texts, errors):
    """Read an endless stream to its end."""
    with httpx.stream("POST", f"{served.url}/v1/completions", json=ENDLESS, timeout=200) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                (errors if "error" in chunk else texts).append(chunk)


def test_what_it_prints_can_be_run_and_sigterm_drains():
    served = Served(CHATGLM_API_KEY="s3cret")
    try:
        (line,) = [line for line in served.lines if line.startswith("Try: ")]
        command = shlex.split(line.removeprefix("Try: "))
        assert command[0] == "curl" and command[-2] == "-d" and json.loads(command[-1])["model"] == "base"
        headers = dict(word.split(": ") for word in command if ": " in word and word[0] != "{")
        assert httpx.post(command[1], content=command[-1], headers=headers).status_code == 401
        headers["Authorization"] = "Bearer s3cret"
        body = {**json.loads(command[-1]), "max_tokens": 3}
        assert httpx.post(command[1], json=body, headers=headers, timeout=200).status_code == 200

        texts, fields = [], {**ENDLESS, "max_tokens": 1500, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=fields, headers=headers, timeout=200) as running:
            lines = running.iter_lines()
            texts.append(next(lines))
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: any(line.startswith("Waiting up to 30 seconds") for line in served.lines))
            refused = httpx.get(f"{served.url}/v1/models", headers=headers)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
            texts += [line for line in lines if line]
        *_, usage, end = texts  # tokens of a slow reader come together, so chunks are not counted
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 1500
        assert end == "data: [DONE]"
        assert served.process.wait(20) == 0
    finally:
        served.process.kill()
    served.reader.join()
    log = "".join(served.lines)
    assert (
        "Traceback" not in log
        and "WARNING" not in log
        and "Loading" not in log
        and "s3cret" not in log
        and "发动机" not in log
    )
    assert log.count("POST /v1/completions 200") == 1


def test_draining_has_a_limit_and_a_second_signal_ends_it():
    for seconds, signals, code in (("0.5", [signal.SIGTERM], 0), ("30", [signal.SIGINT] * 2, 130)):
        served, texts, errors = Served("--shutdown_timeout", seconds), [], []
        try:
            reading = threading.Thread(target=read, args=(served, texts, errors))
            reading.start()
            wait_until(lambda texts=texts: texts)
            began = time.monotonic()
            for number in signals:
                served.process.send_signal(number)
                time.sleep(0.2)
            assert served.process.wait(20) == code and time.monotonic() - began < 8
            reading.join()
        finally:
            served.process.kill()
        served.reader.join()
        assert [chunk["error"]["code"] for chunk in errors] == ["shutting_down"]
        assert "Traceback" not in "".join(served.lines)


def test_a_port_in_use():
    """One sentence and exit code 2, before weights are loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [*SERVE, "--port", str(taken.getsockname()[1])]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment())
    assert (result.returncode, result.stdout) == (2, "")
    assert "is in use: give another one" in result.stderr
    assert "Loading" not in result.stderr and "Traceback" not in result.stderr
