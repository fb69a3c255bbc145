"""Flags, places to write to, and DeepSpeed files that train.py refuses."""

import os
import re

import pytest

import predict
import train
from tests import launch
from tests.bad_input.place import refused, train_flags, write

# name: (changed flags, what the sentence says)
FLAGS = {
    "no base": ({"model_name_or_path": "no/such/base"}, "--model_name_or_path no/such/base does not exist"),
    "wrong mode": ({"mode": "glm"}, "--mode glm2"),
    "glm3 for glm2": ({"mode": "glm3"}, "--mode glm2"),
    "unknown mode": ({"mode": "glm4"}, "--mode glm4.*glm3"),
    "unknown method": ({"train_type": "qlora"}, "--train_type qlora.*lora"),
    "no training file": ({"train_path": "no/such.json"}, "--train_path no/such.json"),
    "lora name": ({"lora_module_name": "attention.foo"}, "attention.foo.*query_key_value"),
    "no lora name": ({"lora_module_name": ","}, "lora_module_name.*','"),
    "freeze name": ({"train_type": "freeze", "freeze_module_name": "layers.27."}, "layers.27.*layers.3"),
    "varlen on a CPU": ({"attn_implementation": "varlen"}, "--attn_implementation varlen.*cpu.*fp32.*sdpa"),
    "compiled ZeRO-3": (
        {"torch_compile": True, "ds_file": "ds_zero3_offload.json"},
        "--torch_compile.*--ds_file ds_zero3_offload.json",
    ),
    "compiled quantized base": (
        {"torch_compile": True, "quantization_bit": 4},
        "--torch_compile.*--quantization_bit 4|bitsandbytes",
    ),
    "features of lora": (
        {"cache_frozen_features": True},
        "--cache_frozen_features needs --train_type freeze, which is lora",
    ),
    "no frozen layer below": (
        {"train_type": "freeze", "freeze_module_name": "layers.0.", "cache_frozen_features": True},
        "--cache_frozen_features.*layers.0.*is trained",
    ),
    "no ds file": ({"ds_file": "no_such.json"}, "--ds_file no_such.json.*ds_zero2"),
    "a name too long": ({"ds_file": "x" * 300}, "--ds_file x+ does not exist"),
    "batch of zero": ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
    "half a record": ({"per_device_train_batch_size": 0.5}, "per_device_train_batch_size.*'0.5'"),
    "rate is not a number": ({"learning_rate": "nan"}, "--learning_rate nan"),
    "rate is infinite": ({"learning_rate": "1e999"}, "--learning_rate inf"),
    "rate is a word": ({"learning_rate": "fast"}, "learning_rate.*fast"),
    "ratio above one": ({"warmup_ratio": 1.5}, "--warmup_ratio 1.5"),
    "10**12 steps": ({"max_steps": 10**12}, "--max_steps 1000000000000"),
    "a number of 5,000 digits": ({"num_train_epochs": "9" * 5000}, "num_train_epochs"),
    "no room for an answer": ({"max_len": 8}, "--max_len 8"),
    "unknown flag": ({"lora_rank": 8}, "--lora_rank is an unknown option: use --lora_dim"),
    "half an epoch back": ({"num_train_epochs": -0.5}, "--num_train_epochs -0.5"),
    "seed beyond 64 bits": ({"seed": 2**70}, f"--seed {2**70}"),
    "a rate at the end of polynomial": (
        {"lr_scheduler_type": "polynomial", "learning_rate": 1e-7},
        "--learning_rate 1e-07 is not above 1e-07",
    ),
    "a tracker that there is not": ({"report_to": "comet"}, "--report_to comet is unknown.*swanlab"),
    "a value too many": (
        {"gradient_checkpointing": "yes no"},
        "--gradient_checkpointing: 'yes no' is neither True nor False",
    ),
    "rank of zero": ({"lora_dim": 0}, "--lora_dim 0 is out of bounds"),
    "a precision that there is not": ({"precision": "int8"}, "--precision int8 is unknown.*fp32"),
    "no run.yaml": ({"config": "no/such.yaml"}, "--config no/such.yaml cannot be read"),
    "dropout of two": ({"lora_dropout": 2}, "--lora_dropout 2"),
    "prefix_projection": ({"train_type": "ptuning", "prefix_projection": "maybe"}, "prefix_projection.*maybe"),
    "prefix of 10**10": ({"train_type": "ptuning", "pre_seq_len": 10**10}, "--pre_seq_len 10000000000"),
    "fp16 on a CPU": ({"precision": "fp16"}, "fp16.*CPU"),
    "a line end": ({"lora_module_name": "a", "mode": "glm2\nerror: no"}, r"--mode 'glm2\\nerror: no'"),
    "bytes that are no text": ({"ds_file": "\udcff.json"}, r"--ds_file '\\udcff.json'"),
    "no directory to resume from": (
        {"resume_from_checkpoint": "no/such"},
        "--resume_from_checkpoint no/such is not a directory",
    ),
    "steps without a file": ({"eval_step": 3}, "--eval_step 3 needs --dev_path"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name, place):
    changes, pattern = FLAGS[name]
    refused(train.main, train_flags(place, **changes), pattern, place)


def test_several_problems_at_once(place):
    """A conflict in each of six places: a bound, a choice, a file, mode and base, DeepSpeed file, and layers."""
    path = write(place / "ds.json", {"zero_optimization": {"stage": 2, "bucket": 5}})
    flags = train_flags(
        place, learning_rate=-1, lr_scheduler_type="cosin", train_path="no/such.json", mode="glm3", ds_file=path,
        init_adapter=place / "base", lora_variant="pissa",
    )  # fmt: skip
    flags += ["config=" + str(write(place / "run.yaml", "max_len: 1k\n"))]
    patterns = (
        r"1\. .*run\.yaml:1: max_len: '1k' is not", "--lr_scheduler_type cosin is unknown",
        "--learning_rate -1.0 is out", "--train_path no/such.json does not exist", "--mode glm2",
        r"zero_optimization\.bucket", "--init_adapter .*pissa",
    )  # fmt: skip
    said = "7 problems:\n" + r"\n".join(rf"{i}\. .*" for i in range(1, 8)) + r"\n$"
    refused(train.main, flags, said, place)
    for pattern in patterns:
        refused(train.main, flags, pattern, place)
    del flags[-1]
    refused(train.main, [*flags, "--lora_module_name", "no_such"], "6 problems:(.|\n)*6\\. ", place)


# name: (the place to write to, what the sentence says)
OUTPUTS = {
    "a file": (lambda place: write(place / "there", "a file"), "--output_dir .* is a file"),
    "under a file": (lambda place: write(place / "there", "a file") / "run", "--output_dir .* cannot be written"),
    "in the base": (lambda place: place / "base" / "run", "--output_dir .* is inside the base"),
    "the base": (lambda place: place / "base", "--output_dir .* is inside the base"),
    "under a device": (lambda place: "/dev/null/run", "--output_dir /dev/null/run cannot be written"),
    "no file system to write to": (lambda place: "/proc/run", "--output_dir /proc/run cannot be written"),
    "a name too long": (lambda place: place / ("x" * 300), "--output_dir .* cannot be written"),
    "nothing": (lambda place: "", "--output_dir is missing"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_dirs(name, place):
    make, pattern = OUTPUTS[name]
    refused(train.main, train_flags(place, output_dir=make(place)), pattern, place)


# every name that a run writes: what stands there instead
IN_THE_WAY = {
    **dict.fromkeys(
        ("metrics.jsonl", "loss.png", "loss.png.tmp", "evaluation.jsonl", ".evaluation.jsonl.tmp"), "directory"
    ),
    **dict.fromkeys(("evaluation.json", "evaluation.md", "evaluation.png", "best_predictions.jsonl"), "directory"),
    **dict.fromkeys(("trackers.json", "mlflow.db", "run.yaml"), "directory"),
    **dict.fromkeys(("tensorboard", "state", "best", "wandb", "swanlog", "epoch-1-step-5"), "file"),
    **dict.fromkeys((".epoch-1-step-5.tmp", ".best.old"), "file"),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_in_the_way_of_what_a_run_writes(name, place):
    path = place / "output" / name
    path.parent.mkdir()
    path.mkdir() if IN_THE_WAY[name] == "directory" else path.write_text("")
    pattern = f"--output_dir: {re.escape(str(path))} is a {IN_THE_WAY[name]}, and a run writes a [a-z]+ there"
    refused(train.main, train_flags(place), pattern, place)


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "tensorboard"])
def test_broken_links_and_pipes(name, place):
    (place / "output").mkdir()
    (place / "output" / name).symlink_to("nowhere")
    refused(train.main, train_flags(place), f"{name} is a broken link, and a run writes", place)
    (place / "output" / name).unlink()
    os.mkfifo(place / "output" / name)
    refused(train.main, train_flags(place), f"{name} is a special file, and a run writes", place)


@pytest.mark.parametrize("name", ["epoch-1-step-5", "best"])
@pytest.mark.parametrize("left", [[], ["state"]])
def test_checkpoints_without_their_states(name, left, place):
    """Someone deleted state/, or what is in it."""
    for directory in (name, *left):
        (place / "output" / directory).mkdir(parents=True)
    pattern = f"--output_dir .* holds {name} but no resume state.*--resume_from_checkpoint none to restart from step 0"
    refused(train.main, train_flags(place), pattern, place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_output_dir(place):
    (place / "there").mkdir(mode=0o500)
    refused(train.main, train_flags(place, output_dir=place / "there"), "--output_dir .* cannot be written", place)


def test_cache_dir_that_is_a_file(place):
    path = write(place / "there", "a file")
    refused(train.main, train_flags(place, data_cache_dir=path), "--data_cache_dir .* is a file", place)


def zero(**section):
    return {"zero_optimization": {"stage": 2, **section}}


# name: (content, changed flags, what the sentence says)
DS_FILES = {
    "not json": ('{"zero_optimization": {\n "stage": 2,}}', {}, r"ds\.json:2"),
    "empty": (b"", {}, r"ds\.json:1 is not JSON"),
    "UTF-16": ("{}".encode("utf-16"), {}, "not UTF-8"),
    "not an object": ("[1]", {}, r"ds\.json is not a JSON object"),
    "10,000 brackets": ("[" * 10_000, {}, "cannot be read as JSON"),
    "900 brackets": ('{"a": ' + "[" * 900 + "]" * 900 + "}", {}, "nested too deeply"),
    "10,000 digits": ('{"a": ' + "9" * 10_000 + "}", {}, "cannot be read as JSON"),
    "a key twice": ('{"zero_optimization": {"stage": 2}, "zero_optimization": {"stage": 3}}', {}, "is given twice"),
    "zero_optimization is a list": ({"zero_optimization": [2]}, {}, r"zero_optimization \[2\] must be an object"),
    "stage five": (zero(stage=5), {}, "stage 5"),
    "stage is a text": (zero(stage="3x"), {}, 'stage "3x"'),
    "stage is true": (zero(stage=True), {}, "stage true"),
    "stage is 2.0": (zero(stage=2.0), {}, "stage 2.0"),
    "stage is auto": (zero(stage="auto"), {}, 'stage "auto"'),
    "offload to a disk": (zero(offload_optimizer={"device": "disk"}), {}, 'offload_optimizer.device "disk"'),
    "offload is true": (zero(offload_optimizer=True), {}, "offload_optimizer true must be an object"),
    "offload to a list": (zero(offload_param={"device": ["cpu"]}), {}, "offload_param.device"),
    "nvme without a path": (zero(offload_optimizer={"device": "nvme"}), {}, "nvme_path"),
    "offload with an unknown key": (zero(offload_optimizer={"device": "cpu", "pin": 1}), {}, "pin"),
    "a negative bucket": (zero(reduce_bucket_size=-5), {}, "reduce_bucket_size -5"),
    "a bucket that is a text": (zero(allgather_bucket_size="5 MB"), {}, 'allgather_bucket_size "5 MB"'),
    "a negative threshold": (zero(stage=3, stage3_max_live_parameters=-1), {}, "-1"),
    "a switch that is a text": (zero(overlap_comm="maybe"), {}, 'overlap_comm "maybe"'),
    "an unknown key": (zero(bucket=5), {}, r"zero_optimization\.bucket. is not a key"),
    "an unknown section": ({"zero_optimizations": {"stage": 3}}, {}, "write .zero_optimization"),
    "fp16 is a list": ({"fp16": []}, {}, r"fp16 \[\] must be an object"),
    "fp16 enabled by a number": ({"fp16": {"enabled": 1}}, {}, r"fp16\.enabled 1"),
    "fp16 enabled by a text": ({"fp16": {"enabled": "true"}}, {}, r'fp16\.enabled "true"'),
    "both fp16 and bf16": ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, {}, "both bf16 and fp16"),
    "precision against the flag": ({"fp16": {"enabled": True}}, {"precision": "bf16"}, "--precision bf16.*fp16"),
    "clipping against the flag": ({"gradient_clipping": 1.0}, {"max_grad_norm": 0.5}, "--max_grad_norm 0.5.*1.0"),
    "clipping is a text": ({"gradient_clipping": "1"}, {}, 'gradient_clipping "1"'),
    "clipping is negative": ({"gradient_clipping": -1}, {}, "gradient_clipping -1"),
    "clipping is NaN": ('{"gradient_clipping": NaN}', {}, "gradient_clipping NaN"),
    "flops_profiler is a list": ({"flops_profiler": [1]}, {}, r"refuses its flops_profiler \[1\]"),
    "two sections that are not supported": (
        {"zero_optimization": {"stage": 3, "zenflow": {"topk_ratio": 0.1}}, "tensor_parallel": {"autotp_size": 2}},
        {},
        r"tensor_parallel \{.autotp_size.: 2\} is not supported(.|\n)*zenflow|zenflow(.|\n)*tensor_parallel",
    ),
    "comms_logger is a number": ({"comms_logger": 3}, {}, "refuses its comms_logger 3"),
    "tensorboard is a text": ({"tensorboard": "on"}, {}, "tensorboard"),
    "elasticity": ({"elasticity": {"enabled": True}}, {}, "elasticity .* no longer part of DeepSpeed"),
    "sparse attention": (
        {"sparse_attention": {"mode": "fixed"}},
        {},
        "sparse_attention .* no longer part of DeepSpeed",
    ),
    "a data type that there is not": ({"communication_data_type": "fp99"}, {}, "fp99"),
    "a breakdown that is a text": ({"wall_clock_breakdown": "yes"}, {}, "wall_clock_breakdown"),
}


@pytest.mark.parametrize("name", DS_FILES)
def test_ds_files(name, place):
    content, changes, pattern = DS_FILES[name]
    path = write(place / "ds.json", content)
    refused(train.main, train_flags(place, ds_file=path, **changes), pattern, place)


@pytest.mark.slow
def test_batch_sizes_and_optimizer_of_a_file_are_overridden(place):
    """What the flags answer is no error, however wrong it is in the file."""
    path = write(place / "ds.json", {"train_batch_size": "many", "optimizer": [3], "scheduler": {"type": 7}})
    result = launch.train(
        launch.train_options("glm2", "lora", place / "output", max_steps=1, ds_file=path, train_path=launch.GOLDEN
                             / "samples.jsonl")
    )  # fmt: skip
    for sentence in (
        'train_batch_size "many" is overridden',
        "the optimizer section is overridden",
        "the scheduler section",
    ):
        assert sentence in result.stdout


# name: (flags besides --model_path, what the sentence says)
QUESTIONS = {
    "no question": ({}, "--instruction or --test_path"),
    "both": ({"instruction": "a", "test_path": "b"}, "--instruction or --test_path"),
    "answers without a place": ({"test_path": "records.json"}, "need each other"),
    "no such file": ({"test_path": "no/such.json", "output_path": "{place}/answers"}, "no/such.json"),
    "answers into a directory": ({"test_path": "{place}/records.json", "output_path": "{place}"}, "--output_path"),
    "answers over the questions": (
        {"test_path": "{place}/records.json", "output_path": "{place}/records.json"},
        "--output_path .* is the test file itself",
    ),
    "no temperature": ({"instruction": "a", "do_sample": True, "temperature": 0}, "--temperature 0"),
    "temperature is NaN": ({"instruction": "a", "do_sample": True, "temperature": "nan"}, "--temperature nan"),
    "seed beyond 64 bits": ({"instruction": "a", "seed": 2**64}, f"--seed {2**64} is out of bounds"),
    "seed below zero": ({"instruction": "a", "seed": -(2**63) - 1}, f"--seed {-(2**63) - 1} is out of bounds"),
    "no beam": ({"instruction": "a", "num_beams": 0}, "--num_beams 0"),
    "top_p of two": ({"instruction": "a", "top_p": 2}, "--top_p 2"),
    "no such model": ({"model_path": "no/such", "instruction": "a"}, "--model_path no/such is not a directory"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions(name, place):
    options, pattern = QUESTIONS[name]
    options = {key: value.format(place=place) if isinstance(value, str) else value for key, value in options.items()}
    refused(predict.main, launch.flags({"model_path": place / "base", **options}), pattern, place)
