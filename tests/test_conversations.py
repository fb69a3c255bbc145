"""Conversations as rows of ids: each generation's own form, what is supervised, what is cut."""

import pytest

from conversation import answers_apart
from data.formats import Columns, normalize
from modes import MODES
from tests import golden

IGNORED = -100
TURNS = [("你好", "你好！"), ("在吗", "在的"), ("今天天气", "晴")]


def record_of(messages, **more):
    return normalize({"messages": messages, **more}, "f:1", Columns(), require_output=False)


def chat(turns, answered=True):
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return record_of(messages if answered else messages[:-1])


def encode(mode, record, max_len=512, max_src_len=400, **options):
    tokenizer = golden.tokenizer(mode)
    return MODES[mode].encode_batch(tokenizer, [record], max_len=max_len, max_src_len=max_src_len, **options)[0]


def supervised_runs(row):
    runs, inside = [], False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label != IGNORED:
            assert label == token
            runs = [*runs, [token]] if not inside else [*runs[:-1], [*runs[-1], token]]
        inside = label != IGNORED
    return runs


def test_glm2_writes_a_chat_as_the_official_code():
    case = golden.expected("glm2")["tokenizer"]["build_prompt"]
    tokenizer = golden.tokenizer("glm2")
    turns = [*map(tuple, case["history"]), (case["query"], "")]
    ids = MODES["glm2"].prompt_ids(tokenizer, chat(turns, answered=False))
    assert ids == tokenizer.get_prefix_tokens() + tokenizer.encode(case["prompt"], add_special_tokens=False)


def test_glm3_writes_a_chat_with_tools_as_the_official_code():
    case = golden.expected("glm3")["tokenizer"]["build_chat_input"]
    history = [dict(message) for message in case["history"]]
    # the official case asks on after an observation, which our reader would refuse
    record = {"messages": [], "ready": False, "source": {}}
    for message in history:
        record["messages"] += (
            record_of([message, {"role": "user", "content": "x"}])["messages"][:1]
            if (message["role"] == "system")
            else [message]
        )
    record["messages"].append({"role": "user", "content": case["query"]})
    assert MODES["glm3"].prompt_ids(golden.tokenizer("glm3"), record) == case["ids"]


def test_glm_counts_the_rounds_of_a_chat_from_0():
    tokenizer = golden.tokenizer("glm")
    ids = MODES["glm"].prompt_ids(tokenizer, chat(TURNS[:2], answered=False))
    text = "[Round 0]\n问：你好\n答：你好！\n[Round 1]\n问：在吗\n答："
    assert ids == tokenizer.encode(text, add_special_tokens=False) + [tokenizer.gmask_token_id, tokenizer.bos_token_id]


@pytest.mark.parametrize(
    ("value", "columns", "text"),
    [
        ({"prompt": "问", "response": "答", "history": []}, {}, "[Round 0]\n问：问\n答："),
        ({"instruction": "问", "input": "", "output": "答", "history": []}, {}, "[Round 0]\n问：问\n答："),
        ({"instruction": "问", "input": "题", "output": "答", "history": []}, {}, "[Round 0]\n问：问题\n答："),
        ({"q": "问", "a": "答", "h": []}, {"prompt": "q", "response": "a", "history": "h"}, "[Round 0]\n问：问\n答："),
        ({"instruction": "问", "output": "答", "h": []}, {"history": "h"}, "[Round 0]\n问：问\n答："),
        (
            {"prompt": "问", "response": "答", "history": [["早", "好"]]},
            {},
            "[Round 0]\n问：早\n答：好\n[Round 1]\n问：问\n答：",
        ),
        ({"prompt": "问", "response": "答"}, {}, "[Round 1]\n问：问\n答："),
        ({"prompt": "问", "response": "答", "history": None}, {}, "[Round 1]\n问：问\n答："),
        ({"instruction": "问", "input": "", "output": "答"}, {}, "[Round 1]\n问：问\n答："),
        ({"messages": [{"role": "user", "content": "问"}], "history": []}, {}, "[Round 1]\n问：问\n答："),
    ],
)
def test_glm_counts_an_empty_history_as_the_official_code(value, columns, text):
    tokenizer = golden.tokenizer("glm")
    record = normalize(value, "f:1", Columns(**columns), require_output=False)
    prompt = MODES["glm"].prompt_ids(tokenizer, record)
    assert prompt == tokenizer.encode(text, add_special_tokens=False) + [
        tokenizer.gmask_token_id,
        tokenizer.bos_token_id,
    ]
    if "messages" not in value:
        assert encode("glm", record)["input_ids"][: len(prompt)] == prompt


def test_glm_counts_from_0_also_where_old_rounds_are_left_out():
    value = {"prompt": "问", "response": "答", "history": [["早" * 50, "好"]]}
    record = normalize(value, "f:1", Columns(), require_output=False)
    empty = normalize({**value, "history": []}, "f:1", Columns(), require_output=False)
    assert encode("glm", record, max_src_len=30)["input_ids"] == encode("glm", empty)["input_ids"]


