"""What each method trains, writes, loads and folds, without DeepSpeed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from errors import UserError
from methods import METHODS
from methods.lora import Lora
from modes import MODES
from shards import parse_size, read_tensors, tensor_files, write_shards
from tests.launch import GOLDEN
from tests.prepared import OPTIONS, build, trained

CASES = [(mode, method) for mode in ("glm", "glm2") for method in METHODS]


@pytest.mark.parametrize(("mode", "method"), CASES)
def test_what_was_trained_comes_back(mode, method, tmp_path):
    model = build(mode, method, **OPTIONS[method])
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tensors = [(name, parameter.detach()) for name, parameter in trained(model).items()]
    METHODS[method]().save(tmp_path, model, iter(tensors))

    input_ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=input_ids).logits
    if method == "all":
        assert {name for name, _ in read_tensors(tmp_path, "model")} == {name for name, _ in tensors}
        return
    config = MODES[mode].config_class.from_pretrained(GOLDEN / mode / "base")
    METHODS[method](**OPTIONS[method]).configure(config)
    loaded = MODES[mode].model_class.from_pretrained(GOLDEN / mode / "base", config=config, dtype=torch.float32)
    loaded = METHODS[method]().load(loaded, METHODS[method]().read(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=input_ids).logits, expected)


@pytest.mark.parametrize(("mode", "method"), CASES)
def test_the_trained_set(mode, method):
    names = set(trained(build(mode, method, **OPTIONS[method])))
    everything = {name for name, _ in build(mode).named_parameters()}
    if method == "freeze":
        assert names == {name for name in everything if "layers.3." in name or "final_layernorm" in name}
    elif method == "all":
        assert names == everything
    elif method == "ptuning":
        parts = ["embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"]
        assert names == {f"transformer.prefix_encoder.{part}" for part in parts}
    else:
        assert len(names) == 4 * 2 * 2  # layers × modules × (A, B)
        assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_prefix_is_the_same_for_the_same_seed():
    first, second = (trained(build("glm2", "ptuning", **OPTIONS["ptuning"])) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("names", [("layers.9.",), ("layers.3.", "no_such")])
def test_freeze_name_that_matches_nothing(names):
    with pytest.raises(UserError, match=r"--freeze_module_name .* matches no parameter.*layers\.0\. to layers\.3\."):
        METHODS["freeze"](freeze_module_name=names).check(build("glm2"))


def test_lora_name_that_matches_nothing():
    with pytest.raises(UserError, match="no_such matches no linear layer.*dense_4h_to_h.*query_key_value"):
        Lora(**{**OPTIONS["lora"], "lora_module_name": ("query_key_value", "no_such")}).check(build("glm2"))


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_names_of_unfused_attention_are_mapped(mode):
    with pytest.warns(UserWarning, match="query_key_value"):
        model = build(mode, "lora", **{**OPTIONS["lora"], "lora_module_name": ("query", "value")})
    assert len(trained(model)) == 4 * 2
    assert all("query_key_value" in name for name in trained(model))


@pytest.mark.parametrize("adapter", ["adapter_lora", "adapter_lora_all"])
@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_fold_of_an_old_adapter_is_pefts_merge(mode, adapter):
    directory = GOLDEN / mode / adapter
    base = {name: parameter.detach() for name, parameter in build(mode).named_parameters()}
    merged = dict(Lora().load(build(mode), Lora().read(directory)).merge_and_unload().named_parameters())
    fold = Lora().fold(Lora().read(directory))
    assert fold.names <= base.keys() and fold.names
    for name, tensor in base.items():
        assert torch.allclose(fold.change(name, tensor), merged[name], atol=1e-6), name


def test_adapter_of_another_kind(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UserError, match="does not describe a LoRA adapter"):
        Lora().fold(Lora().read(tmp_path))


def test_shards_hold_what_was_written(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}  # 400 bytes each
    assert write_shards(tensors.items(), tmp_path, max_shard_bytes=900) == 2000
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"] == {f"t{i}": files[i // 2] for i in range(5)}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_tensors(tmp_path, "model"))

    single = tmp_path / "single"
    single.mkdir()
    write_shards(tensors.items(), single, "trained")
    assert [path.name for path in single.iterdir()] == ["trained.safetensors"]
    assert load_file(single / "trained.safetensors").keys() == tensors.keys()


def test_a_shard_cut_short(tmp_path):
    write_shards({"a": torch.ones(1000)}.items(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="truncated"):
        tensor_files(tmp_path, "model")


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GB", 15 * 10**8)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "0MB", "2TBX"])
def test_bad_sizes(text):
    with pytest.raises(UserError, match="--max_shard_size"):
        parse_size(text)
