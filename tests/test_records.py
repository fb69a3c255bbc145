"""data/records.py: what is read, and that every mistake is one sentence with file and line."""

import json
import os

import pytest

from data.records import read_records, scan_records
from errors import UserError

GOOD = {"instruction": "抽取三元组。", "input": "水泵漏水。", "output": "水泵_部件故障_漏水"}


def write(tmp_path, content):
    path = tmp_path / "records.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def line(**changes):
    return json.dumps({**GOOD, **changes}, ensure_ascii=False)


def failure(path, **options):
    with pytest.raises(UserError) as caught:
        list(read_records(path, **options))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and message.endswith(".")
    return message


def test_lines_and_records(tmp_path):
    path = write(tmp_path, line() + "\n\n  \t\r\n" + line(input="", output="", id=7) + "\r\n" + line(input=None))
    assert list(read_records(path)) == [
        (1, GOOD),
        (4, {**GOOD, "input": "", "output": "", "source": {**GOOD, "input": "", "output": "", "id": 7}}),
        (5, {**GOOD, "input": "", "source": {**GOOD, "input": None}}),
    ]


def test_missing_input_is_empty(tmp_path):
    path = write(tmp_path, '{"instruction": "你是谁", "output": "助手"}')
    [(_, record)] = read_records(path)
    assert record.pop("source") == {"instruction": "你是谁", "output": "助手"}
    assert record == {"instruction": "你是谁", "input": "", "output": "助手"}


def test_output_may_be_missing_for_prediction(tmp_path):
    path = write(tmp_path, '{"instruction": "a"}\n{"instruction": "b", "output": null}\n')
    records = [record for _, record in read_records(path, require_output=False)]
    assert [record.pop("source") for record in records] == [{"instruction": "a"}, {"instruction": "b", "output": None}]
    assert records == [{"instruction": "a", "input": ""}, {"instruction": "b", "input": ""}]


def test_byte_order_mark_and_line_separators_inside_text(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + line(input="a\u2028b\u0085c").encode() + b"\n" + line().encode())
    assert [(number, record["input"]) for number, record in read_records(path)] == [
        (1, "a\u2028b\u0085c"),
        (2, GOOD["input"]),
    ]


def test_reading_streams(tmp_path):
    path = write(tmp_path, line() + "\nnot json\n")
    reader = read_records(path)
    assert next(reader) == (1, GOOD)
    with pytest.raises(UserError, match=":2: not JSON at column 1"):
        next(reader)


def test_errors_about_the_file_come_before_iteration(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_records(tmp_path / "absent.json")
    with pytest.raises(UserError, match="is a directory"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="not a regular file"):
        read_records(os.devnull)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = write(tmp_path, line())
    path.chmod(0)
    assert "cannot be read (Permission denied)" in failure(path)


@pytest.mark.parametrize("content", ["", "\n \n\r\n", b"\xef\xbb\xbf", "[]", " [\n] \n"])
def test_no_record(tmp_path, content):
    assert "holds no record" in failure(write(tmp_path, content))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("{'instruction': 1}", ":2: not JSON at column 2 (Expecting property name"),
        ('{"instruction": "a"', ":2: not JSON at column 20"),
        (line() + line(), ":2: not JSON at column"),
        ('"only a text"', ":2: a text where an object"),
        ("17", ":2: a number where an object"),
        ("null", ":2: null where an object"),
        ("true", ":2: true/false where an object"),
        ('["a"]', ":2: a list where an object"),
        ('{"question": "a", "summary": "b"}', ':2: "answer" is missing'),
        ('{"title": "a", "output": "b"}', ':2: none of the keys ("title", "output") belongs to a known format'),
        ("{}", ":2: none of the keys (none) belongs to a known format"),
        ('{"instruction": null, "output": "b"}', ':2: "instruction" is null'),
        ('{"instruction": "a", "output": 1}', ':2: "output" is a number'),
        ('{"instruction": "a"}', ':2: "output" is missing'),
        ('{"instruction": "a", "output": null}', ':2: "output" is null'),
        ('{"instruction": 3, "output": "b"}', ':2: "instruction" is a number'),
        ('{"instruction": "a", "input": 1.5, "output": "b"}', ':2: "input" is a number'),
        ('{"instruction": "a", "input": {"x": 1}, "output": "b"}', ':2: "input" is an object'),
        ('{"instruction": "a", "output": ["水果", 1]}', ':2: "output" is a list'),
        ('{"instruction": "a", "output": false}', ':2: "output" is true/false'),
        ('{"instruction": "a\\ud83d", "output": "b"}', ':2: "instruction" holds half of a surrogate pair'),
        ('{"instruction": ' + "9" * 5000 + "}", ":2: cannot be read as JSON"),
        ('{"instruction": ' + "[" * 200000, ":2: cannot be read as JSON"),
    ],
)
def test_bad_line(tmp_path, bad, expected):
    path = write(tmp_path, line() + "\n" + bad + "\n" + line())
    assert failure(path).startswith(f"{path}{expected}")


