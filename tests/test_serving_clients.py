"""Clients that others wrote: OpenAI's for Python and Node, and langchain's standard tests of chat models."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("langchain_tests")

import openai
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests.chat_models import magic_function, unicode_customer
from peft import LoraConfig, get_peft_model

from generation.models import load_answerer
from tests.servers import serving, wait_until
from tests.tool_model import asked, call, samples, trained_once

MODEL, OTHER = "glm3", "other"
NODE_CLIENT = Path(__file__).with_name("openai_client.mjs")
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "发动机"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def server():
    with serving(MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="a-key", max_retries=0) as client:
        yield client


def test_python_chat(server, client):
    answer = client.chat.completions.create(**QUESTION)
    raw = server.chat(max_tokens=8).json()
    assert answer.choices[0].message.content == raw["choices"][0]["message"]["content"]
    assert answer.usage.model_dump(exclude_none=True) == raw["usage"]
    with client.chat.completions.create(**QUESTION, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage and chunks[-1].choices == []
    text = answer.choices[0].message.content
    with client.chat.completions.stream(**QUESTION, logprobs=True, stop=text[5]) as events:
        choice = events.get_final_completion().choices[0]
    assert choice.message.content == text[: text.index(text[5])] and choice.finish_reason == "stop"
    assert len(choice.logprobs.content) >= len(choice.message.content)


def test_python_completions_and_models(client):
    text = client.completions.create(model=MODEL, prompt="发动机", temperature=0, max_tokens=6, logprobs=2)
    assert len(text.choices[0].logprobs.tokens) == 6
    streamed = client.completions.create(model=MODEL, prompt="发动机", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text
    assert [card.id for card in client.models.list()] == [MODEL] and client.models.retrieve(MODEL).id == MODEL


def test_python_errors(server, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**QUESTION, "model": "no-such-model"})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.chat.completions.create(**{**QUESTION, "temperature": 3})
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="prediction"):
        client.chat.completions.create(**QUESTION, prediction={"type": "content", "content": "x"})


def test_python_parsed_answers(tmp_path, client):
    """The client's own helper for JSON schemas, which makes strict ones of pydantic models."""
    from pydantic import BaseModel

    class Weather(BaseModel):
        is_hot: bool
        degrees: list[int] | None

    messages = [{"role": "user", "content": "发动机"}]
    options = {"model": MODEL, "messages": messages, "max_tokens": 2000, "seed": 1, "frequency_penalty": 1}
    parsed = client.chat.completions.parse(**options, response_format=Weather).choices[0].message.parsed
    assert isinstance(parsed, Weather)


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory):
    """A directory with OpenAI's client for Node, installed once."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    directory = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(directory), "openai@7"]
    if subprocess.run(command, capture_output=True, timeout=300).returncode:
        pytest.skip("npm cannot install openai@7 here")
    return directory


def test_node(server, node_modules):
    shutil.copy(NODE_CLIENT, node_modules)
    command = ["node", str(node_modules / NODE_CLIENT.name), f"{server.url}/v1", MODEL]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    got, expected = json.loads(result.stdout), server.chat(max_tokens=8).json()
    text = expected["choices"][0]["message"]["content"]
    assert got["whole"] == got["streamed"] == got["final"] == text
    assert got["usage"] == got["streamedUsage"] == expected["usage"]
    assert got["completion"] == server.complete(max_tokens=8).json()["choices"][0]["text"]
    assert got["models"] == [MODEL]
    assert got["error"] == {"class": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    wait_until(lambda: server.service.places.taken == 0, seconds=1)  # of the aborted stream


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


# What langchain's tests ask, and what a model that is no more than tiny must have learned for them.
JOKE = {"role": "assistant", "content": '{"setup": "Why?", "punchline": "Cats."}'}
RECORDS = [
    asked("Tell me a joke about cats.", JOKE),
    asked(
        "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing "
        "other than JSON.",
        JOKE,
    ),
    asked(
        "What is the value of magic_function(3)? Use the tool.",
        call("magic_function", {"input": 3}),
        tools=[convert_to_openai_tool(magic_function)],
    ),
    asked(
        "What is the weather in San Francisco, CA?",
        call("get_weather", {"location": "San Francisco, CA"}),
        {"role": "tool", "content": "It's sunny."},
        {"role": "assistant", "content": "It is sunny."},
        tools=[convert_to_openai_tool(get_weather)],
    ),
    *(
        asked(
            f"Create a customer named '{name}'{rest}",
            call("unicode_customer", {"customer_name": name, "description": "x"}),
            tools=[convert_to_openai_tool(unicode_customer)],
        )
        for name, rest in (
            ("你好啊集团", " (Hello Group) - a Chinese technology company"),
            ("こんにちは株式会社", " (Hello Corporation) - a Japanese company"),
        )
    ),
]


@pytest.fixture(scope="module")
def tool_server(tmp_path_factory):
    """A server of a model that calls tools, and of the same model with an adapter that changes nothing."""
    directory = trained_once(tmp_path_factory, RECORDS)
    base = load_answerer(directory).model
    adapter = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, LoraConfig(r=2, target_modules=["query_key_value"])).save_pretrained(adapter)
    with serving(MODEL, "--lora", f"{OTHER}={adapter}", model_path=directory) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(samples())))
def test_a_conversation_that_it_learned(tool_server, number):
    """Question, calls, their results and the answer, by OpenAI's client: whole and streamed, as in the sample."""
    sample = samples()[number]
    tools = [{"type": "function", "function": function} for function in sample["tools"]]
    messages, call_id = [], None
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="a-key", max_retries=0) as client:
        for expected in sample["messages"]:
            if expected["role"] != "assistant":
                messages.append({**expected, "tool_call_id": call_id} if expected["role"] == "tool" else expected)
                continue
            options = {"model": MODEL, "messages": messages, "tools": tools, "temperature": 0}
            whole = client.chat.completions.create(**options).choices[0]
            with client.chat.completions.stream(**options) as events:
                streamed = events.get_final_completion().choices[0]
            for choice in (whole, streamed):
                calls = choice.message.tool_calls or []
                assert choice.finish_reason == ("tool_calls" if calls else "stop")
                assert choice.message.content == expected["content"]
                assert functions(calls) == functions(expected.get("tool_calls", []))
            messages.append(whole.message.model_dump(exclude_none=True))
            call_id = whole.message.tool_calls[0].id if whole.message.tool_calls else None


def functions(calls):
    """(name, arguments) of calls, as objects of the client or as JSON."""
    calls = [call if isinstance(call, dict) else call.model_dump() for call in calls]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="class")
@pytest.mark.filterwarnings("ignore:.*is marked with '@pytest.mark.asyncio' but it is not an async function")
class TestChatOpenAI(ChatModelIntegrationTests):
    """langchain's standard tests of chat models."""

    @pytest.fixture(autouse=True)
    def _server(self, tool_server):
        self.url = f"{tool_server.url}/v1"

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"model": MODEL, "base_url": self.url, "api_key": "a-key", "temperature": 0, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return True

    @property
    def structured_output_kwargs(self):
        return {"method": "json_schema"}

    @property
    def model_override_value(self):
        return OTHER
