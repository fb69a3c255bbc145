"""scripts/convert_data.py: what each format looks like, round trips, what has no place, and that files are whole."""

import json
import subprocess
import sys
import tracemalloc

import pytest

from conversation import is_ready, messages_of
from data.records import read_records
from errors import UserError
from modes.glm3.calls import CALLS as GRAMMAR
from scripts.convert_data import TARGETS, main
from tests.launch import REPOSITORY

PLAIN = {"instruction": "抽取三元组：", "input": "水泵渗漏。", "output": "水泵_部件故障_渗漏"}
SHORT = {"instruction": "你好", "input": "", "output": "您好"}
CHAT = {**SHORT, "history": [["早", "早上好"], ["在吗", "在"]], "system": "你是助手。"}
TOOLS = [{"name": "get_weather", "description": "查天气", "parameters": {"type": "object", "properties": {}}}]
CALLS = {
    "messages": [
        {"role": "system", "content": "你可以用工具。"},
        {"role": "user", "content": "北京和上海热吗？"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京", "days": 1}'}}
            ],
        },
        {"role": "tool", "content": '{"t": 31}'},
        {"role": "assistant", "content": "北京31度，我再查上海。"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "没有数据"},
        {"role": "assistant", "content": "上海没有数据。"},
    ],
    "tools": TOOLS,
}
FLAT, OF_MESSAGES = ("instruction", "prompt_response", "context_target"), ("conversations", "messages")


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def converted(tmp_path, records, target, *flags):
    """The objects that a conversion writes."""
    source, output = write(tmp_path / "source.jsonl", records), tmp_path / f"{target}.jsonl"
    main([str(source), "--to", target, "--output_path", str(output), *flags])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]


def conversations(tmp_path, objects):
    """What training reads: the messages, and whether the prompt is complete."""
    path = write(tmp_path / "read.jsonl", objects)
    return [(messages_of(GRAMMAR.written(record)), is_ready(record)) for _, record in read_records(path)]


def failure(tmp_path, records, target, *flags):
    """What is said of a conversion that fails; nothing is left behind."""
    with pytest.raises(UserError) as caught:
        converted(tmp_path, records, target, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["source.jsonl"]
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message.replace(str(tmp_path) + "/", "")


def test_each_format(tmp_path):
    assert converted(tmp_path, [PLAIN, SHORT], "context_target") == [
        {"context": "Instruction: 抽取三元组：\nInput: 水泵渗漏。\nAnswer: ", "target": "水泵_部件故障_渗漏"},
        {"context": "Instruction: 你好\nAnswer: ", "target": "您好"},
    ]
    assert converted(tmp_path, [PLAIN, CHAT], "prompt_response") == [
        {"prompt": "抽取三元组：水泵渗漏。", "response": "水泵_部件故障_渗漏"},
        {"prompt": "你好", "response": "您好", "system": "你是助手。", "history": CHAT["history"]},
    ]
    assert converted(tmp_path, [CHAT], "conversations") == [
        {
            "conversations": [
                {"from": "human", "value": "早"},
                {"from": "gpt", "value": "早上好"},
                {"from": "human", "value": "在吗"},
                {"from": "gpt", "value": "在"},
                {"from": "human", "value": "你好"},
                {"from": "gpt", "value": "您好"},
            ],
            "system": "你是助手。",
        }
    ]
    assert converted(tmp_path, [{"prompt": "问", "response": "答"}], "messages") == [
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}
    ]


@pytest.mark.parametrize("through", TARGETS)
def test_plain_records_come_back_as_they_were(through, tmp_path):
    texts = [
        SHORT,
        {**SHORT, "output": ""},
        {**SHORT, "instruction": "a\n\nb ", "output": "```json\n[]\n```"},
        {**SHORT, "instruction": "说：“\u2028”", "id": 7, "task": {"name": "x"}},
    ]
    there = converted(tmp_path, texts, through)
    assert all("id" not in record or record["task"] == {"name": "x"} for record in there) and there[3]["id"] == 7
    assert converted(tmp_path, there, "instruction") == texts


def test_instruction_and_input_stay_apart_where_the_format_can(tmp_path):
    there = converted(tmp_path, [PLAIN, {**PLAIN, "input": "a\nInput: b\n"}], "context_target")
    assert converted(tmp_path, there, "instruction") == [PLAIN, {**PLAIN, "input": "a\nInput: b\n"}]
    with_history = {**PLAIN, "history": [["早", "早上好"]]}
    assert converted(tmp_path, [with_history], "instruction") == [with_history]
    joined = {**PLAIN, "instruction": "抽取三元组：水泵渗漏。", "input": ""}
    assert converted(tmp_path, converted(tmp_path, [PLAIN], "messages"), "instruction") == [joined]


@pytest.mark.parametrize("through", ["instruction", "prompt_response", "conversations", "messages"])
@pytest.mark.parametrize("record", [PLAIN, CHAT, {**CHAT, "tools": TOOLS}, {**SHORT, "tools": json.dumps(TOOLS)}])
def test_training_reads_the_same_conversation(record, through, tmp_path):
    expected = conversations(tmp_path, [record])
    there = converted(tmp_path, [record], through)
    assert conversations(tmp_path, there) == expected
    for target in OF_MESSAGES:
        assert conversations(tmp_path, converted(tmp_path, there, target)) == expected


