"""The command line of train.py, and the checks that need no weights.

options = parse_options()                     # argparse.Namespace; options.explicit: the flags the user gave
notes = validate(options, rank=rank)          # all problems in one UserError, before any weight is loaded
"""

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from checkpoints.output_names import check_names
from data.formats import Columns
from data.sources import find_sources, split_paths
from errors import UserError
from files import read_problem, write_problem
from training import launch
from training.ds_config import find_ds_file, read_ds_file
from training.flags import BOUNDS, CHOICES, FLAGS
from training.hints import describe_stray, hint, stray_value, unknown_flags
from training.trackers import check_trackers

RECORD_FILES = ("train_path", "dev_path", "probe_path", "replay_path")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
QUOTED = 300  # characters of a value that a message may echo
LONGEST = 1000  # characters of a value
LARGEST = 2**31 - 1  # of a whole number without another bound: beyond it, products no longer fit where they are kept
POLYNOMIAL_END = 1e-7  # transformers.get_polynomial_decay_schedule_with_warmup's lr_end
# flag: those that mean nothing without it
COMPANIONS = {
    "dev_path": ("eval_step", "eval_metric", "eval_samples", "early_stopping_patience", "probe_path", "task_key"),
    "replay_path": ("replay_ratio",),
    "dry_run": ("gpu_memory",),
    "gradient_checkpointing": ("checkpoint_layers",),
}


class OptionsParser(argparse.ArgumentParser):
    """Raises what argparse would print below a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{shown(message.removeprefix('argument '))} ({self.prog} --help lists all flags).")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, but raises for what is unknown, and for an empty list, which it makes of `--flag=--`."""
        words, known = sys.argv[1:] if args is None else list(args), self._option_string_actions
        flags = list(dict.fromkeys(unknown_flags(words, known)))
        if flags:
            ours = [name for name in known if name.startswith("--")]
            hints = [f"{shown(flag)} is an unknown option: {hint(self.prog, flag, ours)}" for flag in flags]
            raise UserError("\n".join(line if line.endswith("?") else f"{line}." for line in hints))
        stray = stray_value(words, known)
        if stray:
            raise UserError(f"{shown(describe_stray(self.prog, *stray))}.")
        options, unknown = super().parse_known_args(args, namespace)
        empty = [name for name, value in vars(options).items() if isinstance(value, list)]
        if empty:
            raise UserError(f"--{empty[0]}=-- gives no value: write one behind the equals sign.")
        return options, unknown


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
            names = (
                [f"--{name}", "--local-rank"] if name == "local_rank" else [f"--{name}"]
            )  # of torch.distributed.launch
            group.add_argument(*names, **{**arguments, **shown, **suppressed})
    return parser


def explicit_flags(argv: list[str] | None = None) -> frozenset[str]:
    """Names (without dashes) of the flags that stand on the command line, whatever their value."""
    return frozenset(vars(build_parser(defaults=False).parse_args(argv)))


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace, one attribute a flag, plus `explicit`: the names of the flags given.

    Raises:
        UserError: a flag that does not exist, or a value of the wrong type.
    """
    options = build_parser().parse_args(argv)
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
    problems = check_texts(options)
    if problems:  # a line end in a value would make two lines of a sentence
        raise UserError("\n".join(problems))
    problems = (
        check_choices(options)
        + check_numbers(options)
        + check_schedule(options)
        + check_inputs(options)
        + check_companions(options)
    )
    problems += check_output_dir(options, rank) + check_cache_dir(options, rank)
    problems += check_trackers(options.report_to, rank)
    if problems:
        raise UserError("\n".join(problems))
    return list_notes(options)


def shown(text: str) -> str:
    """A value as it was given, or escaped and in quotes where it is empty or would not print."""
    text = text if len(text) <= QUOTED else text[:QUOTED] + "…"
    return text if text and not UNPRINTABLE.search(text) else repr(text)


def check_texts(options: argparse.Namespace) -> list[str]:
    """One sentence for each value with control characters or that is no text: no checkpoint could record it."""
    return [
        f"--{name} {shown(value)} holds a control character, is not UTF-8 or is over {LONGEST} characters long: give "
        "another value."
        for name, value in vars(options).items()
        if isinstance(value, str) and (UNPRINTABLE.search(value) or len(value) > LONGEST)
    ]


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
        high, high_allowed = (LARGEST, True) if isinstance(value, int) and high == math.inf else (high, high_allowed)
        inside = (value >= low if low_allowed else value > low) and (value <= high if high_allowed else value < high)
        if not inside:  # NaN compares false with everything
            wanted = f"{'at least' if low_allowed else 'greater than'} {low}"
            if math.isfinite(high):
                wanted += f" and {'at most' if high_allowed else 'less than'} {high}"
            elif value == math.inf:
                wanted += " and finite"
            problems.append(f"--{name} {value} is out of bounds: it must be {wanted}.")
    return problems


def check_schedule(options: argparse.Namespace) -> list[str]:
    """One sentence if the learning rate is below that at which transformers' polynomial schedule ends."""
    if options.lr_scheduler_type == "polynomial" and 0 < options.learning_rate <= POLYNOMIAL_END:
        return [
            f"--learning_rate {options.learning_rate} is not above {POLYNOMIAL_END}, where --lr_scheduler_type "
            "polynomial ends: raise it, or choose linear."
        ]
    return []


