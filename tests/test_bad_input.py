"""What a user can get wrong: one sentence that says what and how to mend it, before any weight is loaded.

Each case runs the real entry point in this process; the last ones run it under `deepspeed`, as a user does.
"""

import json
import shutil

import pytest

import merge_lora
import predict
import train
from errors import UserError
from tests import launch

GOOD = {"instruction": "a", "input": "b", "output": "c"}


@pytest.fixture
def base(tmp_path):
    """A copy of a tiny base that a test may damage."""
    directory = tmp_path / "base"
    shutil.copytree(launch.GOLDEN / "glm2" / "base", directory)
    return directory


def refused(tmp_path, pattern, **changes):
    """Run train.py's main with changed flags; it must raise one UserError and write no output."""
    output = tmp_path / "output"
    options = {**launch.train_options("glm2", "lora", output), **changes}
    with pytest.raises(UserError, match=pattern) as caught:
        train.main(launch.flags(options))
    assert not output.exists() or not any(output.iterdir()), "something was left behind"
    return str(caught.value)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TRAIN_FILES = {
    "not json": (json.dumps(GOOD) + "\n\n{oops\n", r"records\.json:3"),
    "cut short": (json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:20], r"records\.json:2"),
    "not an object": ('{"instruction": "a", "output": "c"}\n42\n', r"records\.json:2"),
    "no instruction": ('{"input": "b", "output": "c"}\n', r"records\.json:1.*instruction"),
    "no output": ('{"instruction": "a"}\n', r"records\.json:1.*output"),
    "a number for text": ('{"instruction": "a", "output": 7}\n', r"records\.json:1.*output"),
    "a list for text": ('{"instruction": ["a"], "output": "b"}\n', r"records\.json:1.*instruction"),
    "empty": ("", "no record"),
    "blank lines only": ("\n \n\n", "no record"),
    "not utf-8": ("发动机".encode("gbk") + b"\n", "UTF-8"),
}


@pytest.mark.parametrize("name", TRAIN_FILES)
def test_training_files(name, tmp_path):
    content, pattern = TRAIN_FILES[name]
    refused(tmp_path, pattern, train_path=write(tmp_path / "records.json", content))


BASES = {
    "no config": (lambda base: (base / "config.json").unlink(), r"config\.json"),
    "config is not json": (lambda base: write(base / "config.json", '{"num_layers": 4,\n'), r"config\.json:2"),
    "config is a list": (lambda base: write(base / "config.json", "[]"), r"config\.json"),
    "another model": (lambda base: write(base / "config.json", '{"model_type": "llama"}'), "llama"),
    "no tokenizer": (lambda base: (base / "tokenizer.model").unlink(), r"tokenizer\.model"),
    "a missing shard": (lambda base: (base / "pytorch_model-00002-of-00002.bin").unlink(), "00002-of-00002"),
    "a shard cut short": (
        lambda base: write(base / "pytorch_model-00002-of-00002.bin", b"PK\x03\x04 cut short"),
        "00002-of-00002",
    ),
    "no weights": (lambda base: [file.unlink() for file in base.glob("pytorch_model*")], "weights"),
}


@pytest.mark.parametrize("name", BASES)
def test_base_directories(name, base, tmp_path):
    damage, pattern = BASES[name]
    damage(base)
    refused(tmp_path, pattern, model_name_or_path=base)


