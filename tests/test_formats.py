"""data/formats.py and conversation.py: every format becomes the same conversation."""

import json

import pytest

from conversation import answers_apart, as_read, asked, is_ready, messages_of, reference, split_answer
from data.formats import Columns, is_ordinary, normalize
from data.records import read_records
from errors import UserError
from modes.glm3.calls import CALLS

QUESTION, ANSWER = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
EARLIER = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}]
SYSTEM = {"role": "system", "content": "你是助手"}
TOOLS = [{"name": "get_weather", "parameters": {"type": "object"}}]
CALL = {"role": "assistant", "metadata": "get_weather", "content": "```python\ntool_call(city='北京')\n```"}
SEEN = {"role": "observation", "content": '{"t": 3}'}


def read(value, **columns):
    return CALLS.written(normalize(value, "f:1", Columns(**columns), require_output=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "问", "output": "答"}, [QUESTION, ANSWER]),
        ({"instruction": "问", "input": "", "output": "答", "history": [], "system": ""}, [QUESTION, ANSWER]),
        (
            {"instruction": "问", "output": "答", "history": [["早", "早上好"]], "system": "你是助手"},
            [SYSTEM, *EARLIER, QUESTION, ANSWER],
        ),
        ({"instruction": "问", "output": "答", "history": EARLIER}, [*EARLIER, QUESTION, ANSWER]),
        ({"prompt": "问", "response": "答"}, [QUESTION, ANSWER]),
        ({"prompt": "问", "response": "答", "history": [["早", "早上好"]]}, [*EARLIER, QUESTION, ANSWER]),
        ({"context": "问", "target": "答"}, [QUESTION, ANSWER]),
        ({"messages": [SYSTEM, *EARLIER, QUESTION, ANSWER]}, [SYSTEM, *EARLIER, QUESTION, ANSWER]),
        ({"conversations": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, [QUESTION, ANSWER]),
        (
            {"system": "你是助手", "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
            [SYSTEM, QUESTION, ANSWER],
        ),
    ],
)
def test_formats(value, expected):
    record = read(value)
    assert messages_of(record) == expected
    assert (reference(record), asked(record)) == ("答", "问")
    assert is_ready(record) == ("context" in value)
    assert {**as_read(record), "input": ""} == {**value, "input": ""}


def test_columns_and_prefix():
    value = {"content": "问", "summary": "答", "turns": [["早", "早上好"]]}
    record = read(value, prompt="content", response="summary", history="turns", prefix="摘要：")
    assert messages_of(record) == [*EARLIER, {"role": "user", "content": "摘要：问"}, ANSWER]
    assert messages_of(read({"instruction": "问", "output": "答"}, prefix="请"))[0]["content"] == "请问"
    with pytest.raises(UserError, match='^f:1: "text" is missing'):
        read(value, prompt="text", response="summary")


@pytest.mark.parametrize(
    "turns",
    [
        [CALL, SEEN],
        [{"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}, "observation": {"t": 3}}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}],
            },
            {"role": "tool", "content": '{"t": 3}'},
        ],
        [
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "北京"}}'},
            {"from": "observation", "value": '{"t": 3}'},
        ],
    ],
    ids=["as written", "ChatGLM3", "OpenAI", "ShareGPT"],
)
def test_tool_calls(turns):
    record = read({"tools": TOOLS, "conversations": [QUESTION, *turns, ANSWER]})
    system, question, call, seen, answer = messages_of(record)
    assert (question, call, seen, answer) == (QUESTION, CALL, SEEN, ANSWER)
    assert system["role"] == "system" and system["content"].endswith(json.dumps(TOOLS, indent=4, ensure_ascii=False))
    parts = list(answers_apart(record))
    assert [reference(part) for part in parts] == [f"get_weather\n{CALL['content']}", "答"]
    assert split_answer(parts[0]) == ([system, QUESTION], CALL)


def test_a_tool_is_described_alike_whether_wrapped_or_not():
    wrapped = [{"type": "function", "function": {**tool, "strict": True}} for tool in TOOLS]
    expected = read({"tools": TOOLS, "messages": [QUESTION, ANSWER]})["messages"]
    assert read({"tools": wrapped, "messages": [QUESTION, ANSWER]})["messages"] == expected
    assert read({"messages": [{**expected[0], "content": ""}, QUESTION, ANSWER]})["messages"][0]["tools"] == TOOLS


def test_what_is_asked_need_not_be_answered():
    record = normalize({"messages": [QUESTION]}, "f:1", Columns(), require_output=False)
    assert split_answer(record) == ([QUESTION], None) and reference(record) is None
    with pytest.raises(UserError, match="the last message is from user"):
        read({"messages": [QUESTION]})


def test_a_file_may_mix_formats(tmp_path):
    path = tmp_path / "mixed.json"
    values = [
        {"prompt": "问", "response": "答"},
        {"messages": [QUESTION, ANSWER]},
        {"instruction": "问", "output": "答"},
    ]
    path.write_text(json.dumps(values))
    assert [messages_of(record) for _, record in read_records(path)] == [[QUESTION, ANSWER]] * 3


def test_ordinary_records_stay_as_they_are():
    for value, ordinary in (
        ({"instruction": "a", "input": "", "output": "b"}, True),
        ({"output": "b", "input": "c", "instruction": "a"}, True),
        ({"output": "b", "input": "c", "instruction": ""}, False),
        ({"output": "", "input": "", "instruction": "a"}, True),
        ({"output": "b", "input": "<image>", "instruction": "a"}, False),
        ({"instruction": "a", "output": "b"}, False),
        ({"instruction": "a", "input": None, "output": "b"}, False),
        ({"instruction": "a", "input": "", "output": "b", "id": "c"}, False),
        ({"instruction": "a", "input": "", "output": "\ud83d"}, False),
        ({"instruction": "a", "query": "", "output": "b"}, False),
        (["instruction", "input", "output"], False),
        (None, False),
    ):
        assert is_ordinary(value) is ordinary
        if ordinary:
            read = normalize(value, "a.json:1", Columns(), require_output=True)
            assert read == value and list(read) == list(value)