def check_inputs(options: argparse.Namespace) -> list[str]:
    """One sentence for each of base directory, files of records and DeepSpeed file that cannot be read."""
    problems = []
    base, values = options.model_name_or_path, vars(options)
    if not os.path.isdir(base):
        what = "is not a directory" if os.path.exists(base) else "does not exist"
        problems.append(
            f"--model_name_or_path {base} {what}: give the local directory of a base model (nothing is downloaded)."
        )
    if not options.train_path and not options.dataset:
        problems.append("--train_path is missing: give the file of training records, or names as --dataset.")
    resume = options.resume_from_checkpoint
    elsewhere = launch.on_several_machines()  # the directory need not be on each
    if resume not in ("auto", "none") and not os.path.isdir(resume) and not elsewhere:
        problems.append(f"--resume_from_checkpoint {resume} is not a directory: give one, or auto, or none.")
    for name in RECORD_FILES:
        problems += [problem for path in split_paths(values[name] or "") for problem in file_problem(name, path)]
    try:
        for source in find_sources(None, options.dataset, options.dataset_dir, Columns()):
            problems += file_problem("dataset", source.path)
    except UserError as error:
        problems.append(str(error))
    try:
        read_ds_file(find_ds_file(options.ds_file))
    except UserError as error:
        problems.append(str(error))
    return problems


def file_problem(flag: str, path: str) -> list[str]:
    """One sentence if a file of records cannot be read."""
    problem = read_problem(path)
    return [f"--{flag} {path} {problem}."] if problem else []


def check_companions(options: argparse.Namespace) -> list[str]:
    """One sentence for each flag that stands alone but needs another one to mean anything."""
    values = vars(options)
    return [
        f"--{name} {values[name]} needs --{needed}: give both or neither."
        for needed, companions in COMPANIONS.items()
        for name in companions
        if name in options.explicit and not values[needed]
    ]


def check_output_dir(options: argparse.Namespace, rank: int) -> list[str]:
    """One sentence if --output_dir is missing, lies in the base or cannot be written, or for each name in the way."""
    if not options.output_dir:
        return ["--output_dir is missing: give the directory where checkpoints and metrics go."]
    output, base = Path(options.output_dir).resolve(), Path(options.model_name_or_path).resolve()
    if output == base or base in output.parents:
        return [f"--output_dir {options.output_dir} lies in the base directory {base}: choose one outside of it."]
    if rank:
        return []
    problem = write_problem(options.output_dir)
    return [f"--output_dir {options.output_dir} {problem}."] if problem else check_names(options.output_dir)


def check_cache_dir(options: argparse.Namespace, rank: int) -> list[str]:
    """One sentence if --data_cache_dir cannot be written."""
    problem = write_problem(options.data_cache_dir) if rank == 0 else None
    return [f"--data_cache_dir {options.data_cache_dir} {problem}."] if problem else []


def list_notes(options: argparse.Namespace) -> list[str]:
    """What the user should know about flags that have no effect or an unexpected one."""
    notes = []
    if options.max_src_len >= options.max_len:
        notes.append(
            f"--max_src_len {options.max_src_len} is not below --max_len {options.max_len}: "
            "a long prompt is cut further to leave room for its answer."
        )
    if options.warmup_steps is not None and "warmup_ratio" in options.explicit:
        notes.append(f"--warmup_ratio {options.warmup_ratio} is overridden by --warmup_steps {options.warmup_steps:g}.")
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
