"""Rows that nothing cuts are those of the official fine-tuning code, id by id and label by label."""

from modes import MODES
from tests import golden


def test_rows(mode):
    encode, tokenizer = MODES[mode].encode, golden.tokenizer(mode)
    compared = 0
    for setting in golden.expected(mode)["dataset"]:
        rows = [encode(tokenizer, record, setting["max_len"], setting["max_src_len"]) for record in golden.RECORDS]
        if setting["is_skip"]:  # the official code drops what it would cut, and so we know that we agree on that
            rows = [row for row in rows if not row["truncated"]]
        assert len(rows) == len(setting["examples"])
        for row, example in zip(rows, setting["examples"], strict=True):
            if not row["truncated"]:
                assert row["input_ids"] == example["input_ids"]
                assert row["labels"] == example["labels"]
                compared += 1
            assert len(row["input_ids"]) == len(row["labels"]) <= setting["max_len"]
    assert compared >= 8


def test_model_inputs_are_such_rows(mode):
    row = MODES[mode].encode(golden.tokenizer(mode), golden.RECORDS[0], 2048, 2048)
    assert row["input_ids"] == golden.tensors(mode)["single.input_ids"][0].tolist()
    assert row["labels"] == golden.tensors(mode)["single.labels"][0].tolist()


def test_batch_is_one_by_one(mode):
    encode, encode_batch = MODES[mode].encode, MODES[mode].encode_batch
    tokenizer, records = golden.tokenizer(mode), golden.RECORDS * 3
    assert encode_batch(tokenizer, records, 96, 48) == [encode(tokenizer, record, 96, 48) for record in records]
    assert encode_batch(tokenizer, [], 96, 48) == []
