"""data/sources.py: which files flags and a registry name, and their records as rows of a generation."""

import json

import pytest

from conversation import ROLES, messages_of
from data.formats import Columns
from data.sources import Source, find_sources, read_registry, read_rows, scan_rows, split_paths
from errors import UserError

FLAT_ROLES = ("system", "user", "assistant")
TURN = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
CALL = {"role": "assistant", "metadata": "f", "content": "```python\ntool_call()\n```"}


def registry(tmp_path, entries):
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def found(tmp_path, names, entries, prefix=""):
    return find_sources(None, names, registry(tmp_path, entries), Columns(prefix=prefix))


def source(tmp_path, *records, columns=None):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return Source(str(path), columns or Columns())


def failure(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        list(function(*arguments, **keywords))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_paths_are_separated_by_commas(tmp_path):
    assert split_paths("") == []
    assert split_paths("a.json") == ["a.json"]
    assert split_paths(" a.json , b.json,,") == ["a.json", "b.json"]
    odd = tmp_path / "a,b.json"
    assert split_paths(str(odd)) == [str(tmp_path / "a"), "b.json"]
    odd.touch()
    assert split_paths(str(odd)) == [str(odd)]


def test_files_come_first_and_have_the_columns_of_the_flags(tmp_path):
    directory = registry(tmp_path, {"x": {"file_name": "x.json"}, "y": {"file_name": "/abs/y.json"}})
    columns = Columns(prompt="q", response="a", prefix="请")
    assert find_sources("b.json,a.json", "y, x", directory, columns) == [
        Source("b.json", columns),
        Source("a.json", columns),
        Source("/abs/y.json", Columns(prefix="请")),
        Source(str(tmp_path / "x.json"), Columns(prefix="请")),
    ]
    assert find_sources(None, None, "nowhere", columns) == []
    assert find_sources("a.json", None, "nowhere", columns) == [Source("a.json", columns)]


def test_columns_and_tags_of_an_entry(tmp_path):
    entry = {
        "file_name": "x.json",
        "formatting": "sharegpt",  # further keys are those of other tools
        "columns": {"messages": "talk", "system": "rules", "tools": "apis"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "客户", "assistant_tag": "客服"},
    }
    (entry_source,) = found(tmp_path, "x", {"x": entry})
    expected = Columns(messages="talk", system="rules", tools="apis", roles=(("客户", "user"), ("客服", "assistant")))
    assert entry_source == Source(str(tmp_path / "x.json"), expected)
    talk = [{"from": "客户", "value": "问"}, {"from": "客服", "value": "答"}]
    (tmp_path / "x.json").write_text(json.dumps({"talk": talk, "rules": "要短"}), encoding="utf-8")
    ((line, record),) = read_rows(entry_source, roles=ROLES, apart=False)
    assert (line, messages_of(record)) == (1, [{"role": "system", "content": "要短"}, *TURN])


def test_flat_columns_of_an_entry(tmp_path):
    entry = {"file_name": "x.json", "columns": {"prompt": "q", "query": "text", "response": "a", "history": "h"}}
    (entry_source,) = found(tmp_path, "x", {"x": entry}, prefix="请答：")
    (tmp_path / "x.json").write_text('[{"q": "问", "text": "？", "a": "答", "h": [["早", "好"]]}]', encoding="utf-8")
    ((_, record),) = read_rows(entry_source, roles=ROLES, apart=False)
    assert [message["content"] for message in messages_of(record)] == ["早", "好", "请答：问？", "答"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "--dataset x is not in {}: it has no name."),
        ({"a": {}, "b": {}}, "--dataset x is not in {}: it has a, b."),
        ({"x": {}}, '{}: x has no "file_name"'),
        ({"x": {"file_name": 3}}, '{}: x has no "file_name"'),
        ({"x": {"hf_hub_url": "someone/data"}}, '{}: x has no "file_name"'),
        ({"x": "x.json"}, '{}: x has no "file_name"'),
        ({"x": {"file_name": "a", "columns": {"question": "q"}}}, '{}: "columns" of x has "question"'),
        ({"x": {"file_name": "a", "columns": {"prompt": 1}}}, '{}: "columns" of x has {{'),
        ({"x": {"file_name": "a", "columns": ["prompt"]}}, '{}: "columns" of x has ['),
        ({"x": {"file_name": "a", "tags": {"user": "q"}}}, '{}: "tags" of x has "user"'),
        ([], "{} is not a JSON object"),
        (None, "{} is not a JSON object"),
    ],
)
def test_entries_that_name_no_file(entries, said, tmp_path):
    message = failure(found, tmp_path, "x", entries)
    assert message.startswith(said.format(tmp_path / "dataset_info.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", ":1 is not JSON ("), (b"\xff", " cannot be read"), (b"[" * 100_000, " cannot be read as JSON (")],
)
def test_registries_that_cannot_be_read(content, said, tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_bytes(content)
    assert failure(read_registry, path).startswith(f"{path}{said}")
    path.unlink()
    assert failure(read_registry, path) == (f"{path} is missing: give its directory as --dataset_dir.")


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_bytes(b'\xef\xbb\xbf{"x": {}}')
    assert read_registry(path) == {"x": {}}


def test_each_answer_apart(tmp_path):
    data = source(tmp_path, {"messages": [*TURN, *TURN]}, {"instruction": "问", "output": "答"})
    rows = list(read_rows(data, roles=FLAT_ROLES, apart=False))
    assert [(line, len(messages_of(record))) for line, record in rows] == [(1, 4), (2, 2)]
    rows = list(read_rows(data, roles=FLAT_ROLES, apart=True))
    assert [(line, len(messages_of(record))) for line, record in rows] == [(1, 2), (1, 4), (2, 2)]
    assert rows[0][1]["source"] == rows[1][1]["source"] == {"messages": [*TURN, *TURN]}


def test_what_a_generation_cannot_take(tmp_path):
    calls = {"messages": [TURN[0], CALL, {"role": "observation", "content": "1"}, TURN[1]]}
    data = source(tmp_path, {"messages": TURN}, calls, {"instruction": 3}, {"messages": TURN})
    generations = {"flat": FLAT_ROLES, "a": ROLES, "b": ROLES}
    lines = list(scan_rows(data, roles=FLAT_ROLES, apart=True, generations=generations))
    assert [(line, isinstance(row, UserError)) for line, row in lines] == [(1, False), (2, True), (3, True), (4, False)]
    able = "which only a and b support: use --mode a or b, or drop it."
    assert str(lines[1][1]) == f"{data.path}:2: a tool call, {able}"
    rows = read_rows(data, roles=FLAT_ROLES, apart=True)
    assert next(rows)[0] == 1
    with pytest.raises(UserError, match=":2: a tool call"):
        next(rows)
    assert [line for line, row in scan_rows(data, roles=ROLES, apart=False) if isinstance(row, UserError)] == [3]


def test_records_without_an_answer(tmp_path):
    data = source(tmp_path, {"messages": TURN[:1]}, {"messages": TURN})
    assert ":1: the last message is from user" in failure(read_rows, data, roles=ROLES, apart=False)
    rows = scan_rows(data, roles=ROLES, apart=False, require_output=False)
    assert [messages_of(record) for _, record in rows] == [TURN[:1], TURN]