def test_tool_calls_between_the_formats_of_messages(tmp_path):
    expected = conversations(tmp_path, [CALLS])
    assert expected[0][0][2]["content"] == "```python\ntool_call(city='北京', days=1)\n```"
    there = converted(tmp_path, [CALLS], "conversations")
    assert there[0]["conversations"][1] == {
        "from": "function_call",
        "value": '{"name": "get_weather", "arguments": {"city": "北京", "days": 1}}',
    }
    assert (there[0]["system"], there[0]["tools"]) == ("你可以用工具。", TOOLS)
    assert conversations(tmp_path, there) == expected
    assert converted(tmp_path, there, "messages") == [CALLS]


def test_chatglm3_records_of_tools(tmp_path):
    official = {
        "conversations": [
            {"role": "system", "content": "用工具回答。", "tools": TOOLS},
            {"role": "user", "content": "北京热吗"},
            {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}, "observation": {"t": 31}},
            {"role": "assistant", "content": "热"},
        ]
    }
    there = converted(tmp_path, [official], "messages")
    assert there[0]["tools"] == TOOLS and there[0]["messages"][0] == {"role": "system", "content": "用工具回答。"}
    assert conversations(tmp_path, there) == conversations(tmp_path, [official])


def test_ready_prompts(tmp_path):
    ready = {"context": "Instruction: 做阅读理解。\nInput: 找三元组：\n\n水泵渗漏。\nAnswer: ", "target": "[]"}
    rounds = {"context": "问：你好\n答：", "target": "您好"}
    assert converted(tmp_path, [ready, rounds], "context_target") == [ready, rounds]
    assert converted(tmp_path, [ready], "instruction") == [
        {"instruction": "做阅读理解。", "input": "找三元组：\n\n水泵渗漏。", "output": "[]"}
    ]
    question = "做阅读理解。找三元组：\n\n水泵渗漏。"
    assert converted(tmp_path, [ready], "messages")[0]["messages"][0] == {"role": "user", "content": question}
    (tmp_path / "instruction.jsonl").unlink()
    (tmp_path / "messages.jsonl").unlink()
    (tmp_path / "context_target.jsonl").unlink()
    assert failure(tmp_path, [ready, rounds], "instruction").startswith(
        'source.jsonl:2: the prompt is not "Instruction'
    )


@pytest.mark.parametrize("target", FLAT)
def test_flat_formats_have_no_place_for_tool_calls(target, tmp_path):
    message = failure(tmp_path, [PLAIN, CALLS], target)
    assert message.startswith("source.jsonl:2: a tool call, which") and "--to messages" in message


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (CHAT, "system and history"),
        ({**SHORT, "tools": TOOLS}, "system and tools"),
        ({**PLAIN, "system": "a"}, "system"),
    ],
)
def test_one_question_has_no_place_for_more(record, reason, tmp_path):
    assert failure(tmp_path, [record], "context_target").startswith(f"source.jsonl:1: the record has {reason}, which")


@pytest.mark.parametrize(
    "code", ["print(1)", "tool_call(a=(1, 2))", "tool_call(a={1: 2})", "tool_call(a=1e999)", "tool_call(a=b'')", "a("]
)
@pytest.mark.parametrize("target", OF_MESSAGES)
def test_calls_that_json_cannot_hold(code, target, tmp_path):
    call = {"role": "assistant", "metadata": "f", "content": f"```python\n{code}\n```"}
    record = {"messages": [{"role": "user", "content": "问"}, call]}
    assert failure(tmp_path, [record], target).startswith("source.jsonl:1: the call of f is not tool_call(")


def test_columns_and_number(tmp_path):
    records = [{"content": f"问{i}", "summary": "答", "turns": [["早", "好"]], "n": i} for i in range(5)]
    flags = ["--prompt_column", "content", "--response_column", "summary", "--history_column", "turns"]
    assert converted(tmp_path, records, "prompt_response", *flags, "--max_records", "2") == [
        {"prompt": f"问{i}", "response": "答", "history": [["早", "好"]], "n": i} for i in range(2)
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max_records", "0"], "--max_records 0 is out of bounds"),
        (["--response_column", "a"], 'source.jsonl:1: "a" is missing'),
        (["--output_path", "{}/source.jsonl"], "is the file to read"),
        (["--output_path", "{}/absent/a"], "is not a file in an existing directory"),
        (["--output_path", "{}"], "is not a file in an existing directory"),
        (["--output_path", "{}/" + "a" * 300], "cannot be written (File name too long)"),
    ],
)
def test_bad_flags(flags, said, tmp_path):
    assert said in failure(tmp_path, [PLAIN], "messages", *[flag.format(tmp_path) for flag in flags])


def test_a_mistake_leaves_an_older_output_alone(tmp_path):
    before = converted(tmp_path, [PLAIN], "messages")
    with pytest.raises(UserError, match=r'source\.jsonl:2: "output" is missing'):
        converted(tmp_path, [SHORT, {"instruction": "a"}], "messages")
    assert json.loads((tmp_path / "messages.jsonl").read_text(encoding="utf-8")) == before[0]
    assert not list(tmp_path.glob(".*"))


def test_lines_are_streamed(tmp_path):
    peaks = []
    for number in (1_000, 10_000):
        source = write(tmp_path / "source.jsonl", [{**PLAIN, "output": "字" * 500}] * number)
        tracemalloc.start()
        main([str(source), "--to", "messages", "--output_path", str(tmp_path / "out.jsonl")])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert source.stat().st_size > 15e6 and max(peaks) < 4e6


def test_the_program(tmp_path):
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "scripts/convert_data.py", "data/samples/reviews_test.json", "--to", "messages"]
    command += ["--output_path", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == (
        f"data/samples/reviews_test.json: format instruction/output\n160 records: {output}\n"
    )
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{")
    command[2] = str(wrong)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {wrong}:1: not JSON")
