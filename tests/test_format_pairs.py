"""Which keys decide the format: every pair of formats, further keys, and what each program makes of a record."""

import itertools
import json

import pytest

from conversation import messages_of, reference
from data.formats import ANY, FORMATS, Columns, normalize, recognize
from data.records import read_records
from data.sources import Source, find_sources, read_rows
from data.tally import Tally
from errors import UserError
from modes import MODES
from modes.directory import read_base
from modes.glm3.calls import CALLS
from options.train import train_options
from parallel import ranks
from scripts.convert_data import TARGETS
from scripts.convert_data import main as convert
from scripts.data_formats import further, roles, table
from tests import golden
from tests.launch import REPOSITORY
from training.datasets import Encoder, open_records

# name of a format -> a record of it with all its keys, whose texts say where they stand
TURNS = {
    "messages": [{"role": "user", "content": "messages-q"}, {"role": "assistant", "content": "messages-a"}],
    "conversations": [{"from": "human", "value": "conversations-q"}, {"from": "gpt", "value": "conversations-a"}],
    "conversation": [{"human": "conversation-q", "assistant": "conversation-a"}],
    "chat": {"turn_1": {"Human": "<|Human|>: chat-q<eoh>\n", "MOSS": "<|MOSS|>: chat-a<eom>\n", "Commands": "None"}},
    "plain_text": "[Human]: plain_text-q<eoh> [MOSS]: plain_text-a<eoa>",
    "paragraph": [{"q": "paragraph-q", "a": ["paragraph-a"]}],
}


def record_of(record_format):
    """A record of a format, all keys filled."""
    if record_format.turns:
        return {record_format.name: TURNS[record_format.name]}
    return {key: f"{key}-q" for key in record_format.question} | {
        record_format.answer[0]: f"{record_format.answer[0]}-a"
    }


def expected(record_format, value):
    """(question, answer) that the table promises of a record of this format."""
    if record_format.turns:
        return f"{record_format.name}-q", f"{record_format.name}-a"
    given = [value[key] for key in record_format.question if value.get(key)]
    return record_format.joint.join(given), value[record_format.answer_in(value)]


def pair_of(record):
    *_, question, answer = messages_of(record)
    return question["content"], answer["content"]


PAIRS = list(itertools.permutations(FORMATS, 2))
each_format = pytest.mark.parametrize("record_format", FORMATS, ids=[record_format.name for record_format in FORMATS])


@each_format
def test_each_format_alone(record_format):
    value, tally = record_of(record_format), Tally()
    record = normalize(value, "f:1", ANY, require_output=True, tally=tally)
    assert pair_of(record) == expected(record_format, value)
    assert tally.formats == {record_format.name: 1} and not tally.ignored


@each_format
def test_the_first_complete_format_counts(record_format):
    """Every other format's keys beside those of `one`; which keys come first in the file does not matter."""
    for other in FORMATS:
        value, tally = record_of(other) | record_of(record_format), Tally()
        record = normalize(value, "f:1", ANY, require_output=True, tally=tally)
        chosen = next(candidate for candidate in FORMATS if candidate.is_complete(value))
        assert tally.formats == {chosen.name: 1}
        assert pair_of(record) == expected(chosen, value)
        left = value.keys() - {*chosen.question, chosen.answer_in(value)}
        assert tally.ignored == dict.fromkeys(left, 1)
        reverse = dict(reversed(value.items()))
        assert pair_of(normalize(reverse, "f:1", ANY, require_output=True)) == pair_of(record)


@pytest.mark.parametrize("nothing", [None, "", [], {}])
@each_format
def test_empty_keys_of_another_format_do_not_count(record_format, nothing):
    for other in FORMATS:
        value = dict.fromkeys(record_of(other), nothing) | record_of(record_format)
        tally = Tally()
        record = normalize(value, "f:1", ANY, require_output=True, tally=tally)
        assert pair_of(record) == expected(record_format, value) and not tally.ignored


@each_format
def test_a_question_without_answer_is_a_further_key(record_format):
    mine = record_of(record_format)
    for other in FORMATS:
        value = dict.fromkeys(other.question, "other") | mine
        if other.turns or recognize(mine) is not recognize(value):
            continue  # the keys make another complete format, such as instruction beside context and response
        record = normalize(value, "f:1", ANY, require_output=True)
        assert pair_of(record) == expected(recognize(value), value)


