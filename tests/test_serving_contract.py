"""OpenAI's description of its API, and our own: random requests after them, valid and invalid, and every response."""

import json
import typing

import pytest
import yaml

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import jsonschema_rs
import schemathesis
from hypothesis import HealthCheck, given, settings
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.schema import ChatRequest, CompletionRequest
from tests.launch import REPOSITORY
from tests.servers import serving

OFFICIAL = yaml.safe_load((REPOSITORY / "tests" / "fixtures" / "openai.yaml").read_text())
MODEL = "glm3"
SMALL = {  # so that an example takes milliseconds
    "model": {"enum": [MODEL]},
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 5},
    "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 5},
}
STREAMS = {"chat.completion.chunk": "CreateChatCompletionStreamResponse"}
# Valid data of ours may be a conversation that makes no sense, or more than fits.
EXCLUDED = [positive_data_acceptance]
quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server():
    with serving(MODEL, "--max_model_len", "1024", "--max_new_tokens", "8") as running:
        yield running


def validator(name):
    """Of a schema of the official description."""
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": OFFICIAL["components"]})


def small(description):
    """A description whose requests are for our model and a few tokens."""
    description = json.loads(json.dumps(description))
    for schema in description["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if {"model", "max_tokens"} <= properties.keys():
            properties.update({name: value for name, value in SMALL.items() if name in properties})
    return description


def check(case):
    """Send a request; its status is documented, and its content is as described."""
    response = case.call()
    assert response.status_code < 500, response.text
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        check_stream(response.content.decode())
        return
    case.validate_response(response, excluded_checks=EXCLUDED)
    if response.status_code != 200:
        validator("ErrorResponse").validate(response.json())


def check_stream(text):
    """Every chunk of a stream is as described."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        if chunk["object"] in STREAMS:
            validator(STREAMS[chunk["object"]]).validate(chunk)


def check_description(server, description, mode):
    """Send random requests of all operations that are valid after a description, or not."""
    schema = schemathesis.openapi.from_dict(small(description))
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 4
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue  # any text may be a model's name

        @quick
        @given(operation.as_strategy(generation_mode=mode))
        def send(case):
            check(case)

        send()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_official_description(server, mode):
    check_description(server, OFFICIAL, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_own_description(server, mode):
    check_description(server, server.client.get("/openapi.json").json(), mode)


def test_every_official_field_is_known():
    """All fields of the official client's types are supported or refused as unsupported, none as unknown."""
    for params, schema in (
        (chat_params.CompletionCreateParamsStreaming, ChatRequest),
        (completion_create_params.CompletionCreateParamsStreaming, CompletionRequest),
    ):
        names = set(typing.get_type_hints(params))
        assert names > {"model", "stream"} and names - set(schema.model_fields) == set()
    for name, operation in (
        ("CreateChatCompletionRequest", ChatRequest),
        ("CreateCompletionRequest", CompletionRequest),
    ):
        assert set(OFFICIAL["components"]["schemas"][name]["properties"]) <= set(operation.model_fields)


def test_responses_are_as_described(server):
    calls = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    for fields in ({}, {"logprobs": True, "top_logprobs": 2, "n": 2}, calls):
        whole = server.chat(max_tokens=8, **fields).json()
        validator("CreateChatCompletionResponse").validate(whole)
        check_stream(server.chat(max_tokens=8, stream=True, stream_options={"include_usage": True}, **fields).text)
    for fields in ({}, {"logprobs": 2, "n": 2}, {"echo": True}):
        validator("CreateCompletionResponse").validate(server.complete(max_tokens=4, **fields).json())
    validator("ListModelsResponse").validate(server.client.get("/v1/models").json())
    validator("ErrorResponse").validate(server.client.get("/v1/models/x").json())
