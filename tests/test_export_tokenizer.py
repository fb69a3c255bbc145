"""export/tokenizer_json.py: the same ids and texts as the sentencepiece model."""

import random

import pytest
from transformers import AutoTokenizer

from export.tokenizer_json import special_tokens, write_tokenizer
from modes.directory import read_base
from tests import golden

MODES = ("glm2", "glm3")
ODD = [
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\x00",
    "▁",
    "é",
    "é",
    "😀",
    "\ufeff",
    "�",
    "philosophy",
    "people",
    "sop",
    "eop",
    "<0x0A>",
    "[PAD3]",
]


@pytest.fixture(scope="module", params=MODES)
def written(request, tmp_path_factory):
    """(our tokenizer, that of transformers)"""
    base, directory = read_base(golden.base_path(request.param), request.param), tmp_path_factory.mktemp("hf")
    write_tokenizer(base, directory)
    return base.make_tokenizer(), AutoTokenizer.from_pretrained(directory)


def test_ids_of_texts(written):
    ours, fast = written
    draw = random.Random(0)
    pieces = [ours.sp_model.id_to_piece(i).replace("▁", " ") for i in range(ours.sp_model.vocab_size())]
    names = [*special_tokens(ours), "<s>"]
    parts = (pieces, ODD, names, [chr(draw.randrange(0x110000 - 0x800) % 0xD800) for _ in range(500)])
    texts = ["", *ODD, *names]
    texts += ["".join(draw.choice(draw.choice(parts)) for _ in range(draw.randint(1, 20))) for _ in range(3000)]
    assert fast(texts, add_special_tokens=False, split_special_tokens=True).input_ids == ours.encode_texts(texts)
