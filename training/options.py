"""Every command-line flag of train.py, and the checks that need no weights.

    options = parse_options()                     # argparse.Namespace; options.explicit: the flags the user gave
    notes = validate(options, rank=rank)          # all problems in one UserError, before any weight is loaded

Names and defaults are those of the 2023 tool, but for --ds_file, whose default did not exist.
"""

import argparse
import difflib
import math
import os
import tempfile
from pathlib import Path
from typing import NoReturn

from errors import UserError
from training.ds_config import find_ds_file, read_ds_file

CHOICES = {
    "mode": ("glm", "glm2", "glm3"),
    "train_type": ("freeze", "ptuning", "lora", "all"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "lr_scheduler_type": ("cosine", "linear", "constant"),
    "prefix_layers": ("all", "embedding"),
}


def boolean(text: str) -> bool:
    """true/yes/1 or false/no/0 in any case. (bool("False") is True: the 2023 flag could not be switched off.)"""
    word = text.strip().lower()
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names. No name is ever empty: an empty one would be part of every parameter's name."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no name; give one or more, separated by commas")
    return found


# Group → flag → argparse's arguments. A method's group is named as its --train_type.
FLAGS = {
    "model": {
        "model_name_or_path": {
            "required": True,
            "metavar": "DIR",
            "help": "Directory of the base model in the official layout: config.json, tokenizer files, weights.",
        },
        "mode": {"default": "glm2", "help": "Generation of the base: ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B."},
    },
    "data": {
        "train_path": {
            "default": "",
            "metavar": "FILE",
            "help": "Training records, one JSON object a line with instruction, input (may be absent) and output.",
        },
        "max_len": {"type": int, "default": 1024, "help": "Longest row in tokens: prompt, answer and special tokens."},
        "max_src_len": {"type": int, "default": 256, "help": "Longest prompt in tokens; what is longer gets cut."},
        "is_skip": {"action": "store_true", "help": "Drop the records that would be cut, instead of cutting them."},
        "data_cache_dir": {
            "default": None,
            "metavar": "DIR",
            "help": "Where tokenised data is kept for the next run (by default chatglm-finetuning under "
            "$XDG_CACHE_HOME or ~/.cache).",
        },
    },
    "training": {
        "train_type": {"default": "lora", "help": "What is trained: some layers, a prefix, LoRA matrices, everything."},
        "per_device_train_batch_size": {"type": int, "default": 16, "help": "Records in a micro-batch of one rank."},
        "gradient_accumulation_steps": {"type": int, "default": 1, "help": "Micro-batches in an optimiser step."},
        "num_train_epochs": {"type": int, "default": 1, "help": "Times that every record is seen."},
        "max_steps": {
            "type": int,
            "default": None,
            "help": "Optimiser steps of the run, instead of --num_train_epochs.",
        },
        "learning_rate": {"type": float, "default": 1e-3, "help": "Highest learning rate, reached after the warm-up."},
        "weight_decay": {"type": float, "default": 0.1, "help": "Decoupled weight decay of AdamW."},
        "warmup_ratio": {"type": float, "default": 0.1, "help": "Share of all steps in which the rate rises."},
        "lr_scheduler_type": {"default": "cosine", "help": "Course of the learning rate after the warm-up."},
        "max_grad_norm": {"type": float, "default": 1.0, "help": "Clip the gradient to this L2 norm; 0 does not clip."},
        "precision": {
            "default": "auto",
            "help": "Number format of model and gradients. auto: fp32 on a CPU; on a GPU what the DeepSpeed file "
            "enables, else bf16 where the GPU has it, else fp16.",
        },
        "gradient_checkpointing": {
            "action": "store_true",
            "help": "Compute activations again in the backward pass: less memory, more time.",
        },
        "seed": {"type": int, "default": 1234, "help": "Seed of the order of records, dropout and new weights."},
        "ds_file": {
            "default": "ds_zero2_no_offload.json",
            "metavar": "FILE",
            "help": "DeepSpeed file: a path, or the name of one in ds_configs/.",
        },
        "local_rank": {"type": int, "default": -1, "help": "Set by the deepspeed launcher."},
    },
    "output": {
        "output_dir": {
            "default": None,
            "metavar": "DIR",
            "help": "Where checkpoints, metrics.jsonl, TensorBoard files and the loss curve go; needed.",
        },
        "show_loss_step": {"type": int, "default": 10, "help": "Steps between two lines of metrics."},
        "save_model_step": {
            "type": int,
            "default": None,
            "help": "Steps between two checkpoints; there is always one at the end of an epoch.",
        },
        "save_state_step": {
            "type": int,
            "default": None,
            "help": "Steps between two resume states (by default one with each checkpoint).",
        },
        "resume_from_checkpoint": {
            "default": "auto",
            "metavar": "auto|none|DIR",
            "help": "auto: go on from the newest state in output_dir, if any; none: start anew; or a directory.",
        },
        "save_total_limit": {"type": int, "default": None, "help": "Keep this many checkpoints, the newest ones."},
    },
    "lora": {
        "lora_dim": {"type": int, "default": 8, "help": "Rank of the LoRA matrices."},
        "lora_alpha": {"type": int, "default": 30, "help": "LoRA scale: the update counts alpha / dim times."},
        "lora_dropout": {"type": float, "default": 0.1, "help": "Dropout on what goes into the LoRA matrices."},
        "lora_module_name": {
            "type": names,
            "default": "query_key_value",
            "metavar": "NAMES",
            "help": "Linear modules that get LoRA matrices, separated by commas.",
        },
    },
    "freeze": {
        "freeze_module_name": {
            "type": names,
            "default": "layers.27.",
            "metavar": "NAMES",
            "help": "Parts of names of the parameters that are trained, separated by commas; all others are frozen.",
        },
    },
    "ptuning": {
        "pre_seq_len": {"type": int, "default": 16, "help": "Trained positions in front of the prompt."},
        "prefix_projection": {
            "type": boolean,
            "nargs": "?",
            "const": True,
            "default": True,
            "metavar": "True|False",
            "help": "Whether an MLP makes the prefix; without it the prefix is trained as it is, in the same layers.",
        },
        "prefix_layers": {
            "default": "all",
            "help": "all: keys and values in every layer; embedding: vectors in front of the embeddings only.",
        },
    },
    "accepted and ignored": {
        "deepspeed": {"action": "store_true", "help": "Nothing: training always runs on DeepSpeed."},
        "deepspeed_config": {"default": None, "metavar": "FILE", "help": "Nothing: the DeepSpeed file is --ds_file."},
    },
}

# flag: (lower bound, is it allowed, upper bound, is it allowed)
BOUNDS = {
    "max_len": (16, True, math.inf, False),  # below that no template leaves room for an answer
    "max_src_len": (1, True, math.inf, False),
    "per_device_train_batch_size": (1, True, math.inf, False),
    "gradient_accumulation_steps": (1, True, math.inf, False),
    "num_train_epochs": (1, True, math.inf, False),
    "max_steps": (1, True, math.inf, False),
    "learning_rate": (0, False, math.inf, False),
    "weight_decay": (0, True, math.inf, False),
    "warmup_ratio": (0, True, 1, True),
    "max_grad_norm": (0, True, math.inf, False),
    "seed": (0, True, 2**32, False),
    "show_loss_step": (1, True, math.inf, False),
    "save_model_step": (1, True, math.inf, False),
    "save_state_step": (1, True, math.inf, False),
    "save_total_limit": (1, True, math.inf, False),
    "lora_dim": (1, True, math.inf, False),
    "lora_alpha": (0, False, math.inf, False),
    "lora_dropout": (0, True, 1, False),
    "pre_seq_len": (1, True, math.inf, False),
}


class OptionsParser(argparse.ArgumentParser):
    """Raises what argparse would print below a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument ") + " (train.py --help lists all flags).")


def default_cache_dir() -> str:
    """chatglm-finetuning under $XDG_CACHE_HOME, or under ~/.cache where that is not set."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(root) / "chatglm-finetuning")


def describe(arguments: dict) -> str:
    """A flag's help sentence, and its default where it has one to show."""
    default = arguments.get("default")
    return arguments["help"] if default in (None, "") else f"{arguments['help']} (default {default})"


def build_parser(*, defaults: bool = True) -> argparse.ArgumentParser:
    """The parser of train.py: the flags of FLAGS, never abbreviated.

    Args:
        defaults: False leaves flags that are not given out of the namespace.
    """
    parser = OptionsParser(
        prog="train.py",
        usage="deepspeed train.py --model_name_or_path DIR --train_path FILE --output_dir DIR [flags below]",
        description="Fine-tune ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B.",
        allow_abbrev=False,
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, arguments in flags.items():
            shown = {"help": describe(arguments)}
            if name in CHOICES:
                shown["metavar"] = "|".join(CHOICES[name])
            elif arguments.get("type") in (int, float):
                shown["metavar"] = "N" if arguments["type"] is int else "X"
            suppressed = {} if defaults else {"default": argparse.SUPPRESS}
            group.add_argument(f"--{name}", **{**arguments, **shown, **suppressed})
    return parser


def explicit_flags(argv: list[str] | None = None) -> frozenset[str]:
    """Names (without dashes) of the flags that stand on the command line, whatever their value."""
    given, _ = build_parser(defaults=False).parse_known_args(argv)
    return frozenset(vars(given))


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace, one attribute a flag, plus `explicit`: the names of the flags given.

    Raises:
        UserError: a flag that does not exist, or a value of the wrong type.
    """
    parser = build_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [f"--{name}" for flags in FLAGS.values() for name in flags]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "train.py --help lists all flags."
        raise UserError(f"{unknown[0]} is no flag or value that train.py takes: {hint}")
    options.explicit = explicit_flags(argv)
    if not options.data_cache_dir:
        options.data_cache_dir = default_cache_dir()
    return options


def validate(options: argparse.Namespace, rank: int = 0) -> list[str]:
    """Check everything that needs no weights.

    Args:
        rank: only rank 0 tries whether the directories can be written, so that ranks do not disturb each other.

    Returns:
        Sentences to print: what is odd, and what has no effect.

    Raises:
        UserError: every problem found, one a line.
    """
    problems = check_choices(options) + check_numbers(options) + check_inputs(options)
    problems += check_output_dir(options, rank) + check_cache_dir(options, rank)
    if problems:
        raise UserError("\n".join(problems))
    return list_notes(options)


def check_choices(options: argparse.Namespace) -> list[str]:
    """One sentence for each flag whose value is not one of its choices."""
    values = vars(options)
    return [
        f"--{name} {values[name]} is unknown: choose {', '.join(choices[:-1])} or {choices[-1]}."
        for name, choices in CHOICES.items()
        if values[name] not in choices
    ]


def check_numbers(options: argparse.Namespace) -> list[str]:
    """One sentence for each number out of its bounds; NaN and infinity are out of all."""
    values = vars(options)
    problems = []
    for name, (low, low_allowed, high, high_allowed) in BOUNDS.items():
        value = values[name]
        if value is None:
            continue
        inside = (value >= low if low_allowed else value > low) and (value <= high if high_allowed else value < high)
        if not inside:  # NaN compares false with everything
            wanted = f"{'at least' if low_allowed else 'greater than'} {low}"
            if math.isfinite(high):
                wanted += f" and {'at most' if high_allowed else 'less than'} {high}"
            elif value == math.inf:
                wanted += " and finite"
            problems.append(f"--{name} {value} is out of bounds: it must be {wanted}.")
    return problems


def check_inputs(options: argparse.Namespace) -> list[str]:
    """One sentence for each of base directory, training file and DeepSpeed file that cannot be read."""
    problems = []
    base, records = options.model_name_or_path, options.train_path
    if not os.path.isdir(base):
        what = "is not a directory" if os.path.exists(base) else "does not exist"
        problems.append(
            f"--model_name_or_path {base} {what}: give the local directory of a base model (nothing is downloaded)."
        )
    if not records:
        problems.append("--train_path is missing: give the file of training records, one JSON object a line.")
    elif not os.path.isfile(records):
        what = "is not a file" if os.path.exists(records) else "does not exist"
        problems.append(f"--train_path {records} {what}: give the file of training records.")
    else:
        try:
            with open(records, "rb"):
                pass
        except OSError as error:
            problems.append(f"--train_path {records} cannot be read ({error.strerror}): mend its permissions.")
    try:
        read_ds_file(find_ds_file(options.ds_file))
    except UserError as error:
        problems.append(str(error))
    return problems


def check_output_dir(options: argparse.Namespace, rank: int) -> list[str]:
    """One sentence if --output_dir is missing, lies in the base directory or cannot be written."""
    if not options.output_dir:
        return ["--output_dir is missing: give the directory where checkpoints and metrics go."]
    output, base = Path(options.output_dir).resolve(), Path(options.model_name_or_path).resolve()
    if output == base or base in output.parents:
        return [f"--output_dir {options.output_dir} lies in the base directory {base}: choose one outside of it."]
    return write_problem("output_dir", options.output_dir) if rank == 0 else []


def check_cache_dir(options: argparse.Namespace, rank: int) -> list[str]:
    """One sentence if --data_cache_dir cannot be written."""
    return write_problem("data_cache_dir", options.data_cache_dir) if rank == 0 else []


def write_problem(flag: str, directory: str) -> list[str]:
    """Try to make the directory and a file in it, leaving nothing behind: permissions alone tell too little."""
    path = Path(directory).absolute()
    if os.path.exists(path) and not path.is_dir():
        return [f"--{flag} {directory} is a file: give a directory."]
    missing = [parent for parent in (path, *path.parents) if not os.path.exists(parent)]  # deepest first
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return [f"--{flag} {directory} cannot be written ({error.strerror}): choose another directory."]
    finally:
        for made in missing:
            if os.path.isdir(made) and not any(made.iterdir()):
                made.rmdir()
    return []


def list_notes(options: argparse.Namespace) -> list[str]:
    """What the user should know about flags that have no effect or an unexpected one."""
    notes = []
    if options.max_src_len >= options.max_len:
        notes.append(
            f"--max_src_len {options.max_src_len} is not below --max_len {options.max_len}: "
            "a long prompt is cut further to leave room for its answer."
        )
    for name in ("deepspeed", "deepspeed_config"):
        if name in options.explicit:
            notes.append(
                f"--{name} has no effect: {FLAGS['accepted and ignored'][name]['help'].removeprefix('Nothing: ')}"
            )
    for method in CHOICES["train_type"]:
        unused = [f"--{name}" for name in FLAGS.get(method, ()) if name in options.explicit]
        if unused and method != options.train_type:
            notes.append(f"{', '.join(unused)}: no effect with --train_type {options.train_type}.")
    return notes