FLAGS = {
    "no base": ({"model_name_or_path": "no/such/base"}, "--model_name_or_path no/such/base"),
    "wrong mode": ({"mode": "glm"}, "--mode glm2"),
    "glm3 for glm2": ({"mode": "glm3"}, "--mode glm2"),
    "unknown mode": ({"mode": "glm4"}, "--mode glm4.*glm3"),
    "unknown method": ({"train_type": "qlora"}, "--train_type qlora.*lora"),
    "no training file": ({"train_path": "no/such.json"}, "--train_path no/such.json"),
    "lora name": ({"lora_module_name": "attention.foo"}, "attention.foo.*query_key_value"),
    "freeze name": ({"train_type": "freeze", "freeze_module_name": "layers.27."}, "layers.27.*layers.3"),
    "no ds file": ({"ds_file": "no_such.json"}, "--ds_file no_such.json.*ds_zero2"),
    "batch of zero": ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
    "rate is not a number": ({"learning_rate": "nan"}, "--learning_rate nan"),
    "rate is a word": ({"learning_rate": "fast"}, "learning_rate.*fast"),
    "unknown flag": ({"lora_rank": 8}, "--lora_rank"),
    "dropout of two": ({"lora_dropout": 2}, "--lora_dropout 2"),
    "prefix_projection": ({"train_type": "ptuning", "prefix_projection": "maybe"}, "prefix_projection.*maybe"),
    "fp16 on a CPU": ({"precision": "fp16"}, "fp16.*CPU"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name, tmp_path):
    changes, pattern = FLAGS[name]
    refused(tmp_path, pattern, **changes)


DS_FILES = {
    "not json": ('{"zero_optimization": {\n "stage": 2,}}', {}, r"ds\.json:2"),
    "not an object": ("[1]", {}, r"ds\.json"),
    "stage five": ('{"zero_optimization": {"stage": 5}}', {}, "stage 5"),
    "precision against the flag": ('{"fp16": {"enabled": true}}', {"precision": "bf16"}, "--precision bf16.*fp16"),
    "clipping against the flag": ('{"gradient_clipping": 1.0}', {"max_grad_norm": 0.5}, "--max_grad_norm 0.5.*1.0"),
}


@pytest.mark.parametrize("name", DS_FILES)
def test_ds_files(name, tmp_path):
    content, changes, pattern = DS_FILES[name]
    refused(tmp_path, pattern, ds_file=write(tmp_path / "ds.json", content), **changes)


def test_several_problems_at_once(tmp_path):
    message = refused(tmp_path, "unknown", mode="glm9", learning_rate=-1, train_path="no/such.json")
    assert all(part in message for part in ("--mode glm9", "--learning_rate -1", "--train_path no/such.json"))


def test_output_dir_that_is_a_file(tmp_path):
    options = launch.train_options("glm2", "lora", write(tmp_path / "output", "a file"))
    with pytest.raises(UserError, match="--output_dir .* is a file"):
        train.main(launch.flags(options))
    assert (tmp_path / "output").read_text() == "a file"


def test_output_dir_in_the_base(base):
    with pytest.raises(UserError, match="--output_dir"):
        train.main(launch.flags(launch.train_options("glm2", "lora", base / "out", model_name_or_path=base)))
    assert not (base / "out").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A LoRA checkpoint, trained for one step."""
    output = tmp_path_factory.mktemp("trained") / "output"
    launch.train(launch.train_options("glm2", "lora", output, max_steps=1))
    return launch.newest_checkpoint(output)


@pytest.mark.slow
def test_merging(checkpoint, base, tmp_path):
    def refused_merge(pattern, *flags):
        with pytest.raises(UserError, match=pattern):
            merge_lora.main([*map(str, flags)])
        assert not (tmp_path / "merged").exists()

    output = ("--output_dir", tmp_path / "merged")
    good_base, good = ("--ori_model_dir", base), ("--model_dir", checkpoint)
    refused_merge("no/such", *good_base, "--model_dir", "no/such", *output)
    refused_merge("checkpoint.json", *good_base, "--model_dir", tmp_path, *output)
    refused_merge("glm3", "--ori_model_dir", launch.GOLDEN / "glm3" / "base", *good, *output)
    refused_merge("--mode glm2", *good_base, *good, *output, "--mode", "glm")
    refused_merge("lies in --model_dir", *good_base, *good, "--output_dir", checkpoint / "merged")
    refused_merge("lies in --ori_model_dir", *good_base, *good, "--output_dir", base)
    refused_merge("is there already", *good_base, *good, "--output_dir", checkpoint.parent)
    refused_merge("--max_shard_size", *good_base, *good, *output, "--max_shard_size", "big")

    for file in base.glob("pytorch_model-*"):  # the same shapes, other values
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :: 2] = bytes(len(content[len(content) // 2 :: 2]))
        file.write_bytes(content)
    refused_merge("weights", *good_base, *good, *output)


@pytest.mark.slow
def test_predicting(checkpoint, base, tmp_path):
    def refused_prediction(pattern, *flags):
        with pytest.raises(UserError, match=pattern):
            predict.main([*map(str, flags)])
        assert not (tmp_path / "answers.jsonl").exists()

    ask, answers = ("--instruction", "你好"), ("--output_path", tmp_path / "answers.jsonl")
    refused_prediction("--instruction or --test_path", "--model_path", base)
    refused_prediction("not a directory", "--model_path", "no/such", *ask)
    refused_prediction("go together", "--model_path", base, "--test_path", launch.GOLDEN / "samples.jsonl")
    refused_prediction("no/such.json", "--model_path", base, "--test_path", "no/such.json", *answers)
    broken = write(tmp_path / "broken.json", '{"instruction": "a"}\n{"input": "b"}\n')
    refused_prediction(r"broken\.json:2", "--model_path", base, "--test_path", broken, *answers)
    refused_prediction("--temperature", "--model_path", base, *ask, "--do_sample", "--temperature", "0")
    glm3 = launch.GOLDEN / "glm3" / "base"
    refused_prediction("glm2", "--model_path", checkpoint, "--base_model", glm3, *ask)
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    record = json.loads((moved / "checkpoint.json").read_text())
    record["base"]["path"] = "/no/such/base"
    write(moved / "checkpoint.json", json.dumps(record))
    refused_prediction("--base_model", "--model_path", moved, *ask)
    write(moved / "adapter_model.safetensors", b"cut short")
    refused_prediction("adapter_model", "--model_path", moved, "--base_model", base, *ask)


@pytest.mark.slow
@pytest.mark.parametrize("flaw", ["wrong mode", "broken record"])
def test_under_the_launcher(flaw, tmp_path):
    """Two ranks: the sentence appears once, no traceback, an exit code that says so, nothing written."""
    changes = {"mode": "glm"} if flaw == "wrong mode" else {"train_path": write(tmp_path / "records.json", "{oops\n")}
    options = {**launch.train_options("glm2", "lora", tmp_path / "output"), **changes}
    port = str(launch.free_port())
    result = launch.start(["deepspeed", "--num_gpus", "2", "--master_port", port, "train.py", *launch.flags(options)])
    text = result.stdout + result.stderr
    assert result.returncode != 0
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert ("--mode glm2" if flaw == "wrong mode" else "records.json:1") in text
    assert not (tmp_path / "output").exists()
