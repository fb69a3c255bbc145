"""--format official: what it gains, and what engines would miss in it."""

import json
import shutil

import pytest

import merge_lora
from checkpoints.read import read_model
from export.official import code_files, missing_for_engines
from files import read_json
from generation.models import load_answerer
from modes import MODES
from modes.directory import read_base
from tests import golden
from tests.launch import GOLDEN


def merge(mode, output, *words, base=None):
    """The golden adapter merged into a golden base, or a copy of it."""
    base = base or golden.base_path(mode)
    adapter = GOLDEN / mode / "adapter_lora"
    merge_lora.main(["--ori_model_dir", str(base), "--model_dir", str(adapter), "--output_dir", str(output), *words])
    return output


@pytest.mark.parametrize("mode", MODES)
def test_a_chat_template_and_a_record(mode, tmp_path, capsys):
    directory = merge(mode, tmp_path / "merged")
    config = read_json(directory / "tokenizer_config.json", "")
    assert config.pop("chat_template") == MODES[mode].chat_template()
    assert config == read_json(golden.base_path(mode) / "tokenizer_config.json", "")
    record = read_json(directory / "merged_from.json", "")
    assert record["export"] == {"format": "official"} and record["mode"] == mode
    assert read_model(directory).mode == mode
    assert "verified by chatglm-finetuning" in capsys.readouterr().out


def test_a_template_of_the_base_is_kept(tmp_path):
    base = shutil.copytree(golden.base_path("glm3"), tmp_path / "base")
    config = {**read_json(base / "tokenizer_config.json", ""), "chat_template": "mine"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    directory = merge("glm3", tmp_path / "merged", base=base)
    assert read_json(directory / "tokenizer_config.json", "") == config


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_result(mode, bits, tmp_path, capsys):
    """Half precision beside the integers, as in the official releases; the command prints perplexities."""
    directory = merge(mode, tmp_path / "merged", "--quantization_bit", str(bits))
    config = read_json(directory / "config.json", "")
    assert (config["quantization_bit"], config["torch_dtype"]) == (bits, "float16")
    printed = capsys.readouterr().out
    assert "verified: perplexity on" in printed and f" as int{bits}" in printed
    model = load_answerer(directory).model
    assert any(name.endswith("weight_scale") for name, _ in model.named_buffers())


def test_warnings_about_what_engines_look_for(tmp_path, capsys):
    base = shutil.copytree(golden.base_path("glm3"), tmp_path / "base")
    code = ["configuration_chatglm.py", "modeling_chatglm.py", "tokenization_chatglm.py"]
    assert code_files(read_base(base)) == code
    merge("glm3", tmp_path / "merged", base=base)
    warned = capsys.readouterr().err
    assert all(name in warned for name in code) and "no _name_or_path" in warned
    for name in code:
        (base / name).write_text("# official")
    config = read_json(base / "config.json", "")
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "THUDM/chatglm3-6b"}))
    assert list(missing_for_engines(read_base(base))) == []
