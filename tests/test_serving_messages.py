"""serving/messages.py: chat requests as records, whose prompts are those of the same records in files."""

import json

import pytest

pytest.importorskip("fastapi")

from data.formats import ANY, normalize
from modes import MODES
from serving.errors import ApiError
from serving.messages import to_record
from serving.schema import ChatRequest, check
from tests import golden

USER = {"role": "user", "content": "查一下轴承的库存。"}
ANSWER = {"role": "assistant", "content": "还有4个。"}
CALL = {"id": "c", "type": "function", "function": {"name": "query_stock", "arguments": '{"part": "轴承"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"count": 4}', "tool_call_id": "c"}
TOOL = {
    "type": "function",
    "function": {"parameters": {"type": "object", "properties": {"part": {"type": "string"}}}, "name": "query_stock",
                 "description": "查询备件库存", "strict": True},
}  # fmt: skip


def record_of(messages, mode="glm3", **fields):
    """The record of a request."""
    return to_record(check(ChatRequest, {"model": mode, "messages": messages, **fields}), MODES[mode])


def prompt(record, mode):
    """The ids of a record's prompt."""
    return MODES[mode].prompt_ids(golden.tokenizer(mode), record)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "你是助手。"}, USER],
        [USER, ANSWER, USER],
        [{"role": "system", "content": "你是助手。"}, USER, ANSWER, USER, ANSWER, USER],
        [ANSWER, USER],
    ],
    ids=["question", "system", "history", "long", "greeting"],
)
def test_prompts_are_those_of_records_in_files(mode, messages):
    read = normalize({"messages": messages}, "file:1", ANY, require_output=False)
    assert prompt(record_of(messages, mode), mode) == prompt(read, mode)


@pytest.mark.parametrize("messages", [[USER], [USER, CALLING, RESULT], [USER, CALLING, RESULT, ANSWER, USER]])
def test_prompts_with_tools_are_those_of_records_in_files(messages):
    read = normalize({"messages": messages, "tools": [TOOL]}, "file:1", ANY, require_output=False)
    record = record_of(messages, tools=[TOOL])
    assert prompt(record, "glm3") == prompt(read, "glm3")
    without = record_of(messages, tools=[TOOL], tool_choice="none")
    assert "tools" not in without["messages"][0] and prompt(without, "glm3") != prompt(record, "glm3")


def test_roles_and_content():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = record_of([{"role": "developer", "content": parts}, {"role": "user", "content": parts, "name": "x"}])
    assert record["messages"] == [{"role": "system", "content": "ab"}, {"role": "user", "content": "ab"}]


def test_messages_of_one_role_in_a_row():
    """Those of the system and of the user become one; a call stays apart from the text before it."""
    system, again = {"role": "system", "content": "s"}, {"role": "user", "content": "?"}
    both = {**CALLING, "content": "我查一下。", "tool_calls": [CALL, CALL]}
    record = record_of([system, system, USER, again, both, RESULT, RESULT])
    assert [(m["role"], m["content"]) for m in record["messages"]] == [
        ("system", "s\ns"),
        ("user", "查一下轴承的库存。\n?"),
        ("assistant", "我查一下。"),
        ("assistant", ""),
        ("assistant", ""),
        ("observation", '{"count": 4}'),
        ("observation", '{"count": 4}'),
    ]


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_generations_without_tools(mode):
    for messages, fields in (([USER], {"tools": [TOOL]}), ([USER, CALLING, RESULT], {})):
        with pytest.raises(ApiError, match=MODES[mode].title) as refused:
            record_of(messages, mode, **fields)
        assert refused.value.status == 400 and refused.value.param in ("tools", "messages")


def test_errors_have_places():
    broken = {**CALLING, "tool_calls": [CALL, {**CALL, "function": {"name": "f", "arguments": "[1]"}}]}
    with pytest.raises(ApiError) as refused:
        record_of([USER, broken, RESULT])
    assert refused.value.param == "messages[1].tool_calls[1].function.arguments"
    assert json.dumps(refused.value.content)
