"""Files of records that train.py and predict.py refuse."""

import gzip
import json
import os
import pickle

import pytest

import predict
import train
from tests.bad_input.place import RECORD, Hostile, refused, train_flags, write

GOOD = json.dumps(RECORD) + "\n"
DEEP = "[" * 10_000

# name: (content, what the sentence says)
FILES = {
    "not json": (GOOD + "\n\n{oops\n", r"records\.json:4: not JSON at column 2"),
    "cut short": (GOOD + GOOD[:20], r"records\.json:2"),
    "a number for a record": (GOOD + "42\n", r"records\.json:2: a number where an object"),
    "null for a record": (GOOD + "null\n", r"records\.json:2: null where an object"),
    "no instruction": ('{"title": "b", "output": "c"}\n', r"records\.json:1.*instruction"),
    "no output": ('{"instruction": "a"}\n', r"records\.json:1.*output"),
    "null output": ('{"instruction": "a", "output": null}\n', r'records\.json:1: "output" is null'),
    "a number for a text": ('{"instruction": "a", "output": 7}\n', r"records\.json:1.*output"),
    "NaN for a text": ('{"instruction": "a", "output": NaN}\n', r"records\.json:1.*output"),
    "a list for a text": ('{"instruction": ["a"], "output": "b"}\n', r"records\.json:1.*instruction"),
    "an object for a text": ('{"instruction": "a", "input": {"x": 1}, "output": "b"}\n', r"records\.json:1.*input"),
    "no answer": ('{"messages": [{"role": "user", "content": "a"}]}', "the last message is from user"),
    "an unknown role": ('{"messages": [{"role": "boss", "content": "a"}]}', 'message 1 has the role "boss"'),
    "roles in disorder": (
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}',
        "message 2 is from user after one from user",
    ),
    "a conversation without a question": (
        '{"conversations": [{"from": "gpt", "value": "a"}]}',
        "no message is from user",
    ),
    "messages of a wrong type": ('{"messages": "hello"}', '"messages" is a text'),
    "history of a wrong type": ('{"instruction": "a", "output": "b", "history": [["q"]]}', r'turn 1 of "history"'),
    "a tool's arguments": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": '
        '"f", "arguments": "[1]"}}]}]}',
        "must be a JSON object",
    ),
    "a tool call outside of ChatGLM3": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", '
        '"content": "c"}, {"role": "assistant", "content": "d"}]}',
        "observation.*use --mode glm3",
    ),
    "empty": ("", "no record"),
    "blank lines only": ("\n \n\n", "no record"),
    "a byte order mark only": (b"\xef\xbb\xbf", "no record"),
    "an empty array": ("[]", "no record"),
    "a mark in the middle": (GOOD + "\ufeff" + GOOD, r"records\.json:2: not JSON at column 1"),
    "GBK": (json.dumps(RECORD, ensure_ascii=False).encode("gbk"), r"records\.json:1.*UTF-8.*iconv"),
    "UTF-16": (GOOD.encode("utf-16"), r"records\.json is UTF-16.*iconv"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), r"records\.json is UTF-16.*iconv"),
    "UTF-16 of the other order": (GOOD.encode("utf-16-be"), r"records\.json is UTF-16.*iconv"),
    "NUL bytes": (GOOD.encode() + bytes(4096), r"records\.json:2: not JSON"),
    "NUL in a text": (b'{"instruction": "a\x00", "output": "b"}', r"records\.json:1: not JSON.*control character"),
    "gzip of no record": (gzip.compress(b"{oops"), r"records\.json:1: not JSON"),
    "gzip cut short": (gzip.compress(GOOD.encode() * 9000)[:900], r"records\.json is a broken gzip file"),
    "gzip with a wrong byte": (gzip.compress(GOOD.encode())[:-6] + b"spoilt", r"records\.json is a broken gzip file"),
    "a pickle": (pickle.dumps(Hostile("executed")), r"records\.json is a pickle"),
    "half a surrogate pair": ('{"instruction": "a", "output": "\\ud83d"}', r'records\.json:1: "output".*surrogate'),
    "half a pair in another key": ('{"instruction": "a", "output": "b", "id": ["\\udc00"]}', r'"id".*surrogate'),
    "half a pair as a key": ('{"instruction": "a", "output": "b", "\\udc00": 1}', r"surrogate"),
    "a key twice": ('{"instruction": "a", "output": "b", "output": "c"}', r'records\.json:1.*"output" is given twice'),
    "10,000 brackets": (GOOD + DEEP, r"records\.json:2: cannot be read as JSON"),
    "10,000 brackets in a key": ('{"instruction": "a", "output": "b", "x": ' + DEEP + "}", r"records\.json:1"),
    "10,000 brackets of an array": ("[" + DEEP, r"records\.json:1"),
    "a number of 10,000 digits": (GOOD + "9" * 10_000, r"records\.json:2: cannot be read as JSON"),
    "two objects on a line": (GOOD.strip() + GOOD, r"records\.json:1: not JSON"),
    "single quotes": (str(RECORD), r"records\.json:1: not JSON"),
    "an array that does not end": ("[" + GOOD + "," + GOOD, r"records\.json:3: after element 2"),
    "an array with a comma too many": ("[" + GOOD + ",]", r"records\.json:2: not JSON"),
    "an array of arrays": ("[[" + GOOD + "]]", r"records\.json:1 \(element 1 of the array\): a list"),
    "an array with more behind it": ("[" + GOOD + "]\n" + GOOD, r"records\.json:3: the JSON array ended"),
    "a line of 100 MB": (
        b'{"instruction": "' + b"x" * 10**8 + b'"}',
        r"records\.json:1: a record of 100,000,019 bytes",
    ),
    "an element of 5 MB": (b'[{"instruction": "' + b"x" * 5_000_000 + b'"}]', r"element 1.*5,000,019 bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_training_files(name, place):
    content, pattern = FILES[name]
    write(place / "records.json", content)
    refused(train.main, train_flags(place), pattern, place)


@pytest.mark.parametrize("name", ["cut short", "GBK", "a key twice", "a line of 100 MB", "half a pair in another key"])
def test_files_to_answer(name, place):
    content, pattern = FILES[name]
    path = write(place / "records.json", content)
    flags = ["--model_path", str(place / "base"), "--test_path", str(path), "--output_path", str(place / "answers")]
    refused(predict.main, flags, pattern, place)


def test_file_to_evaluate_on(place):
    path = write(place / "dev.json", "{oops\n")
    refused(train.main, train_flags(place, dev_path=path), r"dev\.json:1", place)


# name: (what is created at the path of the file, part of the error)
NO_FILES = {
    "nothing": (lambda path: None, "does not exist"),
    "a directory": (lambda path: path.mkdir(), "is a directory"),
    "a pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path), "does not exist"),
    "unreadable": (lambda path: write(path, GOOD).chmod(0), "cannot be read.*permissions"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file(name, place):
    if name == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    make, pattern = NO_FILES[name]
    path = place / "other.json"
    make(path)
    refused(train.main, train_flags(place, train_path=path), f"--train_path .*other.json {pattern}", place)


def test_name_that_is_too_long(place):
    refused(train.main, train_flags(place, train_path="x" * 300), "--train_path x+ does not exist", place)
