"""Base directories that train.py refuses, and hostile files beside a good base that must not matter."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

import predict
import train
from tests.bad_input.place import Hostile, cut, edit, refused, snapshot, train_flags, write

INDEX, SHARD = "pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin"


def config(**changes):
    return lambda base: edit(base / "config.json", **changes)


def instead(name, content):
    """Rewrite one file of the base; a function returns its content from the base's path."""
    return lambda base: write(base / name, content(base) if callable(content) else content)


def one_file(name, make):
    """Put one weight file in the place of all."""

    def damage(base):
        for file in base.glob("pytorch_model*"):
            file.unlink()
        make(base / name)

    return damage


def save(value):
    return lambda path: torch.save(value(path) if callable(value) else value, path)


def relink(name, target):
    """Make a file of the base a link; to itself, moved out of the base, where there is no target."""

    def damage(base):
        if target is None:
            shutil.move(base / name, base.parent / name)
        else:
            (base / name).unlink()
        (base / name).symlink_to(target or base.parent / name)

    return damage


# name: (damage, what the sentence says)
BASES = {
    "no config": (lambda base: (base / "config.json").unlink(), r"config\.json is missing"),
    "empty config": (instead("config.json", b""), r"config\.json:1 is not JSON"),
    "config is not json": (instead("config.json", '{"num_layers": 4,\n'), r"config\.json:2"),
    "config is a list": (instead("config.json", "[]"), r"config\.json is not a JSON object"),
    "config in UTF-16": (instead("config.json", "{}".encode("utf-16")), r"config\.json cannot be read"),
    "config of 10,000 brackets": (instead("config.json", "[" * 10_000), r"config\.json cannot be read as JSON"),
    "config with 10,000 digits": (instead("config.json", '{"num_layers": ' + "9" * 10_000 + "}"), r"config\.json"),
    "another model": (instead("config.json", '{"model_type": "llama"}'), "llama, not ChatGLM"),
    "hidden_size is a text": (config(hidden_size="32"), 'hidden_size "32"'),
    "hidden_size is null": (config(hidden_size=None), "hidden_size null"),
    "hidden_size is NaN": (config(hidden_size=float("nan")), "hidden_size NaN"),
    "negative layers": (config(num_layers=-4), "num_layers -4"),
    "10**9 layers": (config(num_layers=10**9), "num_layers 1000000000"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads 0"),
    "a list of groups": (config(multi_query_group_num=[2]), "multi_query_group_num"),
    "layernorm_epsilon is a text": (config(layernorm_epsilon="small"), "layernorm_epsilon"),
    "a switch is a number": (config(add_qkv_bias=7), "add_qkv_bias"),
    "quantized": (config(quantization_bit=4), "quantization_bit 4"),
    "a dtype that there is not": (config(torch_dtype="float13"), "float13"),
    "tokenizer_config is not json": (instead("tokenizer_config.json", "{"), r"tokenizer_config\.json:1"),
    "tokenizer_config is a list": (instead("tokenizer_config.json", "[1]"), r"tokenizer_config\.json is not a JSON"),
    "padding on neither side": (instead("tokenizer_config.json", {"padding_side": 7}), "JSON files in"),
    "added tokens of a wrong kind": (instead("tokenizer_config.json", {"added_tokens_decoder": [3]}), "JSON files in"),
    "broken generation_config": (instead("generation_config.json", "{oops"), r"generation_config\.json:1"),
    "broken special tokens": (instead("special_tokens_map.json", "\x00"), r"special_tokens_map\.json:1"),
    "no tokenizer": (lambda base: (base / "tokenizer.model").unlink(), r"tokenizer\.model is missing"),
    "empty tokenizer": (instead("tokenizer.model", b""), r"tokenizer\.model is not a sentencepiece model"),
    "tokenizer cut short": (lambda base: cut(base / "tokenizer.model"), r"tokenizer\.model is not a sentencepiece"),
    "tokenizer is a pickle": (
        instead("tokenizer.model", lambda base: pickle.dumps(Hostile(base / "executed"))),
        r"tokenizer\.model is not a sentencepiece",
    ),
    "tokenizer is a directory": (
        lambda base: ((base / "tokenizer.model").unlink(), (base / "tokenizer.model").mkdir()),
        r"tokenizer\.model is missing",
    ),
    "tokenizer links outside": (relink("tokenizer.model", None), r"tokenizer\.model is a link to .*outside"),
    "tokenizer links to nothing": (relink("tokenizer.model", "nowhere"), r"tokenizer\.model is missing"),
    "a README that links outside": (lambda base: (base / "README").symlink_to("/etc/passwd"), "README is a link to"),
    "an adapter beside the base": (instead("adapter_config.json", {"peft_type": "LORA"}), r"adapter_config\.json"),
    "no weights": (lambda base: [file.unlink() for file in base.glob("pytorch_model*")], "holds no weights"),
    "a missing shard": (lambda base: (base / SHARD).unlink(), f"lacks {SHARD}"),
    "a shard cut short": (lambda base: cut(base / SHARD), f"{SHARD} cannot be read as weights"),
    "an empty shard": (instead(SHARD, b""), f"{SHARD} cannot be read as weights"),
    "a pointer in the place of a shard": (instead(SHARD, "version https://git-lfs.github.com/spec/v1\n"), SHARD),
    "a web page in the place of a shard": (instead(SHARD, "<!DOCTYPE html>"), SHARD),
    "index cut short": (lambda base: cut(base / INDEX), r"index\.json:\d+ is not JSON"),
    "index without a map": (lambda base: edit(base / INDEX, weight_map=[1]), "has no weight_map"),
    "index out of the directory": (lambda base: edit(base / INDEX, weight_map__x="../../elsewhere.bin"), "elsewhere"),
    "index of an absolute path": (lambda base: edit(base / INDEX, weight_map__x="/etc/passwd"), "'/etc/passwd'"),
    "a hostile pickle": (
        one_file("pytorch_model.bin", save(lambda path: {"x": Hostile(path.with_name("executed"))})),
        r"pytorch_model\.bin cannot be read as weights",
    ),
    "a hostile pickle of old": (
        one_file("pytorch_model.bin", lambda path: write(path, pickle.dumps(Hostile(path.with_name("executed"))))),
        r"pytorch_model\.bin cannot be read as weights",
    ),
    "a list of tensors": (one_file("pytorch_model.bin", save([torch.zeros(2)])), "more than tensors"),
    "numbers for tensors": (one_file("pytorch_model.bin", save({"x": 3})), "more than tensors"),
    "safetensors cut short": (
        one_file(
            "model.safetensors",
            lambda path: (save_file({"x": torch.zeros(999)}, path), cut(path)),
        ),
        r"model\.safetensors cannot be read as weights",
    ),
    "safetensors with a header too long": (
        one_file("model.safetensors", lambda path: write(path, b"\xff" * 8 + b"{}")),
        r"model\.safetensors cannot be read as weights",
    ),
    "more layers than weights": (config(num_layers=5), r"holds no transformer.*layers\.4.*missing"),
    "fewer words than weights": (config(padded_vocab_size=64), r"of shape .*config\.json requires"),
    "heads that do not divide": (config(num_attention_heads=7), r"config\.json"),
    "other weights": (one_file("model.safetensors", lambda path: save_file({"x": torch.zeros(2)}, path)), "holds no"),
    "a base that is a file": (lambda base: (shutil.rmtree(base), write(base, b"x")), "is not a directory"),
}


@pytest.mark.parametrize("name", BASES)
def test_bases(name, place):
    damage, pattern = BASES[name]
    damage(place / "base")
    refused(train.main, train_flags(place), pattern, place)


@pytest.mark.parametrize(
    "name", ["negative layers", "a hostile pickle", "tokenizer cut short", "hidden_size is a text"]
)
def test_asking_a_bad_base(name, place):
    damage, pattern = BASES[name]
    damage(place / "base")
    refused(predict.main, ["--model_path", str(place / "base"), "--instruction", "a"], pattern, place)


EXECUTED = "open({!r}, 'w')\n"
HARMLESS = {
    "code beside the base": lambda base: [
        write(base / f"{part}_chatglm.py", EXECUTED.format(str(base.parent / "executed")))
        for part in ("configuration", "modeling", "tokenization", "quantization")
    ],
    "code to generate with": lambda base: (
        (base / "custom_generate").mkdir(),
        write(base / "custom_generate" / "generate.py", EXECUTED.format(str(base.parent / "executed"))),
    ),
    "a vocabulary elsewhere": lambda base: (
        write(base.parent / "x", b"not a vocabulary"),
        edit(base / "tokenizer_config.json", vocab_file="../x"),
    ),
    "code elsewhere": lambda base: (
        write(base.parent / "code.py", EXECUTED.format(str(base.parent / "executed"))),
        edit(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["../code.ChatGLMTokenizer", None]}),
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_hostile_files_that_do_not_matter(name, place, capsys):
    """The answer is that of the base without them, and nothing is run or written."""
    flags = ["--model_path", str(place / "base"), "--instruction", "水泵渗漏。", "--max_new_tokens", "4"]
    predict.main(flags)
    expected = capsys.readouterr().out
    HARMLESS[name](place / "base")
    before = snapshot(place)
    predict.main(flags)
    assert capsys.readouterr().out == expected
    assert snapshot(place) == before
