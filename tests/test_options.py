"""training/options.py: the flags of the 2023 tool, and one error that says everything that is wrong."""

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.flags import BOUNDS, CHOICES, FLAGS, names
from training.options import build_parser, explicit_flags, parse_options, validate

from errors import UserError

# What the 2023 tool had; its default ds_file named a file that did not exist.
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
    "output_dir": None,
    "mode": "glm2",
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
COMMAND_2023 = """--train_path data/spo_0.json --model_name_or_path ChatGLM-6B/
    --per_device_train_batch_size 1 --max_len 1560 --max_src_len 1024 --learning_rate 1e-4 --weight_decay 0.1
    --num_train_epochs 2 --gradient_accumulation_steps 4 --warmup_ratio 0.1 --mode glm --train_type lora --lora_dim 16
    --lora_alpha 64 --lora_dropout 0.1 --lora_module_name "query_key_value" --seed 1234
    --ds_file ds_zero2_no_offload.json --gradient_checkpointing --show_loss_step 10 --output_dir ./output-glm"""


@pytest.fixture
def paths(tmp_path):
    """The three paths that a valid command line needs."""
    (tmp_path / "base").mkdir()
    (tmp_path / "train.json").write_text("{}\n")
    return {
        "model_name_or_path": tmp_path / "base",
        "train_path": tmp_path / "train.json",
        "output_dir": tmp_path / "out",
        "data_cache_dir": tmp_path / "cache",
    }


def options_of(paths, *argv, **changed):
    flags = [text for name, path in (paths | changed).items() for text in (f"--{name}", str(path))]
    return parse_options([*flags, *argv])


def test_defaults_are_those_of_2023():
    options = vars(parse_options(["--model_name_or_path", "base"]))
    assert {name: options[name] for name in DEFAULTS_2023} == DEFAULTS_2023
    assert options["explicit"] == {"model_name_or_path"}


@pytest.mark.parametrize("flag", ["model_name_or_path", "max_len", "lora_module_name"])
def test_two_dashes_are_no_value(paths, flag):
    with pytest.raises(UserError, match=f"^--{flag}=-- gives no value"):
        options_of(paths, f"--{flag}=--")


@pytest.mark.parametrize("text", ["some", "-1", "2.0", "", "³", "9" * 10])
def test_layers_are_auto_or_a_number(paths, text):
    assert options_of(paths, "--checkpoint_layers", "12").checkpoint_layers == 12
    with pytest.raises(UserError, match="is neither auto nor a number of layers|expected one argument"):
        options_of(paths, "--checkpoint_layers", text)


def test_a_flag_that_needs_another(paths):
    options = options_of(paths, "--eval_metric", "rougeL", "--replay_ratio", "0.5", "--gpu_memory", "24",
                         "--checkpoint_layers", "4")  # fmt: skip
    with pytest.raises(UserError) as caught:
        validate(options)
    assert str(caught.value).splitlines() == [
        "--eval_metric rougeL needs --dev_path: give both or neither.",
        "--replay_ratio 0.5 needs --replay_path: give both or neither.",
        "--gpu_memory 24.0 needs --dry_run: give both or neither.",
        "--checkpoint_layers 4 needs --gradient_checkpointing: give both or neither.",
    ]


