"""Token ids, decoded text and prompts are those of the official tokenizers."""

import pytest

from modes import MODES
from tests import golden

SPECIALS = [
    "<sop>",
    "a <eop> b",
    "[MASK][gMASK]",
    "</s>",
    "<pad> x",
    "<|user|>\nhi",
    "<n>",
    "<|blank_4|>",
    "x\ty",
    "\r\n",
]


def test_ids_and_text(mode):
    tokenizer = golden.tokenizer(mode)
    for case in golden.expected(mode)["tokenizer"]["cases"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.encode(case["text"]) == case["with_special"]
        assert tokenizer(case["text"])["input_ids"] == case["with_special"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_vocabulary(mode):
    tokenizer = golden.tokenizer(mode)
    for name in ("eos_token_id", "pad_token_id", "vocab_size"):
        assert getattr(tokenizer, name) == golden.expected(mode)["tokenizer"][name]
    assert len(tokenizer) == tokenizer.vocab_size
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("num_threads", [1, -1])
def test_bulk_encoding_is_the_same(mode, num_threads):
    tokenizer = golden.tokenizer(mode)
    texts = [case["text"] for case in golden.expected(mode)["tokenizer"]["cases"]] + SPECIALS
    texts += [record["instruction"] + record["output"] for record in golden.RECORDS]
    one_by_one = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert tokenizer.encode_texts(texts, num_threads=num_threads) == one_by_one
    assert tokenizer.encode_texts([]) == []


def test_glm2_multi_turn_prompt():
    case = golden.expected("glm2")["tokenizer"]["build_prompt"]
    assert golden.tokenizer("glm2").build_prompt(case["query"], case["history"]) == case["prompt"]


def test_glm3_chat_with_tools():
    case = golden.expected("glm3")["tokenizer"]["build_chat_input"]
    inputs = golden.tokenizer("glm3").build_chat_input(case["query"], case["history"])
    assert inputs["input_ids"].tolist() == [case["ids"]]
    assert inputs["attention_mask"].tolist() == [[1] * len(case["ids"])]


def test_glm3_unknown_role():
    with pytest.raises(ValueError, match="'tool'.*system, user, assistant, observation"):
        golden.tokenizer("glm3").build_single_message("tool", "", "x")


def test_modes_are_complete():
    assert list(MODES) == ["glm", "glm2", "glm3"]
    assert all(MODES[name].name == name for name in MODES)