TO_LOOK_AT = [
    *({"instruction": "q", "input": "", "output": "a", key: "other"} for key in ("context", "prompt", "query", "id")),
    {"instruction": "q", "input": "", "output": "a", "messages": None, "conversations": []},
    {"instruction": "other", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "other", "output": "other", "messages": [{"role": "user", "content": "q"},
                                                              {"role": "assistant", "content": "a"}]},
    {"instruction": "other", "prompt": "q", "response": "a"},
    {"instruction": None, "input": "q", "output": "a"},
    {"question": "q", "answer": "a", "paragraph": "other", "chat": "other", "messages": "other", "plain_text": "other"},
    {"prompt": "q", "completion": "a", "label": True},
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", TO_LOOK_AT, ids=lambda value: "+".join(value))
def test_every_program_reads_the_same_conversation(value, mode, tmp_path):
    """Training rows, prompts and references of predict.py, a registry, and every format of convert_data.py."""
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    plain = {"instruction": "q", "input": "", "output": "a"}
    rows = this.encode_batch(tokenizer, [plain], 64, 32)
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(value) + "\n")
    registry = {"mine": {"file_name": path.name}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(registry))
    for source in (Source(str(path), ANY), *find_sources(None, "mine", tmp_path, ANY)):
        [(_, record)] = read_rows(source, roles=this.roles, apart=this.one_answer)
        assert this.encode_batch(tokenizer, [record], 64, 32) == rows
    for require_output in (True, False):
        [(_, record)] = read_records(path, require_output=require_output)
        assert this.prompt_ids(tokenizer, record) == this.prompt_ids(tokenizer, plain)
    assert reference(record) == "a"
    for target in set(TARGETS) - {"context_target"}:  # a complete prompt has no template
        output = tmp_path / f"{target}.jsonl"
        convert([str(path), "--to", target, "--output_path", str(output)])
        [(_, record)] = read_records(output)
        assert this.encode_batch(tokenizer, [record], 64, 32) == rows


def conversation(*turns):
    return [{"role": role, "content": content} for role, content in turns]


Q, A = ("user", "q"), ("assistant", "a")
# (what people have, its conversation)
LAYOUTS = {
    "ms-swift": ({"query": "q", "response": "a", "history": [["q0", "a0"]]},
                 [("user", "q0"), ("assistant", "a0"), Q, A]),
    "question and answer": ({"question": "q", "answer": "a"}, [Q, A]),
    "question about a context": ({"context": "c", "question": "q", "answer": ["a"]}, [("user", "c\nq"), A]),
    "OpenOrca": ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), Q, A]),
    "prompt and output": ({"prompt": "q", "output": "a"}, [Q, A]),
    "query and answer": ({"query": "q", "answer": "a"}, [Q, A]),
    "without instruction": ({"input": "q", "output": "a"}, [Q, A]),
    "AdvertiseGen": ({"content": "q", "summary": "a"}, [Q, A]),
    "Dolly": ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, [("user", "q\nc"), A]),
    "Dolly without context": ({"instruction": "q", "context": "", "response": "a"}, [Q, A]),
    "Firefly": ({"kind": "NLI", "input": "q", "target": "a"}, [Q, A]),
    "prompt, input, response": ({"prompt": "q", "input": "i", "response": "a"}, [("user", "qi"), A]),
    "completion": ({"prompt": "q", "completion": "a"}, [Q, A]),
    "conversational completion": ({"prompt": conversation(Q), "completion": conversation(A)}, [Q, A]),
    "text parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                                 {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, [Q, A]),
    "paragraph": ({"paragraph": [{"q": "q", "a": ["a", "b"]}, {"q": "q", "a": "a"}]},
                  [Q, ("assistant", "a\nb"), Q, A]),
    "BELLE": ({"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}]},
              [Q, A]),
    "Firefly's MOSS": ({"conversation": [{"human": "q", "assistant": "a"}], "category": "x"}, [Q, A]),
    "XTuner": ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, [("system", "s"), Q, A]),
    "MOSS": ({"meta_instruction": "m", "chat": {"turn_1": {"Human": "<|Human|>: q<eoh>\n",
              "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n", "Commands": "<|Commands|>: None<eoc>\n",
              "MOSS": "<|MOSS|>: a<eom>\n"}}}, [Q, A]),
    "MOSS in one text": ({"plain_text": "[Human]: q<eoh> [MOSS]: a<eoa> [Human]: q<eoh> [MOSS]: a<eoa>"},
                         [Q, A, Q, A]),
    "developer": ({"messages": conversation(("developer", "s"), Q, A)}, [("system", "s"), Q, A]),
    "capitals": ({"messages": conversation(("System", "s"), ("USER", "q"), ("Assistant", "a"))},
                 [("system", "s"), Q, A]),
    "a greeting": ({"conversations": conversation(("assistant", "g"), Q, A)}, [("assistant", "g"), Q, A]),
    "lines": ({"instruction": "q", "output": ["a", "b"]}, [Q, ("assistant", "a\nb")]),
    "a cell of JSON": ({"messages": json.dumps(conversation(Q, A))}, [Q, A]),
    "history as JSON": ({"query": "q", "response": "a", "history": '[["q", "a"]]'}, [Q, A, Q, A]),
    "tools as an empty text": ({"messages": conversation(Q, A), "tools": "[]"}, [Q, A]),
    "tools as an empty object": ({"messages": conversation(Q, A), "tools": "{}"}, [Q, A]),
    "tools as null": ({"messages": conversation(Q, A), "tools": "null"}, [Q, A]),
    "tools as blanks": ({"messages": conversation(Q, A), "tools": " "}, [Q, A]),
    "no tools": ({"messages": conversation(Q, A), "tools": []}, [Q, A]),
    "no tools of the system": ({"messages": [{"role": "system", "content": "s", "tools": "[]"},
                                             *conversation(Q, A)]}, [("system", "s"), Q, A]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_people_have(name):
    value, turns = LAYOUTS[name]
    messages = messages_of(normalize(value, "f:1", ANY, require_output=True))
    assert messages == conversation(*turns)


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "chosen"),
        ({"question": "q", "chosen": conversation(Q, A), "rejected": conversation(Q, A)}, "chosen"),
        ({"conversations": conversation(Q), "chosen": {"from": "gpt", "value": "a"}, "rejected": {}}, "chosen"),
        ({"messages": conversation(Q), "best": "a"}, "best"),
    ],
)
def test_preference_records_where_they_are_asked_for(value, answers):
    record = normalize(value, "f:1", Columns(response=answers), require_output=True)
    assert messages_of(record) == conversation(Q, A)
    advice = (
        "--response_column chosen to use the preferred answer" if answers == "chosen" else "must be the assistant's"
    )
    with pytest.raises(UserError, match=advice):
        normalize(value, "f:1", ANY, require_output=True)


