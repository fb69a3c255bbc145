"""data/tokenize.py: the arrays hold the encoder's output, are made once, and are written atomically."""

import gc
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import data.tokenize
from data.records import read_records
from data.tokenize import IGNORE, TokenizedDataset, is_complete, tokenize_file
from errors import UserError

MODEL = Path(__file__).parent / "fixtures/golden/glm2/base/tokenizer.model"
PROCESSOR = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
MAX_LEN = 24


def encode_batch(records):
    prompts = PROCESSOR.encode([r["instruction"] + r["input"] for r in records], num_threads=2)
    answers = PROCESSOR.encode([r["output"] for r in records], num_threads=2)
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt[: MAX_LEN - 4], *answer, PROCESSOR.eos_id()]
        labels = [IGNORE] * min(len(prompt), MAX_LEN - 4) + [*answer, PROCESSOR.eos_id()]
        cut = len(prompt) > MAX_LEN - 4 or len(ids) > MAX_LEN
        rows.append({"input_ids": ids[:MAX_LEN], "labels": labels[:MAX_LEN], "truncated": cut})
    return rows


def write(tmp_path, count, name="train.json"):
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            blank = "\n" if i % 3 == 0 else ""
            record = {"instruction": "抽取", "input": "故障" * (i % 17), "output": f"{i}号水泵_部件故障_漏水"}
            file.write(blank + json.dumps(record, ensure_ascii=False) + "\n")
    return path


def never(records):
    raise AssertionError("encoded again")


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_arrays_hold_the_encoders_rows(tmp_path, chunk):
    path = write(tmp_path, 50)
    dataset = TokenizedDataset(tokenize_file(path, encode_batch, tmp_path / "cache", key="k", chunk=chunk))
    numbered = list(read_records(path))
    rows = encode_batch([record for _, record in numbered])
    assert len(dataset) == len(rows) == 50
    for i, row in enumerate(rows):
        sample = dataset[i]
        assert sample["input_ids"].dtype == sample["labels"].dtype == np.int64
        assert sample["input_ids"].tolist() == row["input_ids"]
        assert sample["labels"].tolist() == row["labels"]
    assert dataset.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    assert dataset.supervised.tolist() == [sum(x != IGNORE for x in row["labels"][1:]) for row in rows]
    assert dataset.truncated.tolist() == [row["truncated"] for row in rows]
    assert 0 < dataset.truncated.sum() < 50
    assert dataset.lines.tolist() == [line for line, _ in numbered]
    assert dataset.lines[:3].tolist() == [2, 3, 4]


def test_first_token_is_no_target(tmp_path):
    def all_supervised(records):
        return [{"input_ids": [5] * n, "labels": [5] * n, "truncated": False} for n in range(1, len(records) + 1)]

    dataset = TokenizedDataset(tokenize_file(write(tmp_path, 4), all_supervised, tmp_path / "cache", key="k"))
    assert dataset.supervised.tolist() == [0, 1, 2, 3]
    assert dataset[3]["labels"].tolist() == [5, 5, 5, 5]


def test_select(tmp_path):
    dataset = TokenizedDataset(tokenize_file(write(tmp_path, 30), encode_batch, tmp_path / "cache", key="k"))
    kept = np.flatnonzero(~dataset.truncated)
    view = dataset.select(kept)
    assert len(view) == len(kept) and not view.truncated.any()
    for i, index in enumerate(kept):
        assert view[i]["labels"].tolist() == dataset[index]["labels"].tolist()
        assert view.lines[i] == dataset.lines[index] and view.lengths[i] == len(view[i]["input_ids"])
    assert view.select([3, 1]).lines.tolist() == dataset.lines[kept[[3, 1]]].tolist()
    assert len(dataset.select([])) == 0


def test_made_once_per_content_and_key(tmp_path):
    path, cache = write(tmp_path, 10), tmp_path / "cache"
    first = tokenize_file(path, encode_batch, cache, key="max_len 24")
    assert tokenize_file(path, never, cache, key="max_len 24") == first
    copy = write(tmp_path, 10, "copy.json")
    assert tokenize_file(copy, never, cache, key="max_len 24") == first
    assert tokenize_file(path, encode_batch, cache, key="max_len 32") != first
    path.write_bytes(path.read_bytes().replace("漏水".encode(), "堵塞".encode()))
    changed = tokenize_file(path, encode_batch, cache, key="max_len 24")
    assert changed != first and len(list(cache.iterdir())) == 3