def test_defaults_of_the_new_flags(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    options = vars(parse_options(["--model_name_or_path", "base"]))
    new = {
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
        "data_cache_dir": "/somewhere/chatglm-finetuning",
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
    assert {name: options[name] for name in new} == new
    assert set(options) == {*DEFAULTS_2023, *new, "model_name_or_path", "explicit"}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse_options(["--model_name_or_path", "b"]).data_cache_dir == "/home/someone/.cache/chatglm-finetuning"


def test_the_2023_command_parses():
    options = parse_options(["--local_rank=0", *shlex.split(COMMAND_2023)])
    assert (options.mode, options.lora_dim, options.learning_rate, options.local_rank) == ("glm", 16, 1e-4, 0)
    assert options.gradient_checkpointing
    assert "lora_dropout" in options.explicit  # given, although with the default's value
    assert "precision" not in options.explicit


def test_every_flag_has_a_sentence_and_bounds_or_choices_name_flags():
    flags = {name: arguments for group in FLAGS.values() for name, arguments in group.items()}
    for name, arguments in flags.items():
        assert re.fullmatch(r"[A-Za-z].{20,}\.", arguments["help"]), name
        if arguments.get("type") in (int, float):
            assert name in BOUNDS or name == "local_rank"
    assert {*BOUNDS, *CHOICES} <= set(flags)
    help_text = build_parser().format_help()
    assert all(f"--{name} " in help_text or f"--{name}\n" in help_text for name in flags)


def test_groups_and_choices_agree_with_modes_and_methods():
    from methods import METHODS
    from modes import MODES

    assert set(CHOICES["mode"]) == set(MODES)
    assert set(CHOICES["train_type"]) == set(METHODS)
    for name, method in METHODS.items():
        assert set(FLAGS.get(name, ())) == set(method.OPTIONS)


@pytest.mark.parametrize(
    ("given_argv", "value"),
    [
        ([], True),
        (["--prefix_projection"], True),
        (["--prefix_projection", "True"], True),
        (["--prefix_projection", "False"], False),
        (["--prefix_projection=fALSE"], False),
        (["--prefix_projection", "0"], False),
        (["--prefix_projection", "1"], True),
        (["--prefix_projection", "no"], False),
        (["--prefix_projection", "yes"], True),
    ],
)
def test_prefix_projection_is_read_as_text(given_argv, value):
    assert parse_options(["--model_name_or_path", "b", *given_argv]).prefix_projection is value


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--model_name_or_path", "b", "--prefix_projection", "maybe"], ["--prefix_projection", "'maybe'", "True"]),
        (["--model_name_or_path", "b", "--max_len", "1k"], ["--max_len", "'1k'"]),
        (["--model_name_or_path", "b", "--freeze_module_name", " , ,"], ["--freeze_module_name", "name"]),
        (["--model_name_or_path", "b", "--lora_module_name", ""], ["--lora_module_name", "name"]),
        (["--model_name_or_path", "b", "--max_length", "5"], ["--max_length", "use --max_len."]),
        (["--model_name_or_path", "b", "--max_le", "5"], ["--max_le "]),  # no abbreviations
        (["--model_name_or_path", "b", "stray"], ["stray"]),
        (["--model_name_or_path", "b", "--max_len"], ["--max_len"]),
        ([], ["--model_name_or_path"]),
    ],
)
def test_a_bad_command_line_is_one_sentence(argv, parts):
    with pytest.raises(UserError) as error:
        parse_options(argv)
    message = str(error.value)
    assert all(part in message for part in parts)
    assert "\n" not in message and "usage:" not in message


@given(st.text(alphabet="ab., \t", max_size=20))
def test_no_name_is_ever_empty(text):
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if wanted and all(len(name.split()) == 1 for name in wanted):
        assert names(text) == tuple(wanted)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="separate names by commas" if wanted else "no name"):
            names(text)


def test_explicit_flags():
    argv = ["--model_name_or_path", "b", "--max_grad_norm=1.0", "--is_skip", "--prefix_projection"]
    assert explicit_flags(argv) == {"model_name_or_path", "max_grad_norm", "is_skip", "prefix_projection"}