@pytest.mark.parametrize("value", [{"instruction": "q", "output": "a"}, {"messages": conversation(Q, A, Q, A)},
                                   {"query": "q", "response": "a", "system": "s"}, {"prompt": conversation(Q),
                                    "response": "a"}])  # fmt: skip
def test_the_prefix_is_in_front_of_every_question(value):
    messages = messages_of(normalize(value, "f:1", Columns(prefix="p:"), require_output=True))
    assert {message["content"] for message in messages if message["role"] == "user"} == {"p:q"}


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": '{"from": "x", "to": "y"}'}}]},
            "to='y', **{'from': 'x'}",
        ),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"class": 1}}}]}, "**{'class': 1}"),
        ({"function_call": {"name": "f", "arguments": '{"user-id": 1, "b": null}'}}, "b=None, **{'user-id': 1}"),
        ({"function_call": {"name": "f", "arguments": {}}, "content": None}, ""),
    ],
)
def test_calls_can_be_read_back(call, arguments, tmp_path):
    value = {"messages": [*conversation(Q), {"role": "assistant", **call}, *conversation(("function", "r"), A)]}
    record = CALLS.written(normalize(value, "f:1", ANY, require_output=True))
    assert messages_of(record)[1] == {
        "role": "assistant", "metadata": "f", "content": f"```python\ntool_call({arguments})\n```",
    }  # fmt: skip
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(value))
    for target in ("messages", "conversations"):
        output = tmp_path / f"{target}.jsonl"
        convert([str(path), "--to", target, "--output_path", str(output)])
        [(_, again)] = read_records(output)
        assert messages_of(CALLS.written(again)) == messages_of(record)


