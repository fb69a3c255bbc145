"""options/train.py: the options of a run, from a command line and from Python; the 2023 tool."""

import shlex

import pytest

from errors import UserError
from flags import flags_of
from methods import METHODS
from options.sections import IgnoredOptions
from options.train import TRAIN, notes_on, parse_train, train_options

# What the 2023 tool had; its default ds_file named a file that did not exist, its default mode was glm2.
DEFAULTS_2023 = {
    "train_path": "",
    "max_len": 1024,
    "max_src_len": 256,
    "is_skip": False,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.1,
    "output_dir": "",
    "mode": None,
    "train_type": "lora",
    "seed": 1234,
    "local_rank": -1,
    "show_loss_step": 10,
    "gradient_checkpointing": False,
    "save_model_step": None,
    "ds_file": "ds_zero2_no_offload.json",
    "lora_dim": 8,
    "lora_alpha": 30,
    "lora_dropout": 0.1,
    "lora_module_name": ("query_key_value",),
    "freeze_module_name": ("layers.27.",),
    "pre_seq_len": 16,
    "prefix_projection": True,
}
NEW = {
    "precision": "auto",
    "lr_scheduler_type": "cosine",
    "warmup_steps": None,
    "report_to": ("tensorboard",),
    "max_steps": None,
    "save_total_limit": None,
    "save_state_step": None,
    "resume_from_checkpoint": "auto",
    "max_grad_norm": 1.0,
    "prefix_layers": "all",
    "data_cache_dir": None,
    "dataset": None,
    "dataset_dir": "data",
    "prompt_column": None,
    "response_column": None,
    "history_column": None,
    "source_prefix": "",
    "loss_on": "all",
    "task_key": None,
    "dev_path": None,
    "eval_step": None,
    "eval_metric": "dev_loss",
    "eval_samples": 64,
    "early_stopping_patience": None,
    "probe_path": None,
    "replay_path": None,
    "replay_ratio": 0.1,
    "dry_run": False,
    "gpu_memory": None,
    "checkpoint_layers": "auto",
    "packing": False,
    "attn_implementation": "auto",
    "torch_compile": False,
    "dataloader_num_workers": None,
    "cache_frozen_features": False,
    "share_prompts": True,
    "on_nonfinite": "stop",
    "timeout_minutes": 30.0,
    "lora_variant": "lora",
    "loraplus_lr_ratio": 16.0,
    "adalora_target_r": 4,
    "modules_to_save": None,
    "freeze_last_n": None,
    "init_adapter": None,
    "quantization_bit": None,
    "double_quantization": False,
    "deepspeed": False,
    "deepspeed_config": None,
}
COMMAND_2023 = """--train_path data/spo_0.json --model_name_or_path ChatGLM-6B/
    --per_device_train_batch_size 1 --max_len 1560 --max_src_len 1024 --learning_rate 1e-4 --weight_decay 0.1
    --num_train_epochs 2 --gradient_accumulation_steps 4 --warmup_ratio 0.1 --mode glm --train_type lora --lora_dim 16
    --lora_alpha 64 --lora_dropout 0.1 --lora_module_name "query_key_value" --seed 1234
    --ds_file ds_zero2_no_offload.json --gradient_checkpointing --show_loss_step 10 --output_dir ./output-glm"""


def test_defaults():
    defaults = {name: flag.default for name, flag in TRAIN.flags.items()}
    assert defaults == {"model_name_or_path": "", **DEFAULTS_2023, **NEW}


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_are_the_options_of_an_empty_command_line(method):
    options, problems = parse_train(["--train_type", method])
    assert problems == [] and options.given == {"train_type"} and type(options.method) is METHODS[method]
    values = {name: value for section in options.sections for name, value in vars(section).items()}
    others = {name for kind in (*METHODS.values(), IgnoredOptions) for name in flags_of(kind)}
    in_force = {name: flag.default for name, flag in TRAIN.flags.items() if name not in others}
    in_force |= {name: flag.default for name, flag in flags_of(METHODS[method]).items()}
    assert values == in_force | {"train_type": method}
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    assert options.flat() == as_json


