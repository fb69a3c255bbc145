"""Malformed, oversized and slow requests: each has the right status and an error object that names what is wrong."""

import json
import socket
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx

from generation.request import Request
from tests.servers import KEY, serving, wait_until

USER = {"role": "user", "content": "发动机"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
DEEP = "[" * 100_000
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}

# (fields beside model and one message; the param of the error)
CHAT = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "发动机"}, "messages"),
    ({"messages": [USER, 1]}, "messages[1]"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages[0].weight"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [USER, {"role": "assistant"}, USER]}, "messages[1].content"),
    ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages[1].role"),
    ({"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[1].role"),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}]},
        "messages[2].tool_call_id",
    ),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "x"}}]},
                USER,
            ]
        },
        "messages[1].tool_calls[0].function.arguments",
    ),
    ({"model": 1}, "model"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 600}, "max_tokens"),
    ({"max_completion_tokens": 600}, "max_completion_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ["a", None]}, "stop[1]"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": SCHEMA}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "response_format"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
    ),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"functions": []}, "functions"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"store": True}, "store"),
    ({"min_p": 0.1}, "min_p"),
]
COMPLETIONS = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [10**9]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"logprobs": 6}, "logprobs"),
    ({"messages": []}, "messages"),
    ({"prompt": ["发动机"] * 100, "n": 2}, "prompt"),
]
# (bytes of a body; a part of the message)
BODIES = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b'"x"', "JSON object"),
    (b"[]", "JSON object"),
    (b"\xff{}", "not UTF-8"),
    (DEEP.encode(), "nested"),
    (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested"),
    (b'{"temperature": NaN}', "NaN"),
    (b'{"temperature": -Infinity}', "Infinity"),
    (b'{"temperature": 1e999}', "range"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"model": "\\ud83d"}', "surrogate"),
    (b'{"model": "glm3", "\\udc00": 1}', "surrogate"),
]
# Bytes that are no HTTP; the status
RAW = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n", 400),
    "a header without a colon": (b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "headers of 100 kB": (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000, 400),
    "a negative length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
}


@pytest.fixture(scope="module")
def server():
    flags = ["--max_model_len", "512", "--max_new_tokens", "400", "--max_body_bytes", "200000"]
    with serving("glm3", *flags, key=KEY, body_seconds=1) as running:
        yield running


def error_of(response, status):
    """The error object of a response, which has nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert list(content) == ["error"] and set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["message"].endswith(".")
    return content["error"]


@pytest.mark.parametrize(("fields", "param"), CHAT, ids=[param + f"-{i}" for i, (_, param) in enumerate(CHAT)])
def test_chat_request(server, fields, param):
    error = error_of(server.chat(**fields), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert server.service.places.taken == 0


@pytest.mark.parametrize(("fields", "param"), COMPLETIONS, ids=[f"{p}-{i}" for i, (_, p) in enumerate(COMPLETIONS)])
def test_completion_request(server, fields, param):
    assert error_of(server.complete(**fields), 400)["param"] == param


@pytest.mark.parametrize(("body", "text"), BODIES, ids=[f"{text}-{i}" for i, (_, text) in enumerate(BODIES)])
def test_body(server, body, text):
    response = server.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert text in error_of(response, 400)["message"]


@pytest.mark.parametrize("case", RAW)
def test_what_is_not_http(server, case):
    sent, status = RAW[case]
    response = raw(server, sent)
    assert response.startswith(b"HTTP/1.1 %d " % status), response
    assert set(json.loads(response.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


def raw(server, sent, seconds=10):
    """The bytes that a server answers to some bytes, up to the end of the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
            head, _, body = received.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            if lengths and len(body) >= int(lengths[0].split(b":")[1]):
                break
    return received


