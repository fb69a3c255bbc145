"""A base that does not tell ChatGLM2 from ChatGLM3: --mode decides once, the checkpoint keeps it for all programs."""

import json
import shutil

import pytest

import merge_lora
from errors import UserError
from generation.models import load_answerer
from tests import launch


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "train_type"), [("glm3", "lora"), ("glm2", "all")])
def test_the_checkpoint_knows_its_generation(mode, train_type, tmp_path):
    base = shutil.copytree(launch.GOLDEN / mode / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "models/mine", "seq_length": 32768}))
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer"}))
    output = tmp_path / "output"
    options = launch.train_options(mode, train_type, output, model_name_or_path=base, max_steps=1)

    silent = launch.fork(["train.py", *launch.flags({name: options[name] for name in options if name != "mode"})])
    assert silent.returncode == 2 and "alike: add --mode glm2 or --mode glm3." in silent.stderr
    with pytest.raises(UserError, match="alike: add --mode"):
        load_answerer(base)

    said = launch.train(options).stdout
    assert f"is used as ChatGLM{mode[-1]}-6B, because of --mode" in said
    checkpoint = launch.newest_checkpoint(output)
    assert json.loads((checkpoint / "checkpoint.json").read_text())["mode"] == mode
    assert load_answerer(checkpoint).mode.name == mode
    if train_type == "lora":
        merge_lora.main(
            ["--ori_model_dir", str(base), "--model_dir", str(checkpoint), "--output_dir", str(tmp_path / "merged")]
        )
        assert load_answerer(tmp_path / "merged").mode.name == mode
        with pytest.raises(UserError, match=f"trained on a {mode} base"):
            load_answerer(checkpoint, mode="glm2")
