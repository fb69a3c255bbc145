"""Tokenizers and prompts beyond the golden cases: odd text, old vocabularies, saving, cut rows."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import UserError
from modes import MODES
from modes.glm.tokenization import unmark_whitespace
from tests import golden

IGNORED = -100
ODD_TEXTS = [
    "a\x00b", "\u200d\ufeff", "é e\u0301", "𠮷野家", "\u2028x", "　全角　", "\r\n", "👨‍👩‍👧",
    " ", "  ", " \n ",
    " " * 200,
    "▁x", "<0x41>", "مرحبا", "\ud83d", "a\udc00b",
]  # fmt: skip


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


def record(instruction="", output="", **other):
    return {"instruction": instruction, "output": output, **other}


# Tokenizers


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text(mode, text):
    tokenizer = golden.tokenizer(mode)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode_texts([text]) == [ids]
    if mode != "glm":  # ChatGLM-6B's sentencepiece model normalizes (NFKC)
        shown = text.replace("\ud83d", "\ufffd").replace("\udc00", "\ufffd").replace("▁", " ")
        assert tokenizer.decode(ids) == shown


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_text_survives(text):
    for mode in ("glm2", "glm3"):
        tokenizer = golden.tokenizer(mode)
        assert tokenizer.decode(tokenizer.encode_texts([text], num_threads=1)[0]) == text


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from(" \n\tab你<>|[]MASKgsope/"), max_size=40))
def test_glm_bulk_is_one_by_one(text):
    tokenizer = golden.tokenizer("glm")
    assert tokenizer.encode_texts([text], num_threads=1) == [tokenizer.encode(text, add_special_tokens=False)]


def test_glm_whitespace_pieces():
    tokenizer = golden.tokenizer("glm")
    assert tokenizer.tokenize("a\tb\nc   d") == ["▁", "a", "<|tab|>", "b", "<n>", "c", "<|blank_3|>", "d"]
    assert tokenizer.tokenize("x" + " " * 165 + "y")[2:5] == ["<|blank_80|>", "<|blank_80|>", "<|blank_5|>"]
    assert tokenizer.decode(tokenizer.encode("a\tb\n\n  c", add_special_tokens=False)) == "a\tb\n\n  c"


@pytest.mark.parametrize(
    ("number", "length"),
    [
        ("2", 2),
        ("9", 9),
        ("80", 80),
        *((text, None) for text in ("0", "1", "81", "02", "-3", "٣", "", "9" * 20, "2" + "0" * 9)),
    ],
)
def test_glm_decodes_the_blanks_that_the_vocabulary_has(number, length):
    """A text may hold what looks like such a piece: only 2 to 80 are blanks, as in the official code."""
    tokenizer = golden.tokenizer("glm")
    piece = f"<|blank_{number}|>"
    assert unmark_whitespace(f"a{piece}b") == f"a{piece if length is None else ' ' * length}b"
    ids = tokenizer.encode_texts([f"a{piece}b"])[0]
    if number.isascii():
        assert tokenizer.decode(ids) == unmark_whitespace(f"a{piece}b")


CLEANED = [  # text, as transformers 4.33 decodes its ids
    ("Hello , world .", "Hello, world."),
    ("Why ? Stop !", "Why? Stop!"),
    ("I do n't , you 're 's 've 'm", "I don't, you're's've'm"),
    ("a ' b", "a'b"),
    ("好 。 好 ， 好", "好 。 好, 好"),  # the vocabulary has one comma
    ("x  , y", "x , y"),
    (" .", "."),
]


@pytest.mark.parametrize(("text", "decoded"), CLEANED)
def test_glm_drops_the_blank_before_punctuation(text, decoded, tmp_path):
    """The official ChatGLM-6B code leaves transformers' clean-up on; that of ChatGLM2 and ChatGLM3 switches it off."""
    tokenizer = golden.tokenizer("glm")
    assert tokenizer.decode(tokenizer.encode_texts([text])[0]) == decoded
    assert MODES["glm"].answer_text(tokenizer, tokenizer.encode_texts([text])[0]) == decoded
    for mode in ("glm2", "glm3"):
        changed = golden.tokenizer(mode)
        assert changed.decode(changed.encode_texts([text])[0]) == text
    # a base may say it of itself, as one that transformers 4.30 saved again does
    shutil.copytree(golden.base_path("glm"), tmp_path / "base")
    file = tmp_path / "base" / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"clean_up_tokenization_spaces": False}
    file.write_text(json.dumps(config), encoding="utf-8")
    plain = MODES["glm"].tokenizer_class.from_pretrained(tmp_path / "base")
    assert plain.decode(plain.encode_texts([text])[0]) == text.replace("，", ",")