@pytest.mark.parametrize("output", [1, False, [], [1], {}, {"role": "boss"}, ["a", "b"]])
def test_output_of_any_type_is_allowed_where_it_is_not_needed(tmp_path, output):
    [(_, record)] = read_records(write(tmp_path, line(output=output)), require_output=False)
    assert "output" not in record and record["source"]["output"] == output


def test_long_garbage_is_cut(tmp_path):
    message = failure(write(tmp_path, "壹" * 100_000))
    assert "壹" * 80 + "…" in message and "壹" * 81 not in message
    message = failure(write(tmp_path, json.dumps({f"key{i}": i for i in range(10_000)})))
    assert "key1" in message and "…" in message


def test_not_utf8(tmp_path):
    path = write(tmp_path, (line() + "\n").encode("gb18030"))
    assert failure(path).startswith(f"{path}:1: byte ") and "is not UTF-8" in failure(path)


def test_not_utf8_names_line_and_byte(tmp_path):
    path = write(tmp_path, line().encode() + b'\n{"instruction": "\xd6\xd0"}\n')
    assert failure(path).startswith(f"{path}:2: byte 18 of the line (0xd6) is not UTF-8")


def test_array(tmp_path):
    path = write(tmp_path, "\ufeff\n" + json.dumps([GOOD, {**GOOD, "input": None}], ensure_ascii=False, indent=1))
    assert list(read_records(path)) == [(3, GOOD), (8, {**GOOD, "input": "", "source": {**GOOD, "input": None}})]
    path = write(tmp_path, json.dumps([GOOD] * 3))
    assert list(read_records(path)) == [(1, GOOD)] * 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" + line() + ",\n" + line(output=1) + "]", ':2 (element 2 of the array): "output" is a number'),
        ("[1, 2]", ":1 (element 1 of the array): a number where"),
        ("[" + line() + ",\n{'a': 1}]", ":2: not JSON at column 2 "),
        ("[" + line() + ",\n]", ":2: not JSON at column 1 "),
        ("[" + line() + "\n" + line() + "]", ":2: after element 1 of the array there must be , or ]"),
        ("[" + line(), ":1: after element 1 of the array there must be , or ], not the end of the file"),
        ("[", ":1: not JSON at column 2 "),
        ("[" + line() + "]\n[" + line() + "]", ":2: the JSON array ended before"),
        ("[" + "9" * 5000 + "]", ":1 (element 1 of the array): cannot be read as JSON"),
    ],
)
def test_bad_array(tmp_path, content, expected):
    path = write(tmp_path, content)
    assert failure(path).startswith(f"{path}{expected}")


def test_array_not_utf8(tmp_path):
    path = write(tmp_path, b"[" + line().encode() + b',\n{"instruction": "\xff"}]')
    assert failure(path).startswith(f"{path}:2: byte 18 of the line (0xff) is not UTF-8")


def scan(path, **options):
    return [
        (number, str(result) if isinstance(result, UserError) else result)
        for number, result in scan_records(path, **options)
    ]


def test_scan_goes_on_behind_a_mistake(tmp_path):
    path = write(tmp_path, b"\n".join([line().encode(), b"{", line().encode(), b"\xff", line(output=1).encode()]))
    results = scan(path)
    assert [number for number, _ in results] == [1, 2, 3, 4, 5]
    assert results[0][1] == results[2][1] == GOOD
    assert results[1][1].startswith(f"{path}:2: not JSON at column 2")
    assert results[3][1].startswith(f"{path}:4: byte 1 of the line (0xff) is not UTF-8")
    assert results[4][1].startswith(f'{path}:5: "output" is a number')


def test_scan_of_an_array_goes_on_behind_a_bad_element_and_ends_at_broken_json(tmp_path):
    path = write(tmp_path, "[" + line(output=1) + ",\n17,\n" + line() + ",\n{'a'}, " + line() + "]")
    results = scan(path)
    assert [number for number, _ in results] == [1, 2, 3, 4]
    assert '"output" is a number' in results[0][1] and "a number where" in results[1][1] and results[2][1] == GOOD
    assert results[3][1].startswith(f"{path}:4: not JSON at column 2")
    results = scan(write(tmp_path, b"[" + line().encode() + b',\n"\xff"]'))
    assert len(results) == 1 and results[0][0] == 2 and "is not UTF-8" in results[0][1]


def test_scan_of_nothing(tmp_path):
    path = write(tmp_path, "\n")
    assert scan(path) == [(0, f"{path} holds no record; it needs one JSON object per line.")]
    with pytest.raises(UserError, match="does not exist"):
        scan_records(tmp_path / "absent.json")