def test_the_cache_is_in_the_home_directory(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert parse_train([])[0].data.cache_dir == "/somewhere/chatglm-finetuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse_train([])[0].data.cache_dir == "/home/someone/.cache/chatglm-finetuning"
    assert parse_train(["--data_cache_dir", "here"])[0].data.cache_dir == "here"


def test_rows_of_packed_samples_are_as_long_as_a_sample():
    assert parse_train(["--max_len", "64"])[0].row_length is None
    assert parse_train(["--max_len", "64", "--packing"])[0].row_length == 64


def test_the_2023_command_parses():
    options, problems = parse_train(["--local_rank=0", *shlex.split(COMMAND_2023)])
    assert problems == []
    assert (options.model.mode, options.method.lora_dim, options.optimizer.learning_rate) == ("glm", 16, 1e-4)
    assert options.compute.local_rank == 0 and options.compute.gradient_checkpointing
    assert "lora_dropout" in options.given  # although with the default's value
    assert "precision" not in options.given


def test_options_from_python():
    options = train_options(
        model_name_or_path="base", lora_dim=16, lora_module_name=("dense", "query_key_value"), is_skip=True,
        share_prompts=False, max_steps=None, learning_rate=1e-4, report_to=["wandb", "mlflow"],
    )  # fmt: skip
    argv = "--model_name_or_path base --lora_dim 16 --lora_module_name dense,query_key_value --is_skip "
    argv += "--share_prompts False --learning_rate 1e-4 --report_to wandb,mlflow"
    assert (options, []) == parse_train(argv.split())


def test_options_from_python_that_are_wrong():
    with pytest.raises(UserError) as caught:
        train_options(max_len=3, lora_dim=0, lora_rnk=8, learning_rate="fast")
    starts = (
        "--lora_rnk is an unknown option: did you mean",
        "--learning_rate: 'fast'",
        "--max_len 3 ",
        "--lora_dim 0 ",
    )
    assert all(sentence.startswith(start) for sentence, start in zip(caught.value.sentences, starts, strict=True))
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 problems:" and lines[1:] == [
        f"{i}. {sentence}" for i, sentence in enumerate(caught.value.sentences, 1)
    ]
    with pytest.raises(UserError, match="^--max_len 3 is out of bounds"):  # a single one has no number
        train_options(max_len=3)


def test_no_notes():
    assert notes_on(parse_train(["--max_src_len", "1023", "--warmup_steps", "5"])[0]) == []


def test_notes():
    argv = "--max_src_len 1024 --deepspeed --deepspeed_config x.json --pre_seq_len 4 --prefix_layers all"
    options, problems = parse_train(argv.split())
    notes = notes_on(options)
    assert problems == [] and len(notes) == 4
    assert "--max_src_len 1024" in notes[0] and "--max_len 1024" in notes[0]
    assert "--deepspeed " in notes[1]
    assert "--deepspeed_config " in notes[2] and "--ds_file" in notes[2]
    assert notes[3] == "--pre_seq_len, --prefix_layers: no effect with --train_type lora."


def test_warmup_steps_override_the_ratio():
    (note,) = notes_on(parse_train(["--warmup_steps", "5", "--warmup_ratio", "0.1"])[0])
    assert note == "--warmup_ratio 0.1 is overridden by --warmup_steps 5."


def test_flags_of_another_method_are_not_judged():
    """They have no effect, which a note says."""
    options, problems = parse_train(["--train_type", "all", "--lora_dim", "0", "--adalora_target_r", "3"])
    assert problems == [] and len(notes_on(options)) == 1


def test_an_unknown_method_is_one_sentence():
    assert parse_train(["--train_type", "qlora"])[1] == [
        "--train_type qlora is unknown: choose freeze, ptuning, lora or all."
    ]
