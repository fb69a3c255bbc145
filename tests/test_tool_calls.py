"""serving/tool_calls.py: a streamed call is the whole call, however its tokens arrive, and nonsense is content."""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conversation import as_read
from data.records import read_records
from generation.stream import AnswerStream
from modes import MODES
from serving.messages import to_record
from serving.schema import ChatRequest
from serving.tool_calls import CallWriter, read_call
from tests import golden
from tests.launch import REPOSITORY
from tests.test_modes_calls import VALUES

MODE, TOKENIZER = MODES["glm3"], golden.tokenizer("glm3")
NAMES = st.one_of(st.sampled_from(["get_weather", "查询-1", "f"]), st.from_regex(r"[a-zA-Z0-9_-]{1,9}", fullmatch=True))
KEYS = st.one_of(st.sampled_from(["city", "from", "城市", "a b", "it's", ""]), st.text(max_size=3))
NONSENSE = [
    "f\n```python\ntool_call(a=1, a=2)\n```",
    "f\n```python\ntool_call(a=1, b=open('x'))\n```",
    "f\n```python\ntool_call(a=1, b={1, 2})\n```",
    "f\n```python\ntool_call(a=1, b=b'x', c=2)\n```",
    "f\n```python\ntool_call(a=1e999)\n```",
    "f\n```python\ntool_call(1, a=2)\n```",
    "f\n```python\ntool_call(a=1)(b=2)\n```",
    "f\n```python\ntool_call(a=1\n```",
    "f\n```python\ntool_call(a=1)\n```\n再见",
    "f\n```python\nprint(1, 2)\n```",
    "f\n```python\nimport os\n\nos.remove('x')\n```\n如上。",
    "f\n```python\n",
    "f\n```pyth",
    "f",
    "",
    "\n 你好，get_weather\n```python\ntool_call(a=1)\n```",
    "\nget_weather\n```python\ntool_call(a=1)\n```",
    "今天天气很好。",
]
CODE = [*"(){}[],='\"\\# \n1ab", "tool_call(", "a=", "'x'", "**{", "\n```", "城"]
UNUSUAL = {
    "f\n```python\ntool_call()\n```": {},
    "f\n```python\ntool_call( a = 1 , )\n```": {"a": 1},
    "f\n```python\n  tool_call (a=1, b='x')\n```": {"a": 1, "b": "x"},
    "f\n```python\n(tool_call(a=(1, 2)))\n```": {"a": [1, 2]},
    "f\n```python\n# 说明, it's\ntool_call(a=1)\n```": {"a": 1},
    "f\n```python\ntool_call(a=1, # it's, b=3\n c=2)\n```": {"a": 1, "c": 2},
    "f\n```python\ntool_call(a='''it's, \"b\"''', c='x' ', y')\n```": {"a": 'it\'s, "b"', "c": "x, y"},
    "f\n```python\ntool_call(a='\\'), b=1', c=[{'d': ')'}, 2])\n```": {"a": "'), b=1", "c": [{"d": ")"}, 2]},
    "f\n```python\ntool_call(a='\\ud83d', **{'from': {1: None}})\n```": {"a": "\ud83d", "from": {"1": None}},
    "f\n```python\ntool_call(a=1)": {"a": 1},
}


def as_request(value, count):
    """The first messages of a sample as a request of OpenAI's API."""
    messages, called = [], ""
    for number, message in enumerate(value["messages"][:count]):
        calls = [{**call, "id": f"call_{number}_{i}"} for i, call in enumerate(message.get("tool_calls", []))]
        called = calls[-1]["id"] if calls else called
        more = {"tool_calls": calls} if calls else {"tool_call_id": called} if message["role"] == "tool" else {}
        messages.append({**message, **more})
    tools = [{"type": "function", "function": tool} for tool in value["tools"]]
    return ChatRequest.model_validate({"model": "m", "messages": messages, "tools": tools})


def test_a_served_prompt_is_the_trained_one():
    """The messages of a sample are those of its record one by one, because no message has text and a call."""
    seen = 0
    for _, record in read_records(REPOSITORY / "data" / "samples" / "tool_calls.json"):
        value = as_read(record)
        if "tools" not in value:
            continue
        for count, message in enumerate(value["messages"]):
            if message["role"] != "assistant":
                continue
            trained = {**record, "messages": record["messages"][: count + 1]}
            ids = MODE.encode(TOKENIZER, trained, 4096, 4096)["input_ids"]
            served = MODE.prompt_ids(TOKENIZER, to_record(as_request(value, count), MODE))
            assert ids[: len(served)] == served == MODE.prompt_ids(TOKENIZER, trained)
            seen += 1
    assert seen > 60


def writer(whole=False):
    return CallWriter(AnswerStream(MODE, TOKENIZER), MODE.calls, whole)


def deltas_of(parts, whole=False):
    """(deltas of an answer whose ids come in parts, whether it calls a tool)"""
    written = writer(whole)
    deltas = [delta for part in parts for delta in written.feed(part)] + written.finish()
    return deltas, written.calls


