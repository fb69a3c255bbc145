"""Answers over HTTP: those of predict.py, alone and among others; all fields; places are freed; limits hold."""

import json
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from conversation import messages_of, split_answer
from generation.answerer import answer
from generation.models import load_answerer
from generation.prediction import generation_config
from options.predict import GenerationOptions
from tests import golden
from tests.servers import serving, wait_until

MODES = ("glm", "glm2", "glm3")
TOKENS = 12
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module", params=MODES)
def server(request):
    with serving(request.param, "--max_model_len", "1024", "--max_num_seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def glm3():
    """Few places, and answers that would take minutes."""
    flags = ["--max_num_seqs", "2", "--max_queued_requests", "2", "--max_new_tokens", "8000", "--request_timeout", "30"]
    with serving("glm3", *flags) as running:
        yield running


def endless(running, **fields):
    """Fields of a request that does not end by itself."""
    bias = {str(index): -100 for index in running.model.stop_ids}
    return {"logit_bias": bias, "max_tokens": 7000, **fields}


def chunks_of(response):
    """The chunks of a streamed response, which ends as it must."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(chunks, index=0):
    """The text that the chunks of a choice amount to."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def predicted(mode, records, tokens=TOKENS):
    """The answers of predict.py."""
    answerer = load_answerer(golden.base_path(mode), precision="fp32")
    config = generation_config(answerer.mode, answerer.tokenizer, GenerationOptions(max_new_tokens=tokens))
    return [answer(answerer, [answerer.prompt_ids(record)], config)[0] for record in records]


def question(record):
    """The messages of a record before its answer, as a client sends them."""
    return split_answer({"messages": messages_of(record)})[0]


def test_answers_are_those_of_predict(server):
    """One after another, streamed, and all at once with others that sample."""
    records = golden.RECORDS
    expected = predicted(server.model.mode.name, records)
    asked = [{"messages": question(record), "max_tokens": TOKENS} for record in records]
    alone = [server.chat(**fields).json()["choices"][0]["message"]["content"] for fields in asked]
    assert alone == expected and any(expected)
    streamed = [text_of(chunks_of(server.chat(**fields, stream=True))) for fields in asked]
    assert streamed == expected
    with ThreadPoolExecutor(32) as pool:
        others = [pool.submit(server.chat, temperature=1.5, max_tokens=5 + i, stream=i % 2 == 0) for i in range(32)]
        together = list(pool.map(lambda fields: server.chat(**fields).json(), asked))
        assert all(other.result().status_code == 200 for other in others)
    assert [answer["choices"][0]["message"]["content"] for answer in together] == expected
    wait_until(lambda: server.service.places.taken == 0, seconds=1)  # given back just after the last byte


def test_completions_are_those_of_ready_prompts(server):
    prompts = ["发动机水温高", "hello", "a b"]
    records = [{"messages": [{"role": "user", "content": text}], "ready": True} for text in prompts]
    expected = predicted(server.model.mode.name, records)
    response = server.complete(prompt=prompts, max_tokens=TOKENS).json()
    assert [choice["text"] for choice in response["choices"]] == expected
    ids = [server.model.mode.prompt_ids(server.model.tokenizer, record) for record in records]
    by_ids = server.complete(prompt=ids, max_tokens=TOKENS).json()
    assert [choice["text"] for choice in by_ids["choices"]] == expected
    assert response["usage"] == by_ids["usage"] and response["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert server.complete(prompt=ids[0], max_tokens=TOKENS).json()["choices"][0]["text"] == expected[0]


def test_fields_of_a_response(server):
    response = server.chat(max_tokens=5, n=2, user="u", metadata={"a": "b"}, store=False, service_tier="auto").json()
    assert set(response) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert (response["object"], response["model"]) == ("chat.completion", server.model.name)
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    for choice in response["choices"]:
        assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
        assert choice["finish_reason"] == "length" and choice["logprobs"] is None
        assert set(choice["message"]) == {"role", "content", "refusal"} and choice["message"]["refusal"] is None
    usage = response["usage"]
    assert usage["completion_tokens"] == 10 and usage["total_tokens"] == 10 + usage["prompt_tokens"]


def test_chunks(server):
    chunks = chunks_of(server.chat(max_tokens=5, n=2, stream=True, stream_options={"include_usage": True}))
    whole = server.chat(max_tokens=5).json()
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    *with_choices, last = chunks
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in with_choices)
    for index in (0, 1):
        choices = [chunk["choices"][0] for chunk in with_choices if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant" and choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        assert text_of(chunks, index) == whole["choices"][0]["message"]["content"]
    assert all("usage" not in chunk for chunk in chunks_of(server.chat(max_tokens=2, stream=True)))


def reference_logprobs(mode, ids):
    """The model's log-probabilities of each next token [s, v], of one pass without a cache."""
    model = golden.shared_model(mode)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_logprobs(server):
    """Those of the model, whole and streamed; in the older format as well."""
    mode = server.model.mode
    fields = {"max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    whole = server.chat(**fields).json()["choices"][0]["logprobs"]
    assert whole["refusal"] is None
    chunks = [chunk["choices"][0] for chunk in chunks_of(server.chat(**fields, stream=True))]
    streamed = [entry for choice in chunks for entry in choice["logprobs"]["content"]]
    assert [entry["bytes"] for entry in streamed] == [entry["bytes"] for entry in whole["content"]]
    prompt = mode.prompt_ids(
        server.model.tokenizer, {"messages": [{"role": "user", "content": "发动机"}], "ready": False}
    )
    older = server.complete(prompt=prompt, max_tokens=6, logprobs=3).json()["choices"][0]
    ids = list(prompt)
    for entry, value, top in zip(
        whole["content"], older["logprobs"]["token_logprobs"], older["logprobs"]["top_logprobs"], strict=True
    ):
        row = reference_logprobs(mode.name, ids)[-1]
        ids.append(int(row.argmax()))
        assert bytes(entry["bytes"]) == server.model.token_bytes[ids[-1]]
        assert entry["token"] == bytes(entry["bytes"]).decode("utf-8", "replace")
        best = row.topk(3).values.tolist()
        assert [place["logprob"] for place in entry["top_logprobs"]] == pytest.approx(best, abs=1e-3)
        assert entry["logprob"] == pytest.approx(best[0], abs=1e-3) == value
        assert sorted(top.values(), reverse=True) == pytest.approx(best, abs=1e-3)
    names = older["logprobs"]["tokens"]
    assert older["logprobs"]["text_offset"] == [sum(map(len, names[:i])) for i in range(6)]
    assert server.complete(max_tokens=2, logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None


def test_seeds(server):
    fields = {"temperature": 1.5, "max_tokens": 8, "n": 2}
    first, again = (server.chat(**fields, seed=7).json()["choices"] for _ in range(2))
    assert first == again and first[0]["message"] != first[1]["message"]
    assert server.chat(**fields, seed=8).json()["choices"] != first
    assert server.chat(**fields, seed=-7).status_code == 200
    assert server.chat(**fields).json()["choices"] != server.chat(**fields).json()["choices"]


def test_no_probability_mass_is_greedy(server):
    greedy = server.chat(max_tokens=8).json()["choices"]
    for fields in ({"top_p": 0}, {"top_k": 1}, {"temperature": 0}):
        assert server.chat(**{"temperature": 2, "max_tokens": 8, **fields}).json()["choices"] == greedy


def test_stop_strings(server):
    text = server.chat(max_tokens=12).json()["choices"][0]["message"]["content"]
    stop = text[4:6]
    for fields in ({"stop": stop}, {"stop": ["never in it", stop]}):
        choice = server.chat(max_tokens=12, **fields).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        assert text_of(chunks_of(server.chat(max_tokens=12, stream=True, **fields))) == text[: text.index(stop)]


def test_bias_and_penalties(server):
    favorite = server.model.tokenizer.encode_texts(["发动机"])[0][-1]
    content = server.chat(max_tokens=5, logit_bias={str(favorite): 100}).json()["choices"][0]["message"]["content"]
    assert content.count(server.model.token_bytes[favorite].decode()) == 5
    varied = server.chat(max_tokens=5, logit_bias={str(favorite): 5}, presence_penalty=2, frequency_penalty=2)
    assert varied.json()["choices"][0]["message"]["content"] != content
    assert server.chat(max_tokens=5, repetition_penalty=1.5).status_code == 200


def test_echo(server):
    text = server.complete(max_tokens=4).json()["choices"][0]["text"]
    assert server.complete(max_tokens=4, echo=True).json()["choices"][0]["text"] == "发动机" + text
    chunks = chunks_of(server.complete(max_tokens=4, echo=True, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "发动机" + text
    assert chunks[0]["object"] == "text_completion" and chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_content_in_parts(server):
    parts = [{"type": "text", "text": "发动"}, {"type": "text", "text": "机"}]
    whole = server.chat(max_tokens=6).json()
    assert (
        server.chat(max_tokens=6, messages=[{"role": "user", "content": parts}]).json()["choices"] == whole["choices"]
    )


@pytest.mark.parametrize("schema", [None, {"type": "object", "properties": {"城市": {"enum": ["北京", "上海"]}},
                                           "required": ["城市"], "additionalProperties": False}])  # fmt: skip
def test_json_answers(server, schema):
    response_format = {"type": "json_object"}
    if schema:
        response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    fields = {"response_format": response_format, "max_tokens": 300, "temperature": 1, "seed": 3, "n": 3}
    for choice in server.chat(**fields).json()["choices"]:
        if choice["finish_reason"] == "stop":  # a random model may write an endless object
            value = json.loads(choice["message"]["content"])
            assert isinstance(value, dict)
            assert not schema or value["城市"] in schema["properties"]["城市"]["enum"]
    assert not schema or choice["finish_reason"] == "stop"


def test_metrics(server):
    def read():
        lines = [line.rsplit(" ", 1) for line in server.client.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before = read()
    usage = server.chat(max_tokens=6, n=2).json()["usage"]
    after = read()
    label = f'{{model_name="{server.model.name}"}}'
    gained = {name: after[f"vllm:{name}{label}"] - before[f"vllm:{name}{label}"] for name in (
        "prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count",
        "time_to_first_token_seconds_count",
    )}  # fmt: skip
    assert list(gained.values()) == [usage["prompt_tokens"], 12, 1, 1]
    states = [f"vllm:num_requests_{state}{label}" for state in ("running", "waiting")]
    wait_until(lambda: [read()[state] for state in states] == [0, 0])
    ends = f'vllm:request_success_total{{finished_reason="length",model_name="{server.model.name}"}}'
    assert after[ends] - before.get(ends, 0) == 2


def test_default_temperature(tmp_path, server):
    """1 as in OpenAI's API: two answers differ; a flag and generation_config.json change it."""
    assert server.model.defaults == {"temperature": 1, "top_p": 1, "top_k": 0, "repetition_penalty": 1}
    body = {"model": server.model.name, "prompt": "发动机", "max_tokens": 12}
    texts = {server.client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1


def test_places_of_clients_that_go_are_free_at_once(glm3):
    engine = glm3.model.engine
    for stream in (True, False):
        host, port = glm3.url.removeprefix("http://").split(":")
        body = json.dumps(
            {"model": "glm3", "messages": [{"role": "user", "content": "a"}], **endless(glm3, stream=stream)}
        ).encode()
        head = HEAD % len(body)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: engine.running == 1)
        wait_until(lambda: glm3.service.places.taken == 0, seconds=0.5)
        wait_until(lambda: engine.running == 0, seconds=2)


def test_a_full_queue(glm3):
    """Two run, two wait, the fifth is refused; once they have gone there is a place again."""
    with ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def hold():
            body = {"model": "glm3", "messages": [{"role": "user", "content": "a"}], **endless(glm3, stream=True)}
            with glm3.client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                stop.wait(20)

        held = [pool.submit(hold) for _ in range(4)]
        wait_until(lambda: glm3.model.engine.running == glm3.model.engine.waiting == 2)
        refused = glm3.chat(max_tokens=1)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert glm3.chat(n=5).status_code == 400
        stop.set()
        for each in held:
            each.result()
    wait_until(lambda: glm3.service.places.taken == 0)
    assert glm3.chat(max_tokens=1).status_code == 200


def test_a_slow_reader_does_not_hold_others(glm3):
    """One client reads nothing of a long answer: it is generated to its end and frees its place in the engine."""
    fields = endless(glm3, max_tokens=150, n=2, stream=True, logprobs=True, top_logprobs=20)  # megabytes of chunks
    body = json.dumps({"model": "glm3", "messages": [{"role": "user", "content": "a"}], **fields}).encode()
    host, port = glm3.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = HEAD % len(body)
        connection.sendall(head.encode() + body)
        wait_until(lambda: glm3.model.engine.running == 2)
        wait_until(lambda: glm3.model.engine.running == 0, seconds=30)
        assert glm3.service.places.taken == 2  # its response is not read yet
        assert glm3.chat(max_tokens=3).status_code == 200
    wait_until(lambda: glm3.service.places.taken == 0, seconds=2)


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_take_too_long(stream):
    with serving("glm3", "--request_timeout", "0.5", "--max_new_tokens", "8000") as running:
        response = running.chat(**endless(running, stream=stream))
        if not stream:
            assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
        else:
            assert response.status_code == 200 and "[DONE]" not in response.text
            last = response.text.strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait_until(lambda: running.model.engine.running == running.service.places.taken == 0)


def test_adapters_have_names(tmp_path):
    """Adapters of one base answer under their names, each as it does alone."""
    for name in ("a", "b"):
        config = LoraConfig(r=4, target_modules=["query_key_value"], init_lora_weights=False)
        get_peft_model(golden.load_model("glm3"), config).save_pretrained(tmp_path / name)
    flags = [word for name in ("a", "b") for word in ("--lora", f"{name}={tmp_path / name}")]
    with serving("glm3", *flags) as running:
        cards = running.client.get("/v1/models").json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [("glm3", None), ("a", "glm3"), ("b", "glm3")]
        answers = {name: running.chat(model=name, max_tokens=8).json() for name in ("glm3", "a", "b")}
        texts = {answer["choices"][0]["message"]["content"] for answer in answers.values()}
        assert len(texts) == len({answer["system_fingerprint"] for answer in answers.values()}) == 3
        assert all(answer["model"] == name for name, answer in answers.items())


def test_draining(glm3):
    """New requests get 503, /health as well; a finite number is JSON in any case."""
    glm3.service.draining = True
    try:
        for response in (glm3.chat(max_tokens=1), glm3.client.get("/health"), glm3.client.get("/v1/models")):
            assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
            assert int(response.headers["retry-after"]) > 0
    finally:
        glm3.service.draining = False
    assert math.isfinite(
        glm3.chat(max_tokens=1, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["logprob"]
    )


def test_an_engine_that_has_stopped():
    with serving("glm3") as running:
        running.model.engine.close()
        response = running.chat(max_tokens=2)
        assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
        assert running.service.places.taken == 0