def test_glm_padding_is_not_decoded():
    tokenizer = golden.tokenizer("glm")
    ids = tokenizer.encode("你好", add_special_tokens=False)
    assert tokenizer.decode([tokenizer.pad_token_id] * 3 + ids) == "你好"
    assert tokenizer.decode([]) == ""


def test_commands_of_glm2_have_no_text_and_those_of_glm3_have():
    ids = [2401, 2403, 268, 597, 2]
    assert golden.tokenizer("glm2").decode(ids) == "你好"
    assert golden.tokenizer("glm3").decode(ids) == "[gMASK]sop 你好"


def test_glm2_users_cannot_type_commands():
    for mode in ("glm2", "glm3"):
        ids = golden.tokenizer(mode).encode("</s> [gMASK] sop <|user|> <s>", add_special_tokens=False)
        assert max(ids) < 2400 and not {1, 2} & set(ids)


def test_pairs(mode):
    tokenizer = golden.tokenizer(mode)
    one, two = tokenizer.encode_texts(["你好", "在吗"])
    start = tokenizer.build_inputs_with_special_tokens(one)
    assert tokenizer.build_inputs_with_special_tokens(one, two) == start + two + [tokenizer.eos_token_id]


def test_left_padding(mode):
    tokenizer = golden.tokenizer(mode)
    batch = tokenizer(["你好", "发动机水温高"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id
    assert set(batch) == {"input_ids", "attention_mask"}


def test_tokenizer_round_trip(mode, tmp_path):
    tokenizer = golden.tokenizer(mode)
    tokenizer.save_pretrained(tmp_path)
    again = MODES[mode].tokenizer_class.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)  # onto itself
    again = MODES[mode].tokenizer_class.from_pretrained(tmp_path)
    for case in golden.expected(mode)["tokenizer"]["cases"]:
        assert again.encode(case["text"]) == case["with_special"]
        assert again.decode(case["ids"]) == case["decoded"]
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert (again.eos_token, again.pad_token, len(again)) == (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer))


def test_later_official_tokenizer_config_changes_nothing(tmp_path):
    """Releases of 2024 name their special tokens in tokenizer_config.json."""
    for mode in ("glm2", "glm3"):
        shutil.copytree(golden.base_path(mode), tmp_path / mode)
        file = tmp_path / mode / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", "padding_side": "left"}
        file.write_text(json.dumps(config), encoding="utf-8")
        tokenizer = MODES[mode].tokenizer_class.from_pretrained(tmp_path / mode)
        text = "</s> <unk> x"
        assert tokenizer.encode(text) == golden.tokenizer(mode).encode(text)
        assert tokenizer.pad_token_id == 0


def test_old_vocabulary_with_image_tokens(tmp_path):
    """Early ChatGLM-6B: the same pieces behind ids that were meant for images."""
    images, old = 20, tmp_path / "old"
    shutil.copytree(golden.base_path("glm"), old)
    config = json.loads((old / "tokenizer_config.json").read_text(encoding="utf-8"))
    (old / "tokenizer_config.json").write_text(json.dumps(config | {"num_image_tokens": images}), encoding="utf-8")
    tokenizer = MODES["glm"].tokenizer_class.from_pretrained(old)
    for case in golden.expected("glm")["tokenizer"]["cases"]:
        assert tokenizer.encode(case["text"]) == [i + images for i in case["with_special"]]
        assert tokenizer.encode_texts([case["text"]]) == [[i + images for i in case["ids"]]]
        assert tokenizer.decode([i + images for i in case["ids"]]) == case["decoded"]
    assert tokenizer.eos_token_id == 90 + images and tokenizer.pad_token_id == 3 + images
    assert tokenizer.vocab_size == 2400 + images
    assert tokenizer.convert_ids_to_tokens(5) == "<image_5>" and tokenizer.convert_tokens_to_ids("<image_5>") == 5

    new = golden.load_model("glm")
    config = new.config.to_dict() | {"vocab_size": new.config.vocab_size + images}
    config |= {
        name: config[name] + images for name in config if name.endswith("_token_id") and config[name] is not None
    }
    model = MODES["glm"].model_class(MODES["glm"].config_class(**config)).eval()
    weights = new.state_dict()
    embeddings = torch.cat([torch.zeros(images, 64), weights["transformer.word_embeddings.weight"]])
    weights |= {"transformer.word_embeddings.weight": embeddings, "lm_head.weight": embeddings}
    model.load_state_dict(weights)
    row = MODES["glm"].encode(tokenizer, golden.RECORDS[0], 2048, 2048)
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[..., images:]
    assert golden.relative_error(logits[:, -1], golden.tensors("glm")["single.logits_last"]) < 1e-4
    prompt = torch.tensor([MODES["glm"].prompt_ids(tokenizer, golden.RECORDS[0])])
    assert prompt.tolist() == (golden.tensors("glm")["greedy.prompt"] + images).tolist()
    output = model.generate(prompt, max_new_tokens=16, do_sample=False)
    assert output.tolist() == (golden.tensors("glm")["greedy.output"] + images).tolist()


