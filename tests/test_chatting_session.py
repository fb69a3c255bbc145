"""The conversation of a chat: undo, tools, and files of training records."""

import json

import pytest

from chatting.session import Session
from data.formats import ANY, normalize
from data.records import read_records
from errors import UserError
from modes import MODES
from tests import golden

TOOLS = [{"name": "query_stock", "description": "查询库存", "parameters": {"type": "object", "properties": {}}}]
CALL = "query_stock\n```python\ntool_call(part='轴承')\n```"


def session(mode="glm3", *texts, **options):
    """A session whose questions and answers alternate."""
    result = Session(MODES[mode], **options)
    for i, text in enumerate(texts):
        (result.answer if i % 2 else result.ask)(text)
    return result


def with_call(**options):
    result = session("glm3", **options)
    result.tools = TOOLS
    result.ask("轴承还有几个？")
    result.answer(CALL)
    result.observe('{"count": 3}')
    result.answer("还有3个。")
    return result


@pytest.mark.parametrize("mode", MODES)
def test_the_first_prompt_is_that_of_a_single_question(mode):
    pair = {"instruction": "水泵渗漏", "input": ""}
    tokenizer = golden.tokenizer(mode)
    assert MODES[mode].prompt_ids(tokenizer, session(mode, "水泵渗漏").record()) == MODES[mode].prompt_ids(
        tokenizer, pair
    )
    prefixed = session(mode, "水泵渗漏", prefix="抽取：").record()
    pair["instruction"] = "抽取：水泵渗漏"
    assert MODES[mode].prompt_ids(tokenizer, prefixed) == MODES[mode].prompt_ids(tokenizer, pair)


def test_undo_and_reopen():
    talk = session("glm2", "一", "1", "二", "2")
    assert talk.reopen() and talk.messages[-1] == {"role": "user", "content": "二"}
    assert talk.undo() and [message["content"] for message in talk.messages] == ["一", "1"]
    assert talk.undo() and not talk.undo() and not talk.reopen() and talk.messages == []


def test_undo_of_a_call_removes_its_result_too():
    talk = with_call()
    assert talk.undo() and talk.messages == []


def test_a_call_is_a_message_of_its_own_kind():
    call = with_call().messages[1]
    assert call == {
        "role": "assistant", "content": "```python\ntool_call(part='轴承')\n```", "metadata": "query_stock",
    }  # fmt: skip
    talk = session("glm3", "轴承还有几个？", CALL)
    assert talk.messages[1] == {"role": "assistant", "content": CALL}, "without tools it is an answer as any other"


@pytest.mark.parametrize("system", ["", "你是助手。"])
@pytest.mark.parametrize("kind", ["call", "glm", "glm2", "glm3"])
def test_what_is_saved_is_read_for_training_and_loaded(kind, system, tmp_path):
    make = {"call": with_call}.get(kind, lambda **options: session(kind, "你好", "您好 😀", "a\nb", "\n", **options))
    file = tmp_path / "chats.jsonl"
    first, second = session("glm3", "一", "1"), make(system=system)
    file.write_text(json.dumps(first.as_object()))  # without a line end
    second.save(file)
    (_, before), (_, record) = read_records(file)
    assert before["messages"] == first.record()["messages"]
    assert record["messages"] == second.record()["messages"]
    assert record["messages"][-1]["role"] == "assistant"
    loaded = Session(second.mode)
    loaded.load(file)
    assert (loaded.system or system, loaded.tools) == (system or loaded.system, second.tools)
    assert loaded.messages == second.messages
    assert loaded.record()["messages"] == second.record()["messages"]
    tokenizer = golden.tokenizer(second.mode.name)
    assert loaded.reopen() and second.reopen()
    assert second.mode.prompt_ids(tokenizer, loaded.record()) == second.mode.prompt_ids(tokenizer, second.record())


def test_a_record_of_another_format_is_loaded(tmp_path):
    file = tmp_path / "record.json"
    file.write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    talk = Session(MODES["glm2"])
    talk.load(file)
    assert talk.messages == [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]


def test_a_call_as_an_object_is_loaded_as_text(tmp_path):
    call = {"function": {"name": "query_stock", "arguments": {"part": "轴承"}}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"messages": messages, "tools": TOOLS}))
    talk = Session(MODES["glm3"])
    talk.load(file)
    assert talk.messages[1] == with_call().messages[1] and talk.tools == TOOLS
    expected = normalize({"messages": messages, "tools": TOOLS}, "", ANY, require_output=True)
    assert talk.record()["messages"] == MODES["glm3"].written(expected)["messages"]


def test_what_cannot_be_saved_or_loaded(tmp_path):
    file = tmp_path / "array.json"
    file.write_text("[1]")
    for talk, path, words in (
        (session("glm2"), file, "does not end with an answer"),
        (session("glm2", "a"), file, "does not end with an answer"),
        (session("glm2", "a", "b"), file, "holds no lines of JSON"),
        (session("glm2", "a", "b"), tmp_path, "cannot be written"),
        (session("glm2", "a", "b"), tmp_path / "none" / "file", "cannot be written"),
    ):
        with pytest.raises(UserError, match=words):
            talk.save(path)
    assert file.read_text() == "[1]"
    tools = tmp_path / "tools.jsonl"
    with_call().save(tools)
    ready = tmp_path / "ready.jsonl"
    ready.write_text(json.dumps({"context": "a", "target": "b"}))
    for path, words in (
        (tools, "message from observation|tool call"),
        (ready, "complete prompt"),
        (file, "array.json"),
    ):
        talk = session("glm2", "a", "b")
        with pytest.raises(UserError, match=words):
            talk.load(path)
        assert len(talk.messages) == 2


def test_halves_of_surrogate_pairs_are_replaced(tmp_path):
    talk = session("glm3", "a\ud83d", "b")
    talk.save(tmp_path / "file.jsonl")
    assert talk.messages[0]["content"] == "a\ufffd"
