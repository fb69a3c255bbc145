"""scripts/make_tiny_base.py: the official layout, readable by everything that reads a base."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

from data.records import read_records
from errors import UserError
from modes import MODES
from modes.directory import fingerprint, read_base

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "fixtures/golden"
SCRIPT = ROOT / "scripts/make_tiny_base.py"

spec = importlib.util.spec_from_file_location("make_tiny_base", SCRIPT)
maker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maker)


def make(path, mode, *flags):
    small = ["--hidden_size", "32", "--num_layers", "2", "--num_attention_heads", "2", "--multi_query_group_num", "1"]
    maker.make_base(maker.parse_options(["--mode", mode, "--output_dir", str(path), *small, *flags]))


@pytest.fixture(scope="module", params=["glm", "glm2", "glm3"])
def base(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / request.param
    make(path, request.param)
    return request.param, path


def pieces(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_files_and_keys_are_the_official_ones(base):
    mode, path = base
    golden = GOLDEN / mode / "base"
    assert {file.name for file in path.iterdir()} == {file.name for file in golden.iterdir()}
    for name in ("config.json", "tokenizer_config.json"):
        ours, official = (json.loads((directory / name).read_text()) for directory in (path, golden))
        assert set(ours) - {"_name_or_path"} == set(official)
        assert all(type(ours[key]) is type(official[key]) for key in official)
    ours, official = ({}, {})
    for directory, weights in ((path, ours), (golden, official)):
        for file in sorted(directory.glob("*.bin")):
            weights |= torch.load(file, weights_only=True)
    computed = {name for name in official if name.endswith("inv_freq")}
    deeper = {name for name in official if ".layers.2." in name or ".layers.3." in name}  # two layers are made here
    assert set(ours) == set(official) - computed - deeper
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}


def test_special_pieces_have_official_ids(base):
    mode, path = base
    name = {"glm": "ice_text.model"}.get(mode, "tokenizer.model")
    ours, golden = pieces(path / name), pieces(GOLDEN / mode / "base" / name)
    front = {"glm": 349, "glm2": 3, "glm3": 3}[mode]  # <unk> <s> </s>; for glm also [MASK] … and the bytes
    assert [ours.id_to_piece(i) for i in range(front)] == [golden.id_to_piece(i) for i in range(front)]
    assert [ours.is_byte(i) for i in range(front)] == [golden.is_byte(i) for i in range(front)]
    config = json.loads((path / "config.json").read_text())
    assert config.get("vocab_size", config.get("padded_vocab_size")) % 64 == 0
    if mode == "glm":
        official = json.loads((GOLDEN / "glm/base/config.json").read_text())
        assert all(config[key] == official[key] for key in official if key.endswith("_token_id"))


def test_it_is_read_as_its_mode_and_trains(base):
    name, path = base
    mode = MODES[name]
    assert read_base(path).mode == name
    tokenizer = mode.tokenizer_class.from_pretrained(path)
    model = mode.model_class.from_pretrained(path, dtype=torch.float32)
    _, record = next(iter(read_records(ROOT / "data/spo_1.json")))
    row = mode.encode(tokenizer, record, 512, 400)
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    model(input_ids=ids, labels=labels).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert len(ids[0]) < 100  # whole words are pieces


def test_answers_survive_the_tokenizer(base):
    name, path = base
    mode = MODES[name]
    tokenizer = mode.tokenizer_class.from_pretrained(path)
    for file in ("spo_1.json", "samples/reviews_test.json"):
        for _, record in read_records(ROOT / "data" / file):
            row = mode.encode(tokenizer, record, 512, 400)
            prompt = mode.prompt_ids(tokenizer, record)
            assert mode.answer_text(tokenizer, row["input_ids"][len(prompt) :]) == record["output"]


def test_seed_and_file_format(tmp_path):
    for name, flags in {
        "a": [],
        "b": ["--format", "safetensors", "--shards", "3"],
        "c": ["--seed", "1"],
    }.items():
        make(tmp_path / name, "glm3", *flags)
    a, b, c = (fingerprint(read_base(tmp_path / name)) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size", "30"], "--hidden_size 30 must be"),
        (["--vocab_size", "100"], "--vocab_size 100 does not suit"),
        (["--multi_query_group_num", "3"], "--multi_query_group_num 3 must divide"),
        (["--train_text", "absent.json"], "absent.json does not exist"),
    ],
)
def test_bad_options(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "base", "glm2", *flags)
    assert not (tmp_path / "base").exists()


def test_does_not_write_over_anything(tmp_path):
    (tmp_path / "kept").write_text("mine")
    command = [sys.executable, str(SCRIPT), "--mode", "glm2", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "exists already" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
