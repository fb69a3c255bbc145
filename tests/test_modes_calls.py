"""modes/calls.py and modes/glm3/calls.py: what is written is read back, and only the generations with tools have it."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversation import calls_tool, has_empty_answer, messages_of, reference, unsuited
from data.records import scan_records
from errors import UserError
from modes import MODES
from modes.glm3.calls import CALLS, read_arguments, split_call, tidy_call, write_call
from scores import score
from tests.launch import REPOSITORY

QUESTION = {"role": "user", "content": "北京热吗"}
CALL = {"name": "get_weather", "arguments": {"city": "北京", "from": 1}}
MESSAGE = {"role": "assistant", "content": "", "call": CALL}
WRITTEN = {
    "role": "assistant",
    "metadata": "get_weather",
    "content": "```python\ntool_call(city='北京', **{'from': 1})\n```",
}
RECORD = {"messages": [QUESTION, MESSAGE], "ready": False, "source": {"id": 1}}
NAMES = st.from_regex(r"[^\s`:：]+", fullmatch=True).filter(str.isprintable)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_generation_has_calls_if_tools_can_answer_it():
    assert {name: mode.calls is not None for name, mode in MODES.items()} == {
        name: "observation" in mode.roles for name, mode in MODES.items()
    }
    assert MODES["glm3"].calls is CALLS


@settings(max_examples=200, deadline=None)
@given(NAMES, st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_written_is_read_back(name, arguments):
    message = write_call({"name": name, "arguments": arguments})
    tool, code = split_call(f"{message['metadata']}\n{message['content']}")
    assert (tool, read_arguments(code)) == (name, arguments)


def test_a_generated_call_is_written_as_its_reference():
    text = f"{WRITTEN['metadata']}\n{WRITTEN['content']}"
    assert tidy_call(f" get_weather \n {WRITTEN['content']}\n ") == text
    assert tidy_call("\n 好的") is None and tidy_call("```python\nprint()\n```") is None


def test_a_record_is_written_by_its_generation():
    assert MODES["glm3"].written(RECORD) == {**RECORD, "messages": [QUESTION, WRITTEN]}
    assert reference(MODES["glm3"].written(RECORD)) == f"get_weather\n{WRITTEN['content']}"
    pair = {"instruction": "问", "output": "答"}
    text = {**RECORD, "messages": [QUESTION, WRITTEN]}
    assert MODES["glm3"].written(pair) is pair and MODES["glm3"].written(text) is text
    assert MODES["glm"].written(RECORD) is RECORD


@pytest.mark.parametrize("message", [MESSAGE, WRITTEN])
def test_a_call_is_an_answer_whether_written_or_not(message):
    record = {**RECORD, "messages": [QUESTION, message]}
    assert calls_tool(message) and not calls_tool(QUESTION)
    assert not has_empty_answer(record, every=True) and not has_empty_answer(record, every=False)
    assert [name for name, mode in MODES.items() if not unsuited(record, mode.roles)] == ["glm3"]
    assert unsuited(record, MODES["glm"].roles) == "a tool call"


def test_an_answer_is_scored_in_the_grammar_of_any_generation():
    texts = [
        reference(MODES["glm3"].written(RECORD)),
        "get_weather\n```python\ntool_call(**{'from': 1, 'city': '北京'})\n```",
    ]
    assert score(["tool_call"], texts[1:], texts[:1]) == {"tool_name": 1, "tool_call": 1}


def test_arguments_that_are_read_can_be_written(tmp_path):
    for depth in range(900, 1000, 9):  # about as deep as Python's parser of JSON goes
        arguments = '{"a": ' + "[" * depth + "]" * depth + "}"
        call = {"role": "assistant", "function_call": {"name": "f", "arguments": arguments}}
        path = tmp_path / "records.jsonl"
        path.write_text(json.dumps({"messages": [QUESTION, call]}))
        for _, result in scan_records(path):
            assert isinstance(result, UserError) or "[[[" in messages_of(CALLS.written(result))[-1]["content"]


def test_the_grammar_needs_no_torch():
    imports = "import sys, modes.glm3.calls, scores"
    check = f"{imports}; assert not {{'torch', 'numpy', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True)
