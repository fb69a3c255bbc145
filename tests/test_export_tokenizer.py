"""export/tokenizer_json.py: the same ids and texts as the sentencepiece model."""

import shutil

import pytest
from transformers import AutoTokenizer
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

from benchmarks.tokenizer_json import Comparison, main
from errors import UserError
from export.tokenizer_json import check_tokenizer, special_tokens, write_tokenizer
from export.vocabulary import read_pieces
from files import write_json_lines
from modes.chat_template import marked
from modes.directory import read_base
from scripts import make_tiny_base
from tests import golden

MODES = ("glm2", "glm3")


def golden_base(mode):
    return read_base(golden.base_path(mode), mode)


@pytest.fixture(scope="module", params=MODES)
def written(request, tmp_path_factory):
    """(base, our tokenizer, that of transformers, its directory)"""
    base, directory = golden_base(request.param), tmp_path_factory.mktemp("hf")
    write_tokenizer(base, directory)
    return base, base.make_tokenizer(), AutoTokenizer.from_pretrained(directory), directory


def test_random_texts(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--num", "3000", "--chats", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and [": 0 of 3,000 texts and 0 of 10 conv" in line for line in lines] == [True, True]


def test_random_texts_with_another_vocabulary(tmp_path):
    """English words, and runs of characters, which are pieces of several lengths."""
    record = {"instruction": "the people of philosophy ---- ==== " * 9, "output": "哈哈哈哈哈哈 abababababab"}
    write_json_lines(tmp_path / "a.json", [record])
    words = ["--mode", "glm3", "--output_dir", str(tmp_path / "base"), "--vocab_size", "320", "--hidden_size", "16"]
    make_tiny_base.make_base(make_tiny_base.parse_options([*words, "--train_text", str(tmp_path / "a.json")]))
    base = read_base(tmp_path / "base", "glm3")
    assert {"▁philosophy", "哈哈哈哈", "abab"} <= set(read_pieces(base))
    comparison = Comparison(base, 0)
    assert list(comparison.different_texts(3000)) == list(comparison.different_chats(200)) == []


def test_a_difference_is_found(monkeypatch, capsys):
    monkeypatch.setattr("export.tokenizer_json.SPACE", "_")
    with pytest.raises(SystemExit) as ended:
        main(["--num", "100", "--chats", "1"])
    assert ended.value.code == 1 and " texts and " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"tokenizer\.model splits .* as no tokenizer\.json can: use --format official"):
        check_tokenizer(golden_base("glm3"))


def test_real_texts(written):
    _, ours, fast, _ = written
    texts = [record[key] for record in golden.RECORDS for key in ("instruction", "input", "output")]
    assert fast(texts, add_special_tokens=False)["input_ids"] == ours.encode_texts(texts)
    assert fast.batch_decode(ours.encode_texts(texts)) == texts


def test_start_of_a_text_and_a_pair(written):
    _, ours, fast, _ = written
    assert fast("philosophy").input_ids == ours("philosophy").input_ids
    assert fast("people", "sop").input_ids == ours("people", "sop").input_ids
    padded = fast(["a", "a b c"], padding=True)
    assert padded.input_ids[0][0] == 0 and padded.attention_mask[0][0] == 0


def test_special_tokens(written):
    base, ours, fast, directory = written
    special = special_tokens(ours)
    assert fast.convert_tokens_to_ids(list(special)) == list(special.values()) == sorted(special.values())
    commands = {"sop": "<sop>", "eop": "<eop>"}
    assert all(special[commands.get(name, name)] == index for name, index in ours.markers.items())
    assert (fast.eos_token, fast.eos_token_id, fast.pad_token_id, fast.unk_token_id) == ("</s>", 2, 0, 0)
    assert fast.model_max_length == base.config["seq_length"]
    assert fast.decode([*special.values(), *ours.encode_texts(["a"])[0]], skip_special_tokens=True) == "a"
    assert (directory / "tokenizer.model").read_bytes() == base.vocabulary.read_bytes()


def test_names_of_special_tokens_are_recognized_unless_marked(written):
    _, ours, fast, _ = written
    for name, index in special_tokens(ours).items():
        assert fast(f"a{name}", add_special_tokens=False).input_ids[-1] == index
        text = f"a {name} b"
        expected = ours.encode_texts([text])[0]
        assert fast(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected
        assert fast(text.replace(name, marked(name)), add_special_tokens=False).input_ids == expected


def test_decoding_of_bytes(written):
    _, ours, fast, _ = written
    for text in ("  two spaces", "😀 𠮷\x00\n", "▁ x", "\u2581"):
        ids = ours.encode_texts([text])[0]
        assert fast.decode(ids) == ours.decode(ids)
        assert fast.decode(ids[1:]) == ours.decode(ids[1:])


def nfkc(model):
    model.normalizer_spec.precompiled_charsmap = b"x"


def without_first_space(model):
    model.normalizer_spec.add_dummy_prefix = False


def fewer_spaces(model):
    model.normalizer_spec.remove_extra_whitespaces = True


def unigram(model):
    model.trainer_spec.model_type = 1


def user_defined(model):
    model.pieces[-1].type = 4


def unused(model):
    model.pieces[-1].type = 5


@pytest.mark.parametrize("change", [nfkc, without_first_space, fewer_spaces, unigram, user_defined, unused])
def test_other_sentencepiece_models_are_refused(change, tmp_path):
    base = golden_base("glm3")
    model = sentencepiece_model_pb2.ModelProto.FromString(base.vocabulary.read_bytes())
    change(model)
    shutil.copytree(base.path, tmp_path / "base")
    changed = read_base(tmp_path / "base", "glm3")
    changed.vocabulary.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"tokenizer\.model is not a BPE model like the official one: use --format off"):
        check_tokenizer(changed)


def test_pieces_that_are_merged_through_others_are_refused(tmp_path):
    """Sentencepiece also merges characters that are no pieces themselves."""
    base = golden_base("glm3")
    model = sentencepiece_model_pb2.ModelProto.FromString(base.vocabulary.read_bytes())
    model.pieces[-1].piece = "ሴቶ"
    shutil.copytree(base.path, tmp_path / "base")
    changed = read_base(tmp_path / "base", "glm3")
    changed.vocabulary.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"splits 'ሴቶ' as no tokenizer\.json can"):
        check_tokenizer(changed)
