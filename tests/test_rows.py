"""modes/rows.py: rows as flat arrays are the rows of the lists, and a batch is its records one by one."""

import numpy as np
import pytest

from modes import MODES
from modes.rows import IGNORED
from tests import golden

pytestmark = pytest.mark.parametrize("mode", list(MODES))

TEXTS = [
    "水泵渗漏",
    "",
    "  a  b\t\nc\n\n",
    "<pad> x <sop>y",
    "a\0b",
    "\ud83d 半",
    "ΑΣ Σ",
    " " * 100,
    "[MASK]<unk>[gMASK]",
]
PAIRS = [{"instruction": a, "input": b, "output": b + a} for a in TEXTS for b in TEXTS]
ROUNDS = [("你好", "你好！"), ("泵坏了", "换一个" * 9), ("谢谢", "不客气")]
TURNS = [
    {"role": role, "content": text} for turn in ROUNDS for role, text in zip(("user", "assistant"), turn, strict=True)
]
SYSTEM = {"role": "system", "content": "你是检修助手。" * 3}
CHATS = [
    {"messages": TURNS, "ready": False, "source": {}},
    {"messages": [SYSTEM, *TURNS], "ready": False, "source": {}},
    {"messages": TURNS[:2], "ready": True, "source": {}},
    {"instruction": "问", "output": "答", "source": {"instruction": "问", "output": "答", "messages": None}},
    {"messages": TURNS[1:], "ready": False, "source": {}},
    {"messages": [SYSTEM, *TURNS[1:]], "ready": False, "source": {}},
]


@pytest.mark.parametrize("loss_on", ["last", "all"])
@pytest.mark.parametrize("limits", [(512, 400), (64, 40), (20, 12), (9, 0), (40, 39)])
def test_flat_rows_are_the_rows(mode, limits, loss_on):
    this, tokenizer = MODES[mode], golden.tokenizer(mode)
    records = [*golden.RECORDS, *PAIRS, *CHATS, *golden.RECORDS]
    flat = this.encode_arrays(tokenizer, records, *limits, loss_on=loss_on)
    assert flat["input_ids"].dtype == np.int32 and flat["supervised"].dtype == flat["truncated"].dtype == bool
    rows = [this.encode_batch(tokenizer, [record], *limits, loss_on=loss_on)[0] for record in records]
    assert flat["lengths"].tolist() == [len(row["input_ids"]) for row in rows]
    assert flat["input_ids"].tolist() == [i for row in rows for i in row["input_ids"]]
    assert flat["supervised"].tolist() == [label != IGNORED for row in rows for label in row["labels"]]
    assert flat["truncated"].tolist() == [row["truncated"] for row in rows]
    assert this.encode_batch(tokenizer, records, *limits, loss_on=loss_on) == rows
    if 9 < limits[0] < 512:
        assert 0 < flat["truncated"].sum() < len(records)


def test_no_record(mode):
    flat = MODES[mode].encode_arrays(golden.tokenizer(mode), [], 64, 32)
    assert {name: len(array) for name, array in flat.items()} == dict.fromkeys(flat, 0)


def test_a_row_id_by_id(mode):
    """The parts of a row, made of the tokenizer's pieces one text at a time."""
    tokenizer = golden.tokenizer(mode)
    ids = lambda text: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))  # noqa: E731
    front = {
        "glm": lambda: [*ids("[Round 1]\n问：甲乙\n答："), tokenizer.gmask_token_id],
        "glm2": lambda: [*tokenizer.get_prefix_tokens(), *ids("[Round 1]\n\n问：甲乙\n\n答：")],
        "glm3": lambda: [
            *tokenizer.get_prefix_tokens(), tokenizer.get_command("<|user|>"), *ids("\n"), *ids("甲乙"),
        ],
    }[mode]()  # fmt: skip
    turn = {"glm": lambda: [tokenizer.bos_token_id], "glm2": lambda: [],
            "glm3": lambda: [tokenizer.get_command("<|assistant|>"), *ids("\n")]}[mode]()  # fmt: skip
    supervised = [*turn, *ids("丙 丁\n"), tokenizer.eos_token_id]
    record = {"instruction": "甲", "input": "乙", "output": "丙 丁\n"}
    flat = MODES[mode].encode_arrays(tokenizer, [record] * 3, 99, 80)
    assert flat["input_ids"].tolist() == (front + supervised) * 3
    assert flat["supervised"].tolist() == ([False] * len(front) + [True] * len(supervised)) * 3


@pytest.mark.parametrize("images", [0, 20000])
def test_texts_in_one_go_are_the_texts_one_by_one(mode, images):
    if images and mode != "glm":
        pytest.skip("only ChatGLM-6B had image tokens")
    tokenizer = golden.tokenizer(mode) if not images else MODES[mode].tokenizer_class(
        golden.tokenizer(mode).vocab_file, num_image_tokens=images
    )  # fmt: skip
    one_by_one = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in TEXTS]
    plain = [text for text in TEXTS if "<" not in text and "[" not in text and "\0" not in text]
    for texts in (TEXTS, plain, [], ["a\0b", ""]):
        expected = [one_by_one[TEXTS.index(text)] for text in texts]
        assert tokenizer.encode_texts(texts) == expected
        arrays = tokenizer.encode_arrays(texts)
        assert [ids.tolist() for ids in arrays] == expected and all(ids.dtype == np.int32 for ids in arrays)