REFUSED = {
    "KTO": ({"prompt": "q", "completion": "a", "label": False}, "KTO"),
    "KTO of a table": ({"prompt": "q", "completion": "a", "label": "False"}, '"label" is false'),
    "KTO of LLaMA-Factory": ({"messages": conversation(Q, A), "kto_tag": False}, '"kto_tag" is false'),
    "a place for an image": ({"instruction": "<image>q", "output": "a"}, "place for an image"),
    "one in a plain record": ({"instruction": "q", "input": "<image>", "output": "a"}, "place for an image"),
    "images": ({"messages": conversation(Q, A), "images": ["a.png"]}, '"images" belongs to a set of images'),
    "VisualGLM": ({"img": "a.png", "prompt": "q", "response": "a"}, '"img" belongs to a set of images'),
    "an image part": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, *conversation(A)]},
        'has a part of type "image_url"',
    ),
    "text for pre-training": ({"text": "q", "url": "u"}, "pre-training"),
    "preferences": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "--response_column chosen"),
    "preferences without a question": ({"chosen": "Human: q", "rejected": "b"}, "a preference record needs a question"),
    "a message that is not trained": (
        {"messages": [*conversation(Q), {"role": "assistant", "content": "a", "weight": 0}]},
        "message 2 is marked as not trained",
    ),
    "MOSS's tools": (
        {"chat": {"turn_1": {"Human": "q", "Commands": "Search('a')", "MOSS": "a"}}},
        "calls a tool in MOSS",
    ),
    "MOSS cut short": ({"plain_text": "[Human]: q<eoh> [MOSS]: a"}, "is not made of turns"),
    "an answer of the user": ({"prompt": "q", "response": conversation(Q)}, "must be the assistant's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_to_train_on(name):
    value, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        normalize(value, "f:1", ANY, require_output=True)
    assert str(caught.value).startswith("f:1") and said in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("apart", [True, False])
def test_a_greeting_is_read_and_not_trained(mode, apart):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    turns = [("assistant", "我是客服"), ("user", "退货"), ("assistant", "可以")]
    record = normalize({"messages": conversation(*turns)}, "f:1", ANY, require_output=True)
    row = this.encode_batch(tokenizer, [record], 128, 96, loss_on="all" if apart else "last")[0]
    assert "我是客服" in tokenizer.decode(row["input_ids"])
    supervised = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert "可以" in tokenizer.decode(supervised) and "客服" not in tokenizer.decode(supervised)
    prompt = this.prompt_ids(tokenizer, record)
    assert row["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("page", ["data.md", "data.zh-CN.md"])
def test_the_page_has_the_table_of_the_code(page):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    assert table().partition("\n")[2] in text and further() in text and roles() in text


FLAGS = ("train_path", "dev_path", "replay_path", "probe_path", "dataset")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_all_pairs_in_a_run(mode, loss_on, tmp_path, capsys):
    """A file of all pairs, as each flag of train.py reads it: the rows are those of the table's conversations."""
    ranks.start_ranks()
    values = [record_of(record_format) | record_of(other) for record_format, other in PAIRS]
    chosen = [next(candidate for candidate in FORMATS if candidate.is_complete(value)) for value in values]
    path, plain = tmp_path / "pairs.jsonl", tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    keys = [("context", "target") if record_format.ready else ("instruction", "output") for record_format in chosen]
    texts = [expected(record_format, value) for record_format, value in zip(chosen, values, strict=True)]
    with plain.open("w") as lines:
        for names_of, pair in zip(keys, texts, strict=True):
            lines.write(json.dumps(dict(zip(names_of, pair, strict=True))) + "\n")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"pairs": {"file_name": path.name}}))
    base = read_base(golden.ROOT / mode / "base", mode)

    options = train_options(
        loss_on=loss_on, max_len=96, max_src_len=64, data_cache_dir=tmp_path / "cache", dataset_dir=tmp_path
    )
    encoder = Encoder(base, options.data, options.columns)

    def rows_of(flag, path, dataset=None):
        opened = open_records(encoder, flag, path, dataset=dataset)
        assert len(opened.rows) == len(PAIRS) == len(list(opened.records()))
        return [{name: ids.tolist() for name, ids in opened.rows[i].items()} for i in range(len(opened.rows))]

    wanted = rows_of("train_path", str(plain))
    capsys.readouterr()
    for flag in FLAGS:
        by_name = {"path": None, "dataset": "pairs"} if flag == "dataset" else {"path": str(path)}
        assert rows_of(flag, **by_name) == wanted
        assert f"{len(PAIRS)} records read = {len(PAIRS)} used + 0 dropped + 0 refused" in capsys.readouterr().out


@pytest.mark.parametrize("target", TARGETS)
def test_all_pairs_converted(target, tmp_path):
    values = [record_of(record_format) | record_of(other) for record_format, other in PAIRS]
    path, output = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values if recognize(value).ready is False))
    convert([str(path), "--to", target, "--output_path", str(output)])
    there = zip(read_records(path), read_records(output), strict=True)
    if target == "context_target":
        return
    assert all(pair_of(before) == pair_of(after) for (_, before), (_, after) in there)