@pytest.mark.parametrize("mode", MODES)
def test_prediction_has_the_prompt_of_training(mode):
    tokenizer = golden.tokenizer(mode)
    record, question = chat(TURNS), chat(TURNS, answered=False)
    row = encode(mode, record)
    prompt = MODES[mode].prompt_ids(tokenizer, question)
    assert prompt == MODES[mode].prompt_ids(tokenizer, record) == row["input_ids"][: len(prompt)]
    answer = tokenizer.encode_texts(["晴"])[0] + [tokenizer.eos_token_id]
    assert row["input_ids"][len(prompt) :] == answer and not row["truncated"]
    [run] = supervised_runs(row)  # the last answer alone
    assert run[-len(answer) :] == answer


def test_glm3_learns_every_answer_and_what_ends_it():
    tokenizer = golden.tokenizer("glm3")
    user, assistant = (tokenizer.get_command(f"<|{role}|>") for role in ("user", "assistant"))
    runs = supervised_runs(encode("glm3", chat(TURNS), loss_on="all"))
    line_end = tokenizer.encode_texts(["\n"])[0]
    answers = tokenizer.encode_texts([answer for _, answer in TURNS])
    ends = [user, user, tokenizer.eos_token_id]
    assert runs == [[assistant, *line_end, *ids, end] for ids, end in zip(answers, ends, strict=True)]
    assert (
        encode("glm3", chat(TURNS), loss_on="last")["input_ids"]
        == encode("glm3", chat(TURNS), loss_on="all")["input_ids"]
    )


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_the_others_get_a_row_for_each_answer(mode):
    rows = [encode(mode, part) for part in answers_apart(chat(TURNS))]
    assert rows == [encode(mode, chat(TURNS[:count])) for count in (1, 2, 3)]


def test_glm3_learns_to_call_a_tool():
    tokenizer = golden.tokenizer("glm3")
    turns = [{"role": "user", "content": "北京天气"},
             {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}, "observation": "晴"},
             {"role": "assistant", "content": "晴天"}]  # fmt: skip
    record = record_of(turns, tools=[{"name": "get_weather"}])
    call, answer = supervised_runs(encode("glm3", record, loss_on="all"))
    assert call[0] == answer[0] == tokenizer.get_command("<|assistant|>")
    assert call[-1] == tokenizer.get_command("<|observation|>") and answer[-1] == tokenizer.eos_token_id
    text = "get_weather\n```python\ntool_call(city='北京')\n```"
    assert MODES["glm3"].answer_text(tokenizer, call[1:]) == text
    assert MODES["glm3"].answer_text(tokenizer, answer[1:]) == "晴天"
    prompt = MODES["glm3"].prompt_ids(tokenizer, list(answers_apart(record))[0])
    assert prompt[-1] == tokenizer.get_command("<|assistant|>")  # the next line names the tool, or is empty


@pytest.mark.parametrize("mode", MODES)
def test_the_oldest_turns_are_left_out_first(mode):
    tokenizer = golden.tokenizer(mode)
    length = len(MODES[mode].prompt_ids(tokenizer, chat(TURNS)))
    shortened = encode(mode, chat(TURNS), max_src_len=length - 8)
    assert shortened["truncated"]
    assert shortened["input_ids"] == encode(mode, chat(TURNS[1:]))["input_ids"]
    kept = [{"role": "system", "content": "短"}, *chat(TURNS)["messages"]]
    row = encode(mode, record_of(kept), max_src_len=40)
    assert tokenizer.encode_texts(["短"])[0][-1] in row["input_ids"]


@pytest.mark.parametrize("mode", MODES)
def test_a_long_system_text_does_not_push_the_question_out(mode):
    tokenizer = golden.tokenizer(mode)
    system = {"role": "system", "content": "规则。" * 100}
    row = encode(mode, record_of([system, *chat(TURNS[2:])["messages"]]), max_src_len=60)
    text = tokenizer.decode(row["input_ids"])
    assert row["truncated"] and "今天天气" in text and "晴" in text
    assert ("规则" in text) == (mode == "glm3")


@pytest.mark.parametrize("mode", MODES)
def test_a_ready_prompt_has_no_template_and_keeps_its_end_when_cut(mode):
    tokenizer = golden.tokenizer(mode)
    text = "Instruction: 抽取三元组\nInput: 水泵渗漏，油压低，发动机异响\nAnswer: "
    record = normalize({"context": text, "target": "好"}, "f:1", Columns(), require_output=True)
    row = encode(mode, record)
    source = tokenizer.encode_texts([text])[0]
    front = tokenizer.get_prefix_tokens() if mode != "glm" else []
    prompt = MODES[mode].prompt_ids(tokenizer, record)
    assert prompt[len(front) : len(front) + len(source)] == source and row["input_ids"][: len(prompt)] == prompt
    cut = encode(mode, record, max_src_len=20)
    assert cut["truncated"] and "Answer:" in tokenizer.decode(cut["input_ids"][: len(front) + 20])
