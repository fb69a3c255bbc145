"""Checkpoints that merge_lora.py and predict.py refuse, and places that nothing may be merged into."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_lora
import predict
from tests import launch
from tests.bad_input.place import Hostile, cut, edit, refused, write

ADAPTER, PREFIX, TRAINED = "adapter_model.safetensors", "prefix_encoder.safetensors", "trained.safetensors"


def record(**changes):
    return lambda path: edit(path / "checkpoint.json", **changes)


def adapter_config(**changes):
    return lambda path: (edit(path / "adapter_config.json", **changes), resize(path, "adapter_config.json"))


def tensors(name, change):
    """Change every tensor of a checkpoint's file, and its size in the record."""

    def damage(path):
        save_file({key: change(value).contiguous() for key, value in load_file(path / name).items()}, path / name)
        resize(path, name)

    return damage


def resize(path, name):
    value = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    value["files"][name] = (path / name).stat().st_size
    write(path / "checkpoint.json", value)


def as_bin(make):
    """The adapter as a .bin file, as peft wrote it in 2023."""

    def damage(path):
        (path / ADAPTER).unlink()
        (path / "checkpoint.json").unlink()
        torch.save(make(path), path / "adapter_model.bin")

    return damage


def renamed(path):
    state = load_file(path / PREFIX)
    save_file({f"{name}.no_such": value for name, value in state.items()}, path / PREFIX)
    resize(path, PREFIX)


# name: (the checkpoint's method, damage, what the sentence says)
CHECKPOINTS = {
    "nothing in it": ("lora", lambda path: [file.unlink() for file in path.iterdir()], "neither checkpoint.json nor"),
    "a file": ("lora", lambda path: (shutil.rmtree(path), write(path, b"x")), "is not a directory"),
    "record cut short": ("lora", lambda path: cut(path / "checkpoint.json", 99), r"checkpoint\.json:\d+ is not JSON"),
    "record is a list": ("lora", lambda path: write(path / "checkpoint.json", "[]"), "is not a JSON object"),
    "record of a later version": ("lora", record(format=99), "later version"),
    "format is a text": ("lora", record(format="1"), "is not the record"),
    "unknown method": ("lora", record(train_type="dora"), "unknown method 'dora'"),
    "unknown precision": ("lora", record(precision="fp8"), "precision"),
    "unknown generation": ("lora", record(mode="glm9"), "glm9"),
    "options are a list": ("lora", record(options=[]), "options"),
    "a limit is a text": ("lora", record(options__max_len="long"), "options"),
    "the base's path is a number": ("lora", record(base__path=7), "base.path"),
    "the method is a list": ("lora", record(method=[]), "is not the record"),
    "an option is missing": (
        "ptuning",
        record(method={"pre_seq_len": 4}),
        "holds no .*, which the method",
    ),
    "an option of another method": ("freeze", record(method={"lora_dim": 2}), "method"),
    "the prefix length is a text": ("ptuning", record(method__pre_seq_len="4"), "method"),
    "the prefix length is negative": ("ptuning", record(method__pre_seq_len=-4), "pre_seq_len"),
    "prefix layers that there are not": ("ptuning", record(method__prefix_layers="some"), "prefix_layers"),
    "a list of numbers for names": ("freeze", record(method__freeze_module_name=[3]), "method"),
    "files are a list": ("lora", record(files=[1]), "files"),
    "a file is cut short": ("lora", lambda path: cut(path / ADAPTER, 100), f"{ADAPTER} was truncated or changed"),
    "a file is missing": ("freeze", lambda path: (path / TRAINED).unlink(), f"{TRAINED} is missing, "),
    "another base": ("lora", record(base__fingerprint="0" * 64), "does not have the weights"),
    "adapter config is not json": (
        "lora",
        lambda path: (write(path / "adapter_config.json", "{"), resize(path, "adapter_config.json")),
        r"adapter_config\.json:1 is not JSON",
    ),
    "adapter without a size": ("lora", adapter_config(r=None), "r null"),
    "adapter's size is a text": ("lora", adapter_config(r="2"), 'r "2"'),
    "adapter of another size": ("lora", adapter_config(r=7), "r 7"),
    "adapter's scale is NaN": ("lora", adapter_config(lora_alpha=float("nan")), "lora_alpha NaN"),
    "adapter's dropout is a text": ("lora", adapter_config(lora_dropout="much"), 'lora_dropout "much"'),
    "adapter for modules of a wrong type": ("lora", adapter_config(target_modules={"a": 1}), "target_modules"),
    "an unknown kind of adapter": ("lora", adapter_config(peft_type="MAGIC"), "does not describe a LoRA adapter"),
    "adapter that names a module to import": (
        "lora",
        adapter_config(megatron_config={"a": 1}, megatron_core="antigravity"),
        "megatron_config",
    ),
    "adapter with NaN": ("lora", tensors(ADAPTER, lambda value: value * float("nan")), "not finite"),
    "adapter of another base": (
        "lora",
        tensors(ADAPTER, lambda value: value.repeat(1, 2) if value.shape[0] == 2 else value),
        r"is for \[128, 128\], the base has \[128, 64\]",
    ),
    "adapter whose matrices do not fit each other": (
        "lora",
        tensors(ADAPTER, lambda value: value[:, :1]),
        "no whole pair",
    ),
    "adapter without tensors": (
        "lora",
        lambda path: (save_file({}, path / ADAPTER), resize(path, ADAPTER)),
        "no whole pair",
    ),
    "adapter is a hostile pickle": (
        "lora",
        as_bin(lambda path: {"x": Hostile(path / "executed")}),
        "adapter_model file in .* cannot be read",
    ),
    "adapter is a list": ("lora", as_bin(lambda path: [1, 2]), "adapter_model file in"),
    "prefix of another length": (
        "ptuning",
        tensors(PREFIX, lambda value: value[:3]),
        r"prefix_encoder.* has shape \[3, .*another base",
    ),
    "prefix with NaN": ("ptuning", tensors(PREFIX, lambda value: value * float("nan")), "not finite"),
    "prefix of another name": ("ptuning", renamed, "no_such, which the base does not have"),
    "layers of another base": ("freeze", tensors(TRAINED, lambda value: value[:3]), "it belongs to another base"),
    "layers with infinity": ("freeze", tensors(TRAINED, lambda value: value * float("inf")), "not finite"),
    "weights are no safetensors": (
        "freeze",
        lambda path: (write(path / TRAINED, b"\xff" * 99), resize(path, TRAINED)),
        f"{TRAINED} cannot be read",
    ),
}


