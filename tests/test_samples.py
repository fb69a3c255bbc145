"""The sample sets: what scripts/make_samples.py writes is what is committed, and held out means held out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conversation import messages_of, reference, split_answer
from data.formats import Columns
from data.records import read_records
from data.sources import find_sources, read_registry
from modes.glm3.calls import CALLS, read_arguments, split_call

ROOT = Path(__file__).resolve().parent.parent
FILES = ["spo_0.json", "spo_1.json", "samples/reviews_train.json", "samples/reviews_test.json"]
CONVERSATIONS = ["samples/chats.json", "samples/tool_calls.json"]
RELATIONS = {"部件故障", "性能故障", "组成", "检测工具"}
PLACES = ("左侧", "右侧", "前部", "后部", "一号", "二号", "三号", "上部", "下部", "备用")


def records(name):
    return [CALLS.written(record) for _, record in read_records(ROOT / "data" / name)]


def triples(record):
    return [tuple(line.split("_")) for line in record["output"].split("\n")]


def bare(word):
    """A part without its place: 左侧轴承 -> 轴承."""
    return word[2:] if word.startswith(PLACES) else word


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples")
    command = [sys.executable, str(ROOT / "scripts/make_samples.py"), "--output_dir", str(path)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "1"})
    return path


@pytest.mark.parametrize("name", FILES + CONVERSATIONS)
def test_committed_files_are_what_the_script_writes(made, name):
    assert (made / name).read_bytes() == (ROOT / "data" / name).read_bytes()


@pytest.mark.parametrize(("name", "least"), list(zip(FILES, [1000, 100, 500, 100], strict=True)))
def test_sizes_and_keys(name, least):
    sample_records = records(name)
    assert len(sample_records) >= least
    assert all(set(record) == {"instruction", "input", "output"} for record in sample_records)
    assert len({record["input"] for record in sample_records}) == len(sample_records)
    assert len({record["instruction"] for record in sample_records}) == 1


@pytest.mark.parametrize(("train", "held_out"), [FILES[:2], FILES[2:]])
def test_no_held_out_sentence_is_trained_on(train, held_out):
    assert not {r["input"] for r in records(train)} & {r["input"] for r in records(held_out)}


def test_triples_are_well_formed_and_stand_in_the_text():
    for name in FILES[:2]:
        seen = set()
        for record in records(name):
            triples_of_record = triples(record)
            assert 1 <= len(triples_of_record) <= 4 and len(set(triples_of_record)) == len(triples_of_record)
            for subject, relation, value in triples_of_record:
                assert subject in record["input"] and value in record["input"]
                seen.add(relation)
        assert seen == RELATIONS


def test_no_held_out_triple_is_trained_on_but_every_word_is():
    train = [(bare(a), r, bare(b)) for record in records("spo_0.json") for a, r, b in triples(record)]
    held_out = [(bare(a), r, bare(b)) for record in records("spo_1.json") for a, r, b in triples(record)]
    assert not set(train) & set(held_out)
    assert {(a, r) for a, r, _ in held_out} <= {(a, r) for a, r, _ in train}
    assert {(r, b) for _, r, b in held_out} <= {(r, b) for _, r, b in train}
    counts = [len(triples(record)) for record in records("spo_1.json")]
    assert set(counts) == {1, 2, 3, 4}


def test_reviews_are_lists_of_one_of_eight_kinds():
    kinds = [json.loads(record["output"]) for record in records("samples/reviews_train.json")]
    assert all(len(kind) == 1 for kind in kinds) and len({kind[0] for kind in kinds}) == 8
    held_out = {record["output"] for record in records("samples/reviews_test.json")}
    assert held_out <= {record["output"] for record in records("samples/reviews_train.json")}


def test_chats_have_several_turns_and_ask_for_what_was_said():
    chats = [messages_of(record) for record in records("samples/chats.json")]
    assert 20 <= len(chats) <= 50 and len({str(messages) for messages in chats}) == len(chats)
    turns = [sum(message["role"] == "user" for message in messages) for messages in chats]
    assert set(turns) == {2, 3, 4}
    assert {messages[0]["role"] for messages in chats} == {"system", "user"}
    later = [messages for messages in chats if messages[-2]["content"] == "请写一条检修记录。"]
    assert later and all(len(messages[-1]["content"]) > 8 for messages in later)


def test_tool_calls_can_be_read_and_answers_follow_them():
    sample_records = records("samples/tool_calls.json")
    assert 20 <= len(sample_records) <= 50 and len({str(record) for record in sample_records}) == len(sample_records)
    calls, names = [], set()
    for record in sample_records:
        messages = messages_of(record)
        assert messages[0]["tools"] and "query_stock" in messages[0]["content"]
        of_record = [message for message in messages if message.get("metadata")]
        calls.append(len(of_record))
        for message in of_record:
            name, code = split_call(f"{message['metadata']}\n{message['content']}")
            arguments = read_arguments(code)
            assert arguments and all(str(value) in messages[1]["content"] for value in arguments.values())
            names.add(name)
    assert names == {"query_stock", "book_repair"} and set(calls) == {0, 1, 2}
    last_is_call = [bool(split_answer(record)[1].get("metadata")) for record in sample_records]
    assert 10 <= sum(last_is_call) <= 30
    assert all(
        (split_call(reference(record)) is not None) == last
        for record, last in zip(sample_records, last_is_call, strict=True)
    )


def test_the_registry_names_every_sample_set():
    directory = ROOT / "data"
    names = list(read_registry(directory / "dataset_info.json"))
    sources = find_sources(None, ",".join(names), directory, Columns())
    assert [source.path for source in sources] == [str(directory / name) for name in FILES + CONVERSATIONS]
    assert names == [path.rsplit("/", 1)[-1].removesuffix(".json") for path in FILES + CONVERSATIONS]
