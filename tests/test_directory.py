"""modes/directory.py: what is read from a base directory, and the error about each fault in one."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.side_files import copy_beside
from errors import UserError
from modes import MODES, directory
from tests import golden


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def base(mode, tmp_path):
    """A copy of a golden base that a test may spoil."""
    return shutil.copytree(golden.base_path(mode), tmp_path / "base")


def tensors_of(mode):
    read = directory.read_base(golden.base_path(mode))
    return {name: tensor for _, shard in directory.iterate_shards(read) for name, tensor in shard.items()}


def rewrite(base, tensors, name="model.safetensors"):
    """The base with its weights in one file instead."""
    for file in base.glob("pytorch_model*"):
        file.unlink()
    if name.endswith(".bin"):
        torch.save(tensors, base / name)
    else:
        save_file({key: value.clone() for key, value in tensors.items()}, base / name)


def edit(file, **changes):
    """A JSON file with keys changed, or removed where the value is None."""
    value = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}), encoding="utf-8")


def test_read(mode):
    base = directory.read_base(str(golden.base_path(mode)))
    assert base.mode == mode and base.path == golden.base_path(mode)
    assert base.config["model_type"] == "chatglm"
    assert [file.name for file in base.weight_files] == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    other_mode = "glm2" if mode == "glm" else "glm"
    with pytest.raises(UserError, match=f"holds a {mode} model, not {other_mode}: use --mode {mode}"):
        directory.read_base(golden.base_path(mode), other_mode)


def test_other_models_are_refused(base):
    (base / "config.json").write_text('{"model_type": "llama", "vocab_size": 32000}', encoding="utf-8")
    with pytest.raises(UserError, match="llama, not ChatGLM"):
        directory.read_base(base)


def test_shards_load_and_are_complete(mode):
    tensors, expected = tensors_of(mode), golden.shared_model(mode).state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name].float(), expected[name]) for name in tensors)


def test_fingerprint_ignores_form_and_sees_values(mode, base):
    expected = directory.fingerprint(directory.read_base(golden.base_path(mode)))
    tensors = tensors_of(mode)
    rewrite(base, tensors)
    assert directory.fingerprint(directory.read_base(base)) == expected
    slim = {n: t for n, t in tensors.items() if not n.endswith("inv_freq") and (mode != "glm" or n != "lm_head.weight")}
    rewrite(base, slim, "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert directory.fingerprint(directory.read_base(base)) == expected
    torch.save(slim, base / "pytorch_model.bin", _use_new_zipfile_serialization=False)  # as before torch 1.6
    assert directory.fingerprint(directory.read_base(base)) == expected

    def changed(name, tensor):
        rewrite(base, slim | {name: tensor})
        files = (base / "model.safetensors",)  # read_base would refuse another shape
        return directory.fingerprint(directory.Base(base, mode, {}, files)) != expected

    bias = next(name for name in slim if name.endswith("query_key_value.bias"))
    assert changed(bias, slim[bias] + 0.5)
    assert changed(bias, slim[bias].bfloat16())
    assert changed(bias, slim[bias][:-1])
    assert changed("extra", torch.zeros(0))
    assert not changed(bias, slim[bias].float())


def test_generations_differ_in_fingerprint():
    fingerprints = {directory.fingerprint(directory.read_base(golden.base_path(mode))) for mode in ("glm", "glm2")}
    assert len(fingerprints) == 2


def test_side_files(base):
    (base / "modeling_chatglm.py").write_text("", encoding="utf-8")
    (base / "sub").mkdir()
    rewrite(base, {"x": torch.zeros(1)}, "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    names = [file.name for file in directory.side_files(directory.Base(base, "glm", {}, ()))]
    vocabulary = "ice_text.model" if (base / "ice_text.model").exists() else "tokenizer.model"
    assert names == sorted(["config.json", "modeling_chatglm.py", "tokenizer_config.json", vocabulary])


def test_shards_without_index(base, mode):
    (base / "pytorch_model.bin.index.json").unlink()
    assert len(directory.read_base(base).weight_files) == 2
    (base / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="holds 1 weight files and no index"):
        directory.read_base(base)


def test_safetensors_come_first(base, mode):
    save_file({name: tensor.clone() for name, tensor in tensors_of(mode).items()}, base / "model.safetensors")
    assert [file.name for file in directory.read_base(base).weight_files] == ["model.safetensors"]


def link_out(base, names, scattered=False):
    """Move files of the base to a directory outside (each to one of its own where scattered), and leave links."""
    for i, name in enumerate(names):
        outside = base.parent / "data" / (str(i) if scattered else "model")
        outside.mkdir(parents=True, exist_ok=True)
        (base / name).rename(outside / name)
        (base / name).symlink_to(outside / name)


@pytest.mark.parametrize("scattered", [False, True])
def test_a_base_of_links(base, scattered, tmp_path):
    """To a mounted directory, or to a store that has a directory for each file."""
    (base / "README.md").write_text("about the model")
    link_out(base, sorted(path.name for path in base.iterdir()), scattered)
    read = directory.read_base(base)
    copy_beside(read, tmp_path, {"torch_dtype": "float32"})
    copied = [tmp_path / file.name for file in directory.side_files(read)]
    assert "README.md" in [file.name for file in copied] and not any(file.is_symlink() for file in copied)
    (base / "added.txt").write_text("a file of its own")
    if scattered:
        with pytest.raises(UserError, match="is a link to .*outside of the base"):
            directory.read_base(base)
    else:
        directory.read_base(base)


def test_links_to_where_the_weights_lie_and_no_others(base, tmp_path):
    """The config is edited here, the rest is on a mount."""
    link_out(base, sorted(path.name for path in base.iterdir() if path.name != "config.json"))
    directory.read_base(base)
    (tmp_path / "secret").write_text("of the user")
    (base / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="notes.txt is a link to .*secret, outside of the base"):
        directory.read_base(base)


def test_missing_directory(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        directory.read_base(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        directory.read_base(tmp_path / "empty")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: (base / "config.json").write_text("{\n,", encoding="utf-8"), r"config\.json:2 is not JSON"),
        (lambda base: (base / "config.json").write_bytes(b"\xff\xfe{"), r"config\.json cannot be read"),
        (lambda base: (base / "config.json").write_text("[]", encoding="utf-8"), "is not a JSON object"),
        (lambda base: next(base.glob("*.model")).unlink(), "is missing: copy the tokenizer files"),
        (lambda base: (base / "pytorch_model-00002-of-00002.bin").unlink(), "lacks pytorch_model-00002-of-00002.bin"),
        (lambda base: [file.unlink() for file in base.glob("pytorch_model*")], "holds no weights"),
        (lambda base: edit(base / "pytorch_model.bin.index.json", weight_map=None), "has no weight_map"),
        (lambda base: edit(base / "pytorch_model.bin.index.json", weight_map={"x": 3}), "has no weight_map"),
    ],
)
def test_incomplete_directories(base, spoil, message):
    spoil(base)
    with pytest.raises(UserError, match=message):
        directory.read_base(base)


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"version https://git-lfs", pickle.dumps(Hostile())])
def test_unreadable_weights(base, name, content, capsys):
    for file in base.glob("pytorch_model*"):
        file.unlink()
    (base / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read as weights"):
        list(directory.iterate_shards(directory.read_base(base)))
    assert "executed" not in capsys.readouterr().out


def test_hostile_torch_file(base, capsys):
    rewrite(base, {"x": Hostile()}, "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights"):
        list(directory.iterate_shards(directory.read_base(base)))
    assert "executed" not in capsys.readouterr().out