def test_a_failure_leaves_nothing(tmp_path):
    path, cache = write(tmp_path, 10), tmp_path / "cache"
    with path.open("a") as file:
        file.write("oops\n")
    with pytest.raises(UserError, match=r"train.json:15: not JSON"):
        tokenize_file(path, encode_batch, cache, key="k", chunk=3)
    assert list(cache.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        tokenize_file(write(tmp_path, 10), interrupted, cache, key="k")
    assert list(cache.iterdir()) == []


def interrupted(records):
    raise KeyboardInterrupt


def test_what_a_killed_run_left_is_not_taken(tmp_path):
    path, cache = write(tmp_path, 10), tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(
        target=tokenize_file, args=(path, killed, cache), kwargs={"key": "k", "chunk": 4}
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    (left,) = cache.iterdir()
    assert left.name.endswith(".tmp")
    final = tokenize_file(path, encode_batch, cache, key="k")
    assert final != left and len(TokenizedDataset(final)) == 10


def killed(records):
    if "4号" in records[0]["output"]:  # the second chunk
        os._exit(9)
    return encode_batch(records)


def test_a_damaged_result_is_made_again(tmp_path):
    path, cache = write(tmp_path, 10), tmp_path / "cache"
    final = tokenize_file(path, encode_batch, cache, key="k")
    for damage in (
        lambda: (final / "input_ids.u32").write_bytes(b"1234"),
        lambda: (final / "lines.i64").unlink(),
        lambda: (final / "meta.json").write_text("{"),
    ):
        damage()
        assert not is_complete(final)
        assert tokenize_file(path, encode_batch, cache, key="k") == final and is_complete(final)
        assert [p.name for p in cache.iterdir()] == [final.name]


def race(path, cache, barrier, results):
    def together(records):
        barrier.wait()  # both have seen that nothing is there
        return encode_batch(records)

    results.put(tokenize_file(path, together, cache, key="k"))


@pytest.mark.parametrize("broken", [False, True])
def test_two_processes_race(broken, tmp_path):
    context = multiprocessing.get_context("fork")
    path, barrier, results = write(tmp_path, 40), context.Barrier(2), context.Queue()
    if broken:
        (tokenize_file(path, encode_batch, tmp_path / "cache", key="k") / "meta.json").unlink()
    processes = [context.Process(target=race, args=(path, tmp_path / "cache", barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    finals = {results.get(timeout=200) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (final,) = finals
    assert len(TokenizedDataset(final)) == 40
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [final.name]


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, 5)
    blocked = tmp_path / "a file"
    blocked.write_text("")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    final = tokenize_file(path, encode_batch, blocked / "cache", key="k")
    assert final.parent.parent.parent == temporary and len(TokenizedDataset(final)) == 5
    assert capsys.readouterr().err.count("cannot be written") == 1

    monkeypatch.setattr(tempfile, "tempdir", str(blocked))
    with pytest.raises(UserError, match="--data_cache_dir"):
        tokenize_file(path, encode_batch, blocked / "cache", key="k")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(data.tokenize, "_file", lambda directory, name: Path("/dev/full"))
    with pytest.raises(UserError, match="No space left on device.*--data_cache_dir"):
        tokenize_file(write(tmp_path, 5), encode_batch, tmp_path / "cache", key="k")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_changes_meanwhile(tmp_path):
    path = write(tmp_path, 5)

    def appended(records):
        with path.open("a") as file:
            file.write("\n")
        return encode_batch(records)

    with pytest.raises(UserError, match="was changed while it was read"):
        tokenize_file(path, appended, tmp_path / "cache", key="k")


def test_no_bar_for_short_work_without_a_terminal(tmp_path, capsys):
    tokenize_file(write(tmp_path, 5), encode_batch, tmp_path / "cache", key="k")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tokenize_file(write(tmp_path, 5), encode_batch, tmp_path / "cache", key="k")
    assert "tokenize train.json: 100%" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_file(tmp_path):
    def constant(records):
        row = {"input_ids": [7] * 100, "labels": [IGNORE] * 50 + [7] * 50, "truncated": False}
        return [row] * len(records)

    peaks = []
    for count in (10_000, 30_000):
        path = write(tmp_path, count)
        tracemalloc.start()
        tokenize_file(path, constant, tmp_path / "cache", key="k", chunk=200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


def encode_flat(records):
    rows = encode_batch(records)
    return {
        "input_ids": np.array([i for row in rows for i in row["input_ids"]], np.int32),
        "supervised": np.array([i != IGNORE for row in rows for i in row["labels"]]),
        "lengths": np.array([len(row["input_ids"]) for row in rows]),
        "truncated": np.array([row["truncated"] for row in rows]),
    }


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_rows_as_flat_arrays_make_the_same_files(tmp_path, chunk):
    path = write(tmp_path, 50)
    ours, theirs = (
        tokenize_file(path, encode, tmp_path / name, key="k", chunk=chunk)
        for encode, name in ((encode_flat, "flat"), (encode_batch, "rows"))
    )
    names = sorted(file.name for file in ours.iterdir())
    assert len(names) == 9 and names == sorted(file.name for file in theirs.iterdir())
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_the_first_mistake_is_told_though_reading_is_ahead(tmp_path):
    path = write(tmp_path, 10)
    with path.open("a") as file:
        file.write("oops\n")

    def refuse(records):
        raise UserError(f"refused at {records[0]['output']}")

    with pytest.raises(UserError, match="refused at 0号"):  # not the broken line behind the chunk that is encoded
        tokenize_file(path, refuse, tmp_path / "cache", key="k", chunk=6)
    with pytest.raises(UserError, match=r"train.json:15: not JSON"):  # in the same chunk: it is read first
        tokenize_file(path, refuse, tmp_path / "cache", key="k")


def test_the_next_chunk_is_read_while_one_is_encoded(tmp_path):
    read_on = threading.Event()

    def read(path, tally):
        for number, numbered in enumerate(read_records(path, tally=tally)):
            if number == 8:
                read_on.set()
            yield numbered

    def wait(records):
        assert read_on.wait(timeout=200)  # comes only if nobody waits for this chunk first
        return encode_batch(records)

    final = tokenize_file(write(tmp_path, 12), wait, tmp_path / "cache", key="k", read=read, chunk=6)
    assert len(TokenizedDataset(final)) == 12


def test_garbage_is_collected_again_afterwards(tmp_path):
    enabled = []

    def note(records):
        enabled.append(gc.isenabled())
        return encode_batch(records)

    tokenize_file(write(tmp_path, 5), note, tmp_path / "cache", key="k")
    with pytest.raises(KeyboardInterrupt):
        tokenize_file(write(tmp_path, 6), interrupted, tmp_path / "cache", key="k")
    assert enabled == [False] and gc.isenabled()
    gc.disable()
    try:
        tokenize_file(write(tmp_path, 7), note, tmp_path / "cache", key="k")
        assert not gc.isenabled()  # who had it off keeps it off
    finally:
        gc.enable()