def test_valid_options_have_no_notes_and_leave_nothing_behind(paths, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert validate(options_of(paths, output_dir=tmp_path / "new/deep/out")) == []
    assert sorted(tmp_path.rglob("*")) == before
    paths["output_dir"].mkdir()
    assert validate(options_of(paths)) == []
    assert paths["output_dir"].is_dir()  # what was there stays


def test_notes(paths):
    argv = ["--max_src_len", "1024", "--deepspeed", "--deepspeed_config", "x.json", "--pre_seq_len", "4"]
    notes = validate(options_of(paths, *argv))
    assert len(notes) == 4
    assert "--max_src_len 1024" in notes[0] and "--max_len 1024" in notes[0]
    assert "--deepspeed " in notes[1]
    assert "--deepspeed_config " in notes[2] and "--ds_file" in notes[2]
    assert "--pre_seq_len" in notes[3] and "--train_type lora" in notes[3]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_len", "15"),
        ("max_len", "-1"),
        ("max_src_len", "0"),
        ("per_device_train_batch_size", "0"),
        ("gradient_accumulation_steps", "-4"),
        ("num_train_epochs", "0"),
        ("max_steps", "0"),
        ("learning_rate", "0"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("weight_decay", "-0.1"),
        ("warmup_ratio", "1.1"),
        ("warmup_ratio", "-0.1"),
        ("warmup_ratio", "nan"),
        ("warmup_steps", "-1"),
        ("warmup_steps", "inf"),
        ("num_train_epochs", "-0.5"),
        ("num_train_epochs", "nan"),
        ("num_train_epochs", "1e300"),
        ("max_grad_norm", "-1"),
        ("max_grad_norm", "nan"),
        ("seed", "-1"),
        ("seed", str(2**32)),
        ("show_loss_step", "0"),
        ("save_model_step", "0"),
        ("save_total_limit", "0"),
        ("lora_dim", "0"),
        ("lora_alpha", "0"),
        ("lora_dropout", "1"),
        ("lora_dropout", "-0.1"),
        ("pre_seq_len", "0"),
        ("mode", "glm4"),
        ("train_type", "full"),
        ("precision", "int8"),
        ("lr_scheduler_type", "cosin"),
        ("prefix_layers", "some"),
        ("ds_file", "ds_zero9.json"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(paths, flag, value):
    with pytest.raises(UserError) as error:
        validate(options_of(paths, f"--{flag}={value}"))
    message = str(error.value)
    assert "\n" not in message
    number = value if flag not in BOUNDS else str(vars(options_of(paths, f"--{flag}={value}"))[flag])
    assert f"--{flag} {number} " in message
    for choice in CHOICES.get(flag, ()):
        assert choice in message
    assert not paths["output_dir"].exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("warmup_ratio", "0"),
        ("warmup_ratio", "1"),
        ("warmup_steps", "0"),
        ("num_train_epochs", "0.001"),
        ("num_train_epochs", "3.0"),
        ("lora_dropout", "0"),
        ("max_grad_norm", "0"),
        ("weight_decay", "0"),
    ],
)
def test_values_at_the_bounds(paths, flag, value):
    assert validate(options_of(paths, f"--{flag}={value}")) == []


def test_warmup_steps_override_the_ratio(paths):
    assert validate(options_of(paths, "--warmup_steps", "5")) == []
    (note,) = validate(options_of(paths, "--warmup_steps", "5", "--warmup_ratio", "0.1"))
    assert note == "--warmup_ratio 0.1 is overridden by --warmup_steps 5."


def test_the_end_of_the_polynomial_schedule(paths):
    with pytest.raises(UserError, match="^--learning_rate 1e-08 is not above 1e-07, where .*polynomial ends"):
        validate(options_of(paths, "--lr_scheduler_type", "polynomial", "--learning_rate", "1e-8"))
    assert validate(options_of(paths, "--lr_scheduler_type", "linear", "--learning_rate", "1e-8")) == []


def test_all_problems_come_at_once(paths, tmp_path):
    with pytest.raises(UserError) as error:
        validate(
            options_of(
                {}, "--mode", "glm4", "--learning_rate=-1", "--ds_file=no.json", model_name_or_path=tmp_path / "none"
            )
        )
    lines = str(error.value).split("\n")
    assert len(lines) == 6
    for flag in ("--mode", "--learning_rate", "--model_name_or_path", "--train_path", "--ds_file", "--output_dir"):
        assert sum(line.startswith(f"{flag} ") for line in lines) == 1


@pytest.mark.parametrize("flag", ["model_name_or_path", "train_path", "output_dir", "data_cache_dir"])
def test_paths_of_the_wrong_kind(paths, tmp_path, flag):
    (tmp_path / "file").write_text("")
    wrong = tmp_path if flag == "train_path" else tmp_path / "file"
    with pytest.raises(UserError, match=f"^--{flag} {wrong} "):
        validate(options_of(paths, **{flag: wrong}))


@pytest.mark.parametrize("flag", ["model_name_or_path", "train_path"])
def test_missing_inputs(paths, tmp_path, flag):
    with pytest.raises(UserError, match=f"^--{flag} {tmp_path / 'none'} does not exist"):
        validate(options_of(paths, **{flag: tmp_path / "none"}))


@pytest.mark.parametrize("inside", ["", "out", "a/b", "../base"])
def test_output_in_the_base_directory(paths, inside):
    with pytest.raises(UserError, match="lies in the base directory"):
        validate(options_of(paths, output_dir=paths["model_name_or_path"] / inside))
    link = paths["train_path"].parent / "link"
    link.symlink_to(paths["model_name_or_path"])
    with pytest.raises(UserError, match="lies in the base directory"):
        validate(options_of(paths, output_dir=link / "out"))


def test_output_that_cannot_be_written(paths, tmp_path):
    below_a_file = paths["train_path"] / "out"
    with pytest.raises(UserError, match="^--output_dir .* cannot be written"):
        validate(options_of(paths, output_dir=below_a_file))
    with pytest.raises(UserError, match="^--output_dir .* cannot be written"):
        validate(options_of(paths, output_dir="/proc/out"))
    assert validate(options_of(paths, output_dir="/proc/out"), rank=1) == []  # only rank 0 tries
    if os.geteuid() != 0:  # permissions do not hold root back
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(UserError, match="^--output_dir .* cannot be written"):
            validate(options_of(paths, output_dir=locked / "out"))


def test_ds_file_is_checked(paths, tmp_path):
    bad = Path(tmp_path / "bad.json")
    bad.write_text('{\n  "a": 1,\n}\n')
    with pytest.raises(UserError, match=re.escape(f"{bad}:3")):
        validate(options_of(paths, f"--ds_file={bad}"))
