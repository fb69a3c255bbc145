"""data/tally.py: read = used + dropped + refused, in tokenized files and in what --dry_run looks at."""

import json
from functools import partial

import numpy as np
import pytest

from data.formats import ANY
from data.sources import Source, read_rows, scan_rows
from data.tally import Tally, account
from data.tokenize import TokenizedDataset, tokenize_file
from doctor.data import examine
from doctor.dry_run import rows_that_stay
from modes import MODES
from tests import golden

CHAT = {"messages": [{"role": role, "content": text} for role, text in
                     (("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", " "))]}  # fmt: skip
RECORDS = [
    {"instruction": "q", "input": "", "output": "a"},
    {"instruction": "q", "input": "", "output": ""},
    {"prompt": "q", "response": "\n \t", "id": 1},
    CHAT,
    {"instruction": "长" * 200, "input": "", "output": "a"},
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("loss_on", "chat_is_used"), [("all", True), ("last", False)])
def test_every_record_is_accounted_for(mode, loss_on, chat_is_used, tmp_path):
    path, this = write(tmp_path / "records.jsonl", RECORDS), MODES[mode]
    source, apart = Source(str(path), ANY), this.one_answer and loss_on == "all"
    tokenizer = golden.tokenizer(mode)
    encode = partial(this.encode_batch, tokenizer, loss_on=loss_on)
    encode_arrays = partial(this.encode_arrays, tokenizer, loss_on=loss_on)
    read = lambda _, tally: read_rows(source, roles=this.roles, apart=apart, tally=tally)  # noqa: E731
    directory = tokenize_file(
        path, partial(encode_arrays, max_len=64, max_src_len=32), tmp_path / "cache", key="k", read=read,
        every_answer=loss_on == "all", chunk=2,
    )  # fmt: skip
    dataset = TokenizedDataset(directory)
    assert dataset.tally.read == 5 and dataset.objects.tolist() == ([1, 2, 3, 4, 4, 5] if apart else [1, 2, 3, 4, 5])
    assert dataset.empty.tolist() == ([0, 1, 1, 0, 1, 0] if apart else [0, 1, 1, 1, 0])
    formats = 'format instruction/output (3), prompt/response (1), messages (1); keys not used: "id"'
    every = account(dataset.tally, dataset.objects, np.ones(len(dataset), bool))
    assert every == f"5 records read = 5 used + 0 dropped + 0 refused; {formats}"
    used = 2 if chat_is_used and apart else 1  # of glm3 a conversation is one row
    stays = ~(dataset.truncated | dataset.empty)
    expected = f"5 records read = {used} used + {5 - used} dropped + 0 refused; {formats}"
    assert account(dataset.tally, dataset.objects, stays) == expected

    scan = lambda _, tally: scan_rows(source, roles=this.roles, apart=apart, tally=tally)  # noqa: E731
    report = examine(str(path), scan, encode, max_len=64, max_src_len=32, every_answer=loss_on == "all")
    assert account(report.tally, report.objects, rows_that_stay(report, is_skip=True)) == expected


@pytest.mark.parametrize(
    ("record", "unused"),
    [
        (CHAT, []),
        ({"messages": [{"role": "user", "content": "q", "id": 1}, {"role": "assistant", "content": "a", "id": None}]},
         ["messages[].id"]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning_content": "r"}]},
         ["conversations[].reasoning_content"]),
        ({"conversation": json.dumps([{"human": "q", "assistant": "a", "n": 1}]), "id": 3},
         ["id", "conversation[].n"]),
        ({"paragraph": [{"q": "q", "a": ["a"], "is_impossible": True}]}, ["paragraph[].is_impossible"]),
        ({"chat": {"turn_1": {"Human": "q", "MOSS": "a", "Inner Thoughts": "i", "Commands": "None"}}},
         ["chat[].Inner Thoughts"]),
        ({"plain_text": "[Human]: q<eoh> [MOSS]: a<eoa>"}, []),
    ],
)  # fmt: skip
def test_keys_of_turns_that_are_not_used_are_named(record, unused, tmp_path):
    tally, path = Tally(), write(tmp_path / "records.jsonl", [record, record])
    assert len(list(read_rows(Source(str(path), ANY), roles=MODES["glm3"].roles, apart=False, tally=tally))) == 2
    assert tally.ignored == dict.fromkeys(unused, 2)


def test_refused_records_are_counted(tmp_path):
    records = [RECORDS[0], {"instruction": 1}, {"a": "b"}, {"messages": [{"role": "tool", "content": "a"}]}, RECORDS[0]]
    tool = {"messages": [*CHAT["messages"][:2], {"role": "tool", "content": "a"}, *CHAT["messages"][1:2]]}
    path = write(tmp_path / "records.jsonl", [*records, tool, 3])
    tally, this = Tally(), MODES["glm2"]
    scan = lambda _, tally: scan_rows(Source(str(path), ANY), roles=this.roles, apart=True, tally=tally)  # noqa: E731
    encode = partial(this.encode_batch, golden.tokenizer("glm2"))
    report = examine(str(path), scan, encode, max_len=64, max_src_len=32)
    tally = report.tally
    assert (tally.read, tally.refused, report.problem_count) == (7, 5, 5)
    line = account(tally, report.objects, rows_that_stay(report, is_skip=False))
    assert line.startswith("7 records read = 2 used + 0 dropped + 5 refused; ")


def test_a_lost_record_is_a_mistake_of_the_program():
    with pytest.raises(AssertionError, match="neither used nor dropped nor refused"):
        account(Tally(read=3, refused=1), np.array([1]), np.array([True]))
