"""benchmarks/tokenization.py compares like with like: the loop of 2023 makes our rows."""

import json
from pathlib import Path

import pytest

from benchmarks.pairs import alternate, machine, report
from benchmarks.tokenization import measure
from benchmarks.tokenizers_of_2023 import TOKENIZERS, read_one_by_one
from data.records import read_records
from modes import MODES
from tests import golden

SMALL = Path(__file__).parent.parent / "data" / "spo_1.json"


@pytest.mark.parametrize("mode", list(MODES))
def test_rows_of_2023_are_ours(mode):
    tokenizer = golden.tokenizer(mode)
    theirs = TOKENIZERS[mode](tokenizer.vocab_file)
    records = [record for _, record in read_records(SMALL)]
    ours = MODES[mode].encode_batch(tokenizer, records, 512, 400)
    rows = read_one_by_one(SMALL, mode, theirs, 512, 400)
    assert rows == [{name: row[name] for name in ("input_ids", "labels")} for row in ours] and len(rows) > 100
    with pytest.raises(ValueError, match="a record of"):
        read_one_by_one(SMALL, mode, theirs, 512, 8)


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("text", ["a  b\t\nc" + " " * 90, "", "水泵，渗漏", "▁ x"])
def test_pieces_of_2023_are_ours(mode, text):
    tokenizer = golden.tokenizer(mode)
    theirs = TOKENIZERS[mode](tokenizer.vocab_file)
    assert theirs.convert_tokens_to_ids(theirs.tokenize(text)) == tokenizer.encode_texts([text])[0]


def test_report(tmp_path, capsys):
    output = tmp_path / "results" / "x.json"
    report({"benchmark": "x", "value": 3}, output)
    written = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == written
    assert written["value"] == 3 and written["memory_bytes"] > 10**8
    assert {"date", "cpu", "python", "torch", "deepspeed", "peft", "sentencepiece"} <= written.keys()
    report({"benchmark": "x"})
    assert json.loads(capsys.readouterr().out)["benchmark"] == "x"
    assert machine()["python"].startswith("3.")


def test_ratio_is_of_pairs():
    result = alternate(lambda: sum(range(10**5)), lambda: [sum(range(10**5)) for _ in range(5)], 3)
    assert len(result["ours"]) == len(result["other"]) == len(result["ours_cpu"]) == 3
    assert result["ratio_cpu"] > 2


def test_both_sides_are_measured(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = SMALL.read_text(encoding="utf-8").splitlines()[:20]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    row = measure("glm3", path, tmp_path / "cache", len(lines), 1)
    assert row["tokens"] > 20 * len(lines) and min(row["records_per_second"].values()) > 0