def joined(deltas):
    """(content, name of the call, its arguments in JSON) that deltas amount to; checks the form of a call's deltas."""
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    content = "".join(delta.get("content", "") for delta in deltas)
    assert all(delta.keys() in ({"content"}, {"tool_calls"}) for delta in deltas)
    if not calls:
        return content, None, None
    head, *rest = calls
    assert head["id"].startswith("call_") and len(head["id"]) == 29 and head["function"]["arguments"] == ""
    assert {key: head[key] for key in head if key not in ("id", "function")} == {"index": 0, "type": "function"}
    assert all(call == {"index": 0, "function": {"arguments": call["function"]["arguments"]}} for call in rest)
    return content, head["function"]["name"], "".join(call["function"]["arguments"] for call in rest)


def answer_ids(text):
    """Ids of an answer that is a text, or of a call as training writes it."""
    name, line_end, content = text.partition("\n")
    if line_end and content.startswith("```"):
        return sum(TOKENIZER.encode_texts([name + "\n", content], num_threads=1), [])
    return TOKENIZER.encode_texts([text], num_threads=1)[0]


def chunked(ids, seed):
    """Ids in random parts, or one by one."""
    pick, parts = random.Random(seed), []
    while ids:
        size = pick.choice([1, 1, 2, 3, 7]) if seed else 1
        parts.append(ids[:size])
        ids = ids[size:]
    return parts


@settings(max_examples=300, deadline=None)
@given(NAMES, st.dictionaries(KEYS, VALUES, max_size=4), st.integers(0, 9))
@example("查询", {"城市": "北京，'海淀'", "from": [{"a": ["b,)", None]}, 1.5]}, 0)
def test_random_calls(name, arguments, seed):
    message = MODE.calls.write({"name": name, "arguments": arguments})
    ids = answer_ids(f"{message['metadata']}\n{message['content']}")
    expected = read_call(MODE.calls, MODE.answer_text(TOKENIZER, ids))
    deltas, calls = deltas_of(chunked(ids, seed))
    whole, whole_calls = deltas_of(chunked(ids, seed), whole=True)
    assert joined(deltas) == joined(whole) and calls and whole_calls
    content, called, text = joined(deltas)
    assert (content, called) == ("", name)
    assert json.loads(text) == json.loads(json.dumps(expected[1])) and text == text.strip()
    if seed == 0 and arguments:
        assert len(deltas) == len(arguments) + 2


@pytest.mark.parametrize("text, arguments", UNUSUAL.items())
def test_unusual_calls(text, arguments):
    ids = answer_ids(text)
    for cut in range(len(ids) + 1):
        for parts in ([ids[:cut], ids[cut:]], [[i] for i in ids[:cut]] + [ids[cut:]]):
            deltas, calls = deltas_of(parts)
            content, name, given = joined(deltas)
            assert (content, name, json.loads(given), calls) == ("", "f", arguments, True)


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_content(text):
    ids = answer_ids(text)
    expected = MODE.answer_text(TOKENIZER, ids)
    for cut in range(len(ids) + 1):
        deltas, calls = deltas_of([[i] for i in ids[:cut]] + [ids[cut:]])
        whole, whole_calls = deltas_of([ids[:cut], ids[cut:]], whole=True)
        assert joined(deltas)[0] == expected and not calls and not whole_calls
        assert joined(whole) == (expected, None, None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(CODE), max_size=25), st.integers(0, 9))
def test_random_code(parts, seed):
    ids = answer_ids("f\n```python\n" + "".join(parts))
    deltas, calls = deltas_of(chunked(ids, seed))
    whole, whole_calls = deltas_of([ids], whole=True)
    content, name, arguments = joined(whole)
    assert calls == whole_calls
    assert joined(deltas)[0] == content
    if calls:
        assert joined(deltas)[1:] == (name, arguments)


def test_text_streams_as_soon_as_it_is_no_call():
    ids = answer_ids("\n 今天天气很好。")
    deltas, _ = deltas_of([[i] for i in ids])
    assert len(deltas) >= 6
    written = writer()
    ids = answer_ids("f\n```python\nprint(1)\n```")
    early = [delta for i in ids[:-3] for delta in written.feed([i])]
    assert joined(early)[0].startswith("f\n```python\nprint")


def test_a_call_begins_before_its_arguments():
    written, seen = writer(), []
    text = "查询\n```python\ntool_call(a='北京', b=[1, 2], **{'from': 1, 'to': 2})\n```"
    for i in answer_ids(text):
        seen += [call["function"] for delta in written.feed([i]) for call in delta["tool_calls"]]
    assert seen[0] == {"name": "查询", "arguments": ""}
    assert [part["arguments"] for part in seen[1:]] == ['{"a": "北京"', ', "b": [1, 2]', ', "from": 1', ', "to": 2']
    assert written.finish() == [{"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}]


def test_every_call_has_its_own_id():
    ids = answer_ids("f\n```python\ntool_call()\n```")
    assert len({deltas_of([ids])[0][0]["tool_calls"][0]["id"] for _ in range(50)}) == 50


def test_a_stop_string_ends_the_call():
    stream = AnswerStream(MODE, TOKENIZER, stop=["b="])
    written = CallWriter(stream, MODE.calls)
    ids = answer_ids("f\n```python\ntool_call(a=1, b=2)\n```")
    deltas = [delta for i in ids for delta in written.feed([i])] + written.finish()
    assert written.stopped and not written.calls
    assert joined(deltas)[0] == "f\n```python\ntool_call(a=1, "