def damaged(name, checkpoints):
    method, damage, pattern = CHECKPOINTS[name]
    damage(checkpoints / method)
    return checkpoints / method, pattern


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_merging(name, checkpoints):
    path, pattern = damaged(name, checkpoints)
    flags = {"ori_model_dir": checkpoints / "base", "model_dir": path, "output_dir": checkpoints / "merged"}
    refused(merge_lora.main, launch.flags(flags), pattern, checkpoints)


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "nothing in it"])
def test_asking(name, checkpoints):
    path, pattern = damaged(name, checkpoints)
    flags = {"model_path": path, "base_model": checkpoints / "base", "instruction": "a"}
    refused(predict.main, launch.flags(flags), pattern, checkpoints)


def test_base_that_has_gone(checkpoints):
    edit(checkpoints / "lora" / "checkpoint.json", base__path="/no/such/base")
    refused(
        predict.main, ["--model_path", str(checkpoints / "lora"), "--instruction", "a"], "--base_model", checkpoints
    )


# name: (changed flags, what the sentence says)
MERGES = {
    "no base": ({"ori_model_dir": "no/such"}, "no/such is not a directory"),
    "no checkpoint": ({"model_dir": "no/such"}, "--model_dir no/such is not a directory"),
    "another generation": ({"ori_model_dir": launch.GOLDEN / "glm3" / "base"}, "glm3"),
    "another mode": ({"mode": "glm"}, "--mode glm2"),
    "unknown mode": ({"mode": "glm5"}, "glm5"),
    "into the checkpoint": ({"output_dir": "{place}/lora/merged"}, "is inside --model_dir"),
    "into the base": ({"output_dir": "{place}/base"}, "is inside --ori_model_dir"),
    "into what is there": ({"output_dir": "{place}/freeze"}, "exists already"),
    "into a file": ({"output_dir": "{place}/records.json"}, "exists already"),
    "under a file": ({"output_dir": "{place}/records.json/merged"}, "cannot be written"),
    "under a device": ({"output_dir": "/dev/null/merged"}, "cannot be written"),
    "a name too long": ({"output_dir": "{place}/" + "x" * 253}, "cannot be written"),
    "a size that is none": ({"max_shard_size": "big"}, "--max_shard_size 'big'"),
    "a size of nothing": ({"max_shard_size": "0GB"}, "--max_shard_size '0GB'"),
    "a size of 400 digits": ({"max_shard_size": "9" * 400 + "GB"}, "--max_shard_size"),
    "an unknown flag": ({"out": "merged"}, "--out is an unknown option: did you mean --output_dir"),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges(name, checkpoints):
    changes, pattern = MERGES[name]
    flags = {
        "ori_model_dir": checkpoints / "base",
        "model_dir": checkpoints / "lora",
        "output_dir": checkpoints / "merged",
        **{key: str(value).format(place=checkpoints) for key, value in changes.items()},
    }
    refused(merge_lora.main, launch.flags(flags), pattern, checkpoints)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_place_to_merge_into(checkpoints):
    (checkpoints / "there").mkdir(mode=0o500)
    flags = {"ori_model_dir": checkpoints / "base", "model_dir": checkpoints / "lora"}
    flags["output_dir"] = checkpoints / "there" / "merged"
    refused(merge_lora.main, launch.flags(flags), "cannot be written", checkpoints)