# Prompts and rows


def test_training_begins_with_the_prompt(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    for sample in [*golden.RECORDS, record("x"), record("", "y"), record("", "", input="")]:
        for max_src_len in (2048, 30, 3, 0):
            row = this.encode(tokenizer, sample, 4096, max_src_len)
            prompt = this.prompt_ids(tokenizer, sample, max_src_len)
            answer = tokenizer.encode_texts([sample["output"]])[0] + [tokenizer.eos_token_id]
            assert row["input_ids"] == prompt + answer
        assert this.prompt_ids(tokenizer, sample) == this.prompt_ids(tokenizer, sample, 10**6)


def test_prompts_have_the_limits_of_training_where_max_len_is_the_tighter_one(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    for max_len, max_src_len in ((40, 40), (40, 400), (64, 50), (400, 30)):
        row = this.encode(tokenizer, golden.RECORDS[4], max_len, max_src_len)["input_ids"]
        prompt = this.prompt_ids(tokenizer, golden.RECORDS[4], max_src_len=max_src_len, max_len=max_len)
        assert row[: len(prompt)] == prompt and len(row) > len(prompt)


def test_greedy_prompts_are_ours_and_glm3_adds_a_line_end(mode):
    prompt = MODES[mode].prompt_ids(golden.tokenizer(mode), golden.RECORDS[0])
    assert prompt[: len(golden.tensors(mode)["greedy.prompt"][0])] == golden.tensors(mode)["greedy.prompt"][0].tolist()


def test_input_is_optional(mode):
    tokenizer, encode = golden.tokenizer(mode), MODES[mode].encode
    rows = [encode(tokenizer, sample, 99, 99) for sample in (record("问", "答"), record("问", "答", input=""))]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("mode", "marker"), [("glm", "\n答:"), ("glm2", "\n\n答：")])
def test_cut_prompt_keeps_its_marker(mode, marker):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    sample = record("很" * 400, "好")
    uncut, cut = (this.prompt_ids(tokenizer, sample, limit) for limit in (None, 60))
    assert len(cut) == 62 < len(uncut)
    assert tokenizer.decode(cut).removesuffix("[gMASK]<sop>").endswith(marker)
    assert this.encode(tokenizer, sample, 100, 60)["truncated"]


def test_cut_prompt_of_glm3_keeps_its_frame():
    prompt = MODES["glm3"].prompt_ids(golden.tokenizer("glm3"), record("很" * 400), 60)
    assert prompt[:3] == [2401, 2403, 2406] and prompt[-3:] == [2407, 497, 13]
    assert len(prompt) == 65


def test_cut_answer_has_no_end_token(mode):
    tokenizer, encode = golden.tokenizer(mode), MODES[mode].encode
    sample = record("问", "很" * 100)
    row = encode(tokenizer, sample, 60, 40)
    assert row["truncated"] and len(row["input_ids"]) == 60
    assert tokenizer.eos_token_id not in row["input_ids"]
    uncut = encode(tokenizer, sample, 200, 40)
    assert not uncut["truncated"] and uncut["input_ids"][-1] == uncut["labels"][-1] == tokenizer.eos_token_id
    exact = encode(tokenizer, sample, len(uncut["input_ids"]), 40)
    assert exact == uncut
    assert encode(tokenizer, sample, len(uncut["input_ids"]) - 1, 40)["truncated"]


def test_supervised_part(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    row = this.encode(tokenizer, golden.RECORDS[0], 2048, 2048)
    supervised = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    prompt = len(this.prompt_ids(tokenizer, golden.RECORDS[0]))
    first = {"glm": prompt - 1, "glm2": prompt, "glm3": prompt - 3}[mode]
    assert supervised == list(range(first, len(row["input_ids"])))
    assert [row["labels"][i] for i in supervised] == row["input_ids"][first:]


def test_prompt_leaves_room_for_an_answer(mode):
    """Whatever max_src_len says, a row has a supervised answer token and is no longer than max_len."""
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    for max_len in range(10, 60):
        for max_src_len in (0, 5, max_len, 10 * max_len):
            row = this.encode(tokenizer, golden.RECORDS[4], max_len, max_src_len)
            prompt = this.prompt_ids(tokenizer, golden.RECORDS[4], max_src_len)
            assert len(row["input_ids"]) == len(row["labels"]) <= max_len
            assert row["labels"][-1] != IGNORED
            assert row["truncated"]
            if len(prompt) < max_len:
                assert row["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize(("mode", "smallest"), [("glm", 3), ("glm2", 3), ("glm3", 6)])
def test_smallest_max_len(mode, smallest):
    tokenizer, encode = golden.tokenizer(mode), MODES[mode].encode
    assert len(encode(tokenizer, golden.RECORDS[0], smallest, 10)["input_ids"]) == smallest
    with pytest.raises(UserError, match=f"max_len {smallest - 1} .* at least {smallest}"):
        encode(tokenizer, golden.RECORDS[0], smallest - 1, 10)


def test_empty_answer_is_an_end_token(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    row = this.encode(tokenizer, record("问"), 100, 100)
    assert row["input_ids"] == this.prompt_ids(tokenizer, record("问")) + [tokenizer.eos_token_id]
    assert not row["truncated"]


def test_answer_text_is_what_was_taught(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    for answer in ("发动机_部件故障_水温高\n风扇", " 两个  空格", "", "a\n\n- b"):
        row = this.encode(tokenizer, record("问", answer), 200, 100)
        generated = row["input_ids"][len(this.prompt_ids(tokenizer, record("问"))) :]
        assert this.answer_text(tokenizer, generated) == answer
        assert this.answer_text(tokenizer, torch.tensor(generated + [5, 353])) == answer
        assert this.answer_text(tokenizer, generated[:-1]) == answer
    assert this.stop_ids(tokenizer)[0] == tokenizer.eos_token_id


def test_glm3_answer_ends_where_the_user_speaks():
    tokenizer = golden.tokenizer("glm3")
    ids = tokenizer.encode_texts(["好"])[0]
    for role in ("<|user|>", "<|observation|>"):
        assert MODES["glm3"].answer_text(tokenizer, ids + [tokenizer.get_command(role)] + ids) == "好"


def test_sop_in_a_users_text(mode):
    """It neither moves the labels nor, in ChatGLM-6B, the place where the answer begins."""
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    sample = record("什么是 <sop> 和 [gMASK] 呢", "答案")
    row = this.encode(tokenizer, sample, 200, 100)
    prompt = this.prompt_ids(tokenizer, sample)
    assert row["input_ids"][: len(prompt)] == prompt
    model = golden.shared_model(mode)
    loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
    assert torch.isfinite(loss)
    assert model.generate(torch.tensor([prompt]), max_new_tokens=2, do_sample=False).shape[1] > len(prompt)
    if mode == "glm":
        from modes.glm.positions import from_ids

        block = from_ids(torch.tensor([row["input_ids"]]), None, model.config)[0, 1]
        assert block.tolist().index(1) == len(prompt) - 1


def test_template_is_the_prompt(mode):
    tokenizer, this = golden.tokenizer(mode), MODES[mode]
    text = this.template.format(instruction="甲", input="乙")
    shown = tokenizer.decode(this.prompt_ids(tokenizer, record("甲", input="乙"))).replace("[gMASK]", "")
    assert shown.replace("<sop>", "").replace("sop", "").replace(" ", "").replace(":", "：") == text.replace(" ", "")