def test_paths_and_methods(server):
    assert error_of(server.client.get("/v1/nothing"), 404)["param"] is None
    assert error_of(server.client.get("/"), 404)
    assert error_of(server.client.get("/v1/chat/completions"), 405)["message"].endswith("/completions: use POST.")
    assert server.client.get("/v1/chat/completions").headers["allow"] == "POST"
    assert error_of(server.client.post("/v1/models", json={}), 405)
    assert error_of(server.client.delete("/v1/models/glm3"), 405)


def test_models_that_do_not_exist(server):
    for response in (
        server.chat(model="gpt-4"), server.complete(model="x" * 1000), server.client.get("/v1/models/gpt-4"),
        server.client.get("/v1/models/../../etc/passwd"),
    ):  # fmt: skip
        if response.status_code == 404 and response.request.url.path.startswith("/v1"):
            assert error_of(response, 404)["code"] == "model_not_found"
        else:
            assert error_of(response, 404)
    assert error_of(server.client.post("/v1/completions", json={"prompt": "x"}), 400)["param"] == "model"


def test_keys(server):
    for given in (None, "", "Bearer", "Bearer wrong", KEY, f"bearer {KEY}", "Bearer é"):
        headers = {} if given is None else {b"authorization": given.encode()}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/nothing")):
            request = server.client.build_request(method, path)
            del request.headers["authorization"]
            request.headers = httpx.Headers([*request.headers.raw, *headers.items()], encoding="latin-1")
            response = server.client.send(request)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/metrics"):
        assert server.client.get(path, headers={"authorization": ""}).status_code == 200


def test_content_types(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonl", ""):
        response = server.client.post("/v1/completions", content=b"{}", headers={"content-type": kind})
        assert "application/json" in error_of(response, 415)["message"]
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    response = server.client.post("/v1/completions", content=b"{}", headers=headers)
    assert error_of(response, 415)


def test_bodies_that_are_too_large(server):
    """With and without their length in advance."""
    text = json.dumps({"model": "glm3", "prompt": "a" * 300_000}).encode()
    headers = {"content-type": "application/json"}
    chunks = (text[at : at + 1000] for at in range(0, len(text), 1000))
    for content in (text, chunks):
        response = server.client.post("/v1/completions", content=content, headers=headers)
        assert "200,000 bytes" in error_of(response, 413)["message"]
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-key\r\nContent-Type: application/json\r\n"
    )
    assert raw(server, head + b"Content-Length: 99999999999999999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_prompts_that_are_too_long(server):
    error = error_of(server.chat(messages=[{"role": "user", "content": "发动机水温高。" * 200}]), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert "512" in error["message"] and any(len(word) == 4 and word.isdigit() for word in error["message"].split())
    error = error_of(server.complete(prompt=[5] * 512), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    error = error_of(server.complete(prompt=[5] * 300, max_tokens=300), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "max_tokens" and "212" in error["message"]
    assert server.complete(prompt=[5] * 511, max_tokens=1).status_code == 200


def test_a_slow_body(server):
    """A client that sends half of its body gets 408 after a while, and others are answered meanwhile."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-key\r\nContent-Type: application/json\r\n"
    )
    began = time.monotonic()
    response = raw(server, head + b'Content-Length: 100\r\n\r\n{"model"')
    assert response.startswith(b"HTTP/1.1 408 ") and 0.9 < time.monotonic() - began < 5
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_slow_headers(server, monkeypatch):
    monkeypatch.setattr("serving.server.HEADER_SECONDS", 0.3)
    assert raw(server, b"GET /health HT").startswith(b"HTTP/1.1 408 ")
    assert raw(server, b"").startswith(b"HTTP/1.1 408 ")
    after_another = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert after_another.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_goes_while_sending(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert server.client.get("/health").status_code == 200
    wait_until(lambda: server.service.places.taken == 0)


def test_a_failed_model_is_not_healthy():
    """An engine whose thread has failed, here by a token that no request can have."""
    with serving("glm2") as running:
        running.model.engine.submit(Request([10**6], 1, frozenset()), print)
        wait_until(lambda: not running.model.engine.alive)
        error_of(running.client.get("/health"), 503)
        error_of(running.chat(), 503)
