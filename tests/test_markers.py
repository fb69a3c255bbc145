"""Vocabularies of all releases: the first one's is completed, one without a marker of the prompt is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

from errors import UserError
from modes import MODES
from modes.directory import iterate_shards, read_base
from modes.glm.pieces import APPENDED
from tests import golden

IMAGES = 20000  # ids of the first releases in front of the text vocabulary
FIRST_CONFIG = {"bos_token": "<sop>", "eop_token": "<eop>", "eos_token": "</s>", "gmask_token": "[gMASK]",
                "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>", "remove_space": False,
                "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer"}  # fmt: skip


def edit(file, **changes):
    value = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}), encoding="utf-8")


def without(file, names):
    """Take pieces out of a sentencepiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    kept = [piece for piece in proto.pieces if piece.piece not in names]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    if all(name in names for name, _ in APPENDED):
        proto.trainer_spec.byte_fallback = False
    file.write_bytes(proto.SerializeToString())
    return len(kept)


def append(file, count):
    """Put pieces behind those of a sentencepiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    for i in range(count):
        proto.pieces.add(piece=f"龘{i}", score=-100.0)
    file.write_bytes(proto.SerializeToString())


@pytest.fixture
def first(tmp_path):
    """(base, its new id of each golden id): the golden ChatGLM-6B in the form of the first release."""
    base = shutil.copytree(golden.base_path("glm"), tmp_path / "first")
    pieces = golden.tokenizer("glm").get_vocab()
    count = without(base / "ice_text.model", {piece for piece, _ in APPENDED})
    (base / "tokenizer_config.json").write_text(json.dumps(FIRST_CONFIG), encoding="utf-8")
    size = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    special = {"bos_token_id": IMAGES + count + 4, "eos_token_id": IMAGES + count + 5, "pad_token_id": IMAGES + 3}
    appended = {piece for piece, _ in APPENDED}
    order = [i for piece, i in pieces.items() if piece not in appended] + [pieces[piece] for piece, _ in APPENDED]
    new = {old: IMAGES + i for i, old in enumerate(order)}
    tensors = {}
    for _, shard in iterate_shards(read_base(golden.base_path("glm"))):
        tensors |= {name: tensor.clone() for name, tensor in shard.items()}
    rows = [*order, *range(len(order), size)]
    for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
        tensors[name] = torch.cat([torch.zeros(IMAGES, tensors[name].shape[1]).half(), tensors[name][rows]])
    for file in base.glob("pytorch_model*"):
        file.unlink()
    save_file(tensors, base / "model.safetensors")
    edit(base / "config.json", vocab_size=IMAGES + size, mask_token_id=None, gmask_token_id=None, **special)
    return base, new


def test_the_first_release_is_completed_as_its_code_does(first):
    base, new = first
    tokenizer = MODES["glm"].tokenizer_class.from_pretrained(base)
    count = tokenizer.sp_model.vocab_size() - len(APPENDED)
    names = ("[MASK]", "[gMASK]", "<sop>", "<eop>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0x00>", "<0xFF>")
    assert [tokenizer.convert_tokens_to_ids(name) - IMAGES - count for name in names] == [0, 1, 4, 5, 8, 9, 87, 88, 343]
    for case in golden.expected("glm")["tokenizer"]["cases"]:
        if "gMASK" in case["text"]:  # a control piece in this release: a text cannot spell it
            assert tokenizer.gmask_token_id not in tokenizer.encode_texts([case["text"]])[0]
            continue
        assert tokenizer.encode_texts([case["text"]]) == [[new[i] for i in case["ids"]]]
        assert tokenizer.encode(case["text"]) == [new[i] for i in case["with_special"]]
        assert tokenizer.decode([new[i] for i in case["ids"]]) == case["decoded"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (new[89], new[90])
    tokenizer.save_pretrained(base.parent / "again")
    again = MODES["glm"].tokenizer_class.from_pretrained(base.parent / "again")
    assert (base.parent / "again" / "ice_text.model").read_bytes() == (base / "ice_text.model").read_bytes()
    assert again.encode("a\tb  c") == tokenizer.encode("a\tb  c") and again.eos_token_id == tokenizer.eos_token_id


def test_the_first_release_answers_and_trains_as_the_others(first):
    base, new = first
    read = read_base(base)
    mode = MODES[read.mode]
    tokenizer, golden_tokenizer = mode.tokenizer_class.from_pretrained(base), golden.tokenizer("glm")
    for record in golden.RECORDS:
        row, expected = (mode.encode(either, record, 512, 400) for either in (tokenizer, golden_tokenizer))
        assert row["input_ids"] == [new[i] for i in expected["input_ids"]]
        assert row["labels"] == [new.get(i, i) for i in expected["labels"]]
    model = mode.model_class.from_pretrained(base, dtype=torch.float32).eval()
    prompt = torch.tensor([[new[i] for i in golden.tensors("glm")["greedy.prompt"][0].tolist()]])
    output = model.generate(prompt, max_new_tokens=16, do_sample=False)
    assert output[0].tolist() == [new.get(i, IMAGES + i) for i in golden.tensors("glm")["greedy.output"][0].tolist()]


def test_ids_of_the_real_first_release(tmp_path):
    """130,000 pieces behind 20,000 image tokens: the ids that its config.json and modelling code have."""
    base = shutil.copytree(golden.base_path("glm"), tmp_path / "base")
    file = base / "ice_text.model"
    count = without(file, {piece for piece, _ in APPENDED})
    append(file, 130000 - count)
    (base / "tokenizer_config.json").write_text(json.dumps(FIRST_CONFIG), encoding="utf-8")
    tokenizer = MODES["glm"].tokenizer_class.from_pretrained(base)
    assert tokenizer.markers == {
        "[gMASK]": 150001, "<sop>": 150004, "<eop>": 150005, "<pad>": 20003, "<n>": 20004
    }  # fmt: skip
    config = MODES["glm"].config_class(bos_token_id=150004, eos_token_id=150005, vocab_size=150528)
    assert (config.mask_token_id, config.gmask_token_id) == (150000, 150001)


def token(content):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "special": True}


RESAVED = {"clean_up_tokenization_spaces": False, "do_lower_case": False, "remove_space": False,
           "model_max_length": 1000000000000000019884624838656, "padding_side": "left",
           "tokenizer_class": "ChatGLMTokenizer"}  # fmt: skip
# tokenizer_config.json as transformers 4.34 to 4.40 write it.
SAVED_AGAIN = {
    "glm": {
        **RESAVED, **FIRST_CONFIG, "eop_token": None, "eos_token": "<eop>", "end_token": "</s>", "num_image_tokens": 0,
        "clean_up_tokenization_spaces": True, "mask_token": {**token("[MASK]"), "__type": "AddedToken"},
        "added_tokens_decoder": {str(i): token(piece) for i, piece in ((0, "<unk>"), (3, "<pad>"), (85, "[MASK]"),
                                                                       (89, "<sop>"), (90, "<eop>"))},
    },
    "glm2": {**RESAVED, "added_tokens_decoder": {}, "additional_special_tokens": []},
    "glm3": {
        **RESAVED, "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", "encode_special_tokens": False,
        "additional_special_tokens": ["[gMASK]", "sop", "<|user|>"],
        "added_tokens_decoder": {"2401": token("[gMASK]"), "2403": token("sop"), "2406": token("<|user|>")},
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_tokenizer_that_was_saved_again_is_the_same(mode, tmp_path):
    base = shutil.copytree(golden.base_path(mode), tmp_path / "base")
    (base / "tokenizer_config.json").write_text(json.dumps(SAVED_AGAIN[mode]), encoding="utf-8")
    assert read_base(base, mode).mode == mode
    tokenizer, original = MODES[mode].tokenizer_class.from_pretrained(base), golden.tokenizer(mode)
    assert (tokenizer.markers, tokenizer.pad_token_id) == (original.markers, original.pad_token_id)
    for case in golden.expected(mode)["tokenizer"]["cases"]:
        assert tokenizer.encode_texts([case["text"]]) == [case["ids"]]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    for record in golden.RECORDS:
        assert MODES[mode].encode(tokenizer, record, 512, 400) == MODES[mode].encode(original, record, 512, 400)


# What is done to a base -> what the sentence says.
REFUSED = {
    "no <eop>": ("glm", lambda base: without(base / "ice_text.model", {"<eop>"}), "has no <eop>, which the prompt"),
    "no <n>": ("glm", lambda base: without(base / "ice_text.model", {"<n>"}), "has no <n>, which the prompt of glm"),
    "no [gMASK]": ("glm", lambda base: without(base / "ice_text.model", {"[gMASK]"}), r"has no \[gMASK\]"),
    "ChatGLM2's model under the other name": (
        "glm",
        lambda base: shutil.copy(golden.base_path("glm2") / "tokenizer.model", base / "ice_text.model"),
        r"ice_text\.model has no \[gMASK\], which the prompt of glm needs: download it again",
    ),
    "another name of a marker": (
        "glm",
        lambda base: edit(base / "tokenizer_config.json", bos_token="sop", eos_token="eop"),
        "has no sop, which the prompt",
    ),
    "image tokens too many": (
        "glm",
        lambda base: edit(base / "tokenizer_config.json", num_image_tokens=None),
        r"has \[gMASK\] at id 20086, config\.json has a vocabulary of 2432: .*set num_image_tokens .* to 0 or 20000",
    ),
    "image tokens forgotten": (
        "glm",
        lambda base: edit(base / "config.json", bos_token_id=109, eos_token_id=110),
        r"has bos_token_id 89, config\.json 109: .*num_image_tokens",
    ),
    "an end that the model never writes": (
        "glm",
        lambda base: edit(base / "tokenizer_config.json", eos_token="</s>"),
        r"has eos_token_id 2, config\.json 90: take both from the same release",
    ),
    "a marker that is a number": (
        "glm",
        lambda base: edit(base / "tokenizer_config.json", gmask_token=5),
        r"has gmask_token_id \d+, config\.json 86: take both",
    ),
    "glm2 without </s>": ("glm2", lambda base: without(base / "tokenizer.model", {"</s>"}), "has no </s>, which"),
    "glm3 without </s>": ("glm3", lambda base: without(base / "tokenizer.model", {"</s>"}), "has no </s>, which"),
    "more pieces than the model has rows": (
        "glm3",
        lambda base: append(base / "tokenizer.model", 25),
        r"has <\|assistant\|> at id 2432, config\.json has a vocabulary of 2432: .* from the same release\.$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_without_its_markers_is_refused(name, tmp_path):
    mode, damage, message = REFUSED[name]
    base = shutil.copytree(golden.base_path(mode), tmp_path / "base")
    damage(base)
    with pytest.raises(UserError, match=message):
        read_base(base)
