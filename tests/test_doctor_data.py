"""doctor/data.py: every mistake is found, the numbers are those of the rows, and the view says what is supervised."""

import io
import json
import re
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from data.formats import Columns
from data.records import read_records, scan_records
from data.sources import Source, scan_rows
from doctor.data import DataReport, Sample, color, describe, examine, histogram, show, suggestion, visible
from errors import UserError
from modes import MODES
from tests.golden import RECORDS, ROOT, tokenizer
from tests.launch import REPOSITORY

GOOD = {"instruction": "抽取三元组。", "input": "水泵漏水。", "output": "水泵_部件故障_漏水"}


def write(tmp_path, lines):
    path = tmp_path / "records.json"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def examined(path, mode="glm2", max_len=256, max_src_len=160, **options):
    encode = partial(MODES[mode].encode_batch, tokenizer(mode))
    return examine(path, scan_records, encode, max_len=max_len, max_src_len=max_src_len, **options)


def shown(report, mode="glm2", **options):
    out = io.StringIO()
    show(report, Console(file=out, width=200, **options), tokenizer(mode).convert_ids_to_tokens)
    return out.getvalue()


def test_all_problems_are_found_and_counted(tmp_path):
    good = json.dumps(GOOD, ensure_ascii=False)
    path = write(tmp_path, [good, "{", '{"instruction": 1}', good, "[]", "x"])
    report = examined(path, shown=3)
    assert report.problem_count == 4 and len(report.row) == 2
    assert [problem.split(": ")[0] for problem in report.problems] == [f"{path}:{line}" for line in (2, 3, 5)]
    text = shown(report)
    assert "6 records, 4 of them with a problem" in text and "… and 1 more" in text


def test_a_file_of_problems_only(tmp_path):
    report = examined(write(tmp_path, ["{"]))
    assert report.problem_count == 1 and not len(report.row) and "1 of them with a problem" in shown(report)
    assert examined(write(tmp_path, [""])).problems[0].endswith("it needs one JSON object per line.")
    with pytest.raises(UserError, match="does not exist"):
        examined(str(tmp_path / "absent.json"))


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize(("max_len", "max_src_len"), [(256, 160), (48, 32), (24, 200)])
def test_numbers_are_those_of_the_rows(mode, max_len, max_src_len):
    path = ROOT / "samples.jsonl"
    report = examined(path, mode, max_len, max_src_len)
    rows = [MODES[mode].encode(tokenizer(mode), record, max_len, max_src_len) for record in RECORDS]
    assert not report.problem_count and len(list(read_records(path))) == len(report.row)
    assert report.kept.tolist() == [len(row["input_ids"]) for row in rows]
    assert report.supervised.tolist() == [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    assert (report.prompt_cut | report.answer_cut).tolist() == [row["truncated"] for row in rows]
    assert (report.row == report.prompt + report.answer).all() and (report.row >= report.kept).all()
    text = shown(report, mode)
    assert f"{int(report.supervised.sum()):,} of them supervised" in text


def test_samples_are_the_first_a_cut_one_and_the_longest(tmp_path):
    records = [GOOD, {**GOOD, "input": "水" * 100}, {**GOOD, "output": "漏" * 300}]
    path = write(tmp_path, [json.dumps(record, ensure_ascii=False) for record in records])
    report = examined(path, max_len=100, max_src_len=60)
    assert [(s.line, s.why) for s in report.samples] == [(1, "first"), (2, "first truncated"), (3, "longest")]
    first, cut, longest = report.samples
    assert not first.prompt_cut and not first.answer_cut
    assert cut.prompt_cut == report.prompt[1] - cut.prompt > 0 and not cut.answer_cut
    assert longest.answer_cut == report.answer[2] - (len(longest.ids) - longest.prompt) > 0
    single = examined(write(tmp_path, [json.dumps(GOOD)]))
    assert [(s.line, s.why) for s in single.samples] == [(1, "first, longest")]


def test_view_of_a_sample():
    sample = Sample(line=7, why="first", ids=[1, 2, 3], runs=(2, 1), prompt_cut=5, answer_cut=0)
    text = color(sample, "f.json", lambda ids: [f"<{i}>" for i in ids])
    assert text.plain == (
        "f.json:7 (first)\n  prompt (2 tokens): <1>·<2> ✂ 5 tokens truncated\n  supervised (1 token): <3>\n"
    )
    assert {"blue", "green", "bold red"} <= {str(span.style) for span in text.spans}
    long = Sample(line=1, why="first", ids=list(range(500)), runs=(400, 100), prompt_cut=0, answer_cut=0)
    assert "79 … 240 tokens … 320" in color(long, "f", lambda ids: [str(i) for i in ids]).plain


def test_markup_in_the_data_is_text(tmp_path):
    path = write(tmp_path, [json.dumps({**GOOD, "output": "[/red] [bold]"}), '{"[/red]": 1}'])
    text = shown(examined(path))
    assert text.count("[/red]") == 1 and "]" in text.splitlines()[-2]
    assert "\x1b[32m" in shown(examined(path), force_terminal=True)


def test_statistics_and_histogram():
    values = np.array([1, 2, 3, 4, 100])
    assert describe(values) == [1, 3, 22.0, 100, 100, 100]
    assert describe(np.arange(1, 101)) == [1, 50, 50.5, 90, 99, 100]
    assert histogram(np.array([5, 5, 5])) == [(5, 5, 3)]
    for bins in (3, 16):
        ranges = histogram(values, bins)
        assert len(ranges) <= bins and sum(count for _, _, count in ranges) == 5
        assert ranges[0][0] == 1 and ranges[-1][1] >= 100
        assert all(a[1] + 1 == b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert visible("▁a\n\x1b[31m") == " a\\n\\x1b[31m"
    assert not DataReport("f", 1, 1).samples


@pytest.mark.parametrize("mode", list(MODES))
def test_the_suggested_limits_cut_no_conversation(mode):
    encode = partial(MODES[mode].encode_batch, tokenizer(mode), loss_on="all")
    source = Source(str(REPOSITORY / "data" / "samples" / "chats.json"), Columns())
    scan = lambda _, tally: scan_rows(source, roles=MODES[mode].roles, apart=MODES[mode].one_answer, tally=tally)  # noqa: E731
    report = examine(source.path, scan, encode, max_len=64, max_src_len=48)
    assert (report.prompt_cut | report.answer_cut).any()
    full = dict(
        zip(("max_src_len", "max_len"), map(int, re.findall(r"len (\d+)", suggestion(report))[:2]), strict=True)
    )
    report = examine(source.path, scan, encode, **full)
    assert not (report.prompt_cut | report.answer_cut).any()
