"""The command line of predict.py, and the checks that need no weights. The 2023 tool's flags are understood."""

import argparse
import os
import re
from pathlib import Path

from errors import UserError
from evaluation.scores import SCORES
from generation.answer_file import output_problem, part_path
from modes import MODES
from training.engine import DTYPES
from training.flags import boolean, names
from training.options import OptionsParser
from training.quantization import BITS

DEVICE = re.compile(r"(cuda:)?\d{1,3}")
SAMPLING = {"temperature": 0.95, "top_p": 0.7, "top_k": 0}  # defaults of flags that --do_sample gives a meaning
SHORTEST = 16  # below that no template leaves room for an answer
MAX_NEW_TOKENS = 512  # where neither --max_new_tokens nor --max_len is given


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OptionsParser(prog="predict.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_path", help="a base, a merged directory or a checkpoint of any method")
    parser.add_argument("--base_model", help="the base of a checkpoint; default: the one that it recorded")
    parser.add_argument(
        "--mode", choices=list(MODES), help="generation of the base, where neither its files nor a checkpoint tell it"
    )
    parser.add_argument("--instruction", help="ask this one question")
    parser.add_argument("--input", default="", help="the text that the instruction is about")
    parser.add_argument("--test_path", help="answer every record of this file")
    parser.add_argument("--prompt_column", help="key of the question; default: as trained, or recognised")
    parser.add_argument("--response_column", help="key of the answer; default: as trained, or recognised")
    parser.add_argument("--history_column", help="key of the earlier turns; default: as trained, or history")
    parser.add_argument("--source_prefix", help="text in front of every question; default: as trained, or none")
    parser.add_argument("--task_key", help="key of a record that names its task: --metrics for each task as well")
    parser.add_argument("--output_path", help="where the answers of --test_path go, one JSON object per line")
    parser.add_argument(
        "--metrics",
        type=names,
        default=(),
        metavar="NAMES",
        help=f"score the answers to --test_path against their output; separated by commas: {', '.join(SCORES)}",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="records answered side by side")
    parser.add_argument("--max_new_tokens", type=int, help="the longest answer; default: 512, or what --max_len leaves")
    parser.add_argument("--max_src_len", type=int, help="the longest prompt; default: as trained, or no limit")
    parser.add_argument(
        "--do_sample",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="True|False",
        help="sample instead of taking the likeliest token",
    )
    parser.add_argument("--temperature", type=float, help="with --do_sample: below 1 is less random")
    parser.add_argument("--top_p", type=float, help="with --do_sample: the probability mass to draw from")
    parser.add_argument("--top_k", type=int, help="with --do_sample: draw from so many tokens, 0: from all")
    parser.add_argument("--num_beams", type=int, default=1, help="beams of a beam search")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 discourages repetition")
    parser.add_argument("--seed", type=int, default=1234, help="with --do_sample: the same seed, the same answers")
    parser.add_argument(
        "--precision",
        choices=["auto", *DTYPES],
        default="auto",
        help="auto: bf16 on a GPU that has it, else fp16; fp32 on CPU",
    )
    parser.add_argument(
        "--quantization_bit",
        type=int,
        choices=[0, *BITS],
        help="quantize the base to this many bits, 0: to none; default: as the checkpoint was trained",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, or the number of a GPU; auto: the first visible GPU, else the CPU",
    )
    parser.add_argument("--max_len", "--max_length", type=int, help="longest prompt with its answer, in tokens")
    parser.add_argument("--prompt_text", help="the instruction of records that have none, or of --input")
    parser.add_argument("--model_dir", help="as in 2023: the model; the base where --ptuning_checkpoint is given")
    parser.add_argument("--ori_model_dir", help="as in 2023: the base of the adapter in --model_dir")
    parser.add_argument("--ptuning_checkpoint", help="as in 2023: the P-Tuning checkpoint of the base in --model_dir")
    parser.add_argument("--pre_seq_len", type=int, help="ignored; the checkpoint holds it")
    parser.add_argument("--prefix_projection", type=boolean, help="ignored; the checkpoint holds it")
    parser.set_defaults(**SAMPLING)
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the 2023 tool's names of model and base in --model_path and --base_model.

    Raises:
        UserError: everything that is wrong with it, in one sentence each.
    """
    options = build_parser().parse_args(argv)
    problems = adopt_paths(options)
    for flag in ("instruction", "source_prefix"):
        if options.prompt_text is not None and vars(options)[flag] is not None:
            problems.append(f"--prompt_text and --{flag} are mutually exclusive: give only one")
    if options.prompt_text is not None and options.test_path is None:
        options.instruction = options.prompt_text
    if options.max_new_tokens is None:
        options.max_new_tokens = options.max_len or MAX_NEW_TOKENS
    check_options(options, problems)
    return options


def adopt_paths(options: argparse.Namespace) -> list[str]:
    """Set --model_path and --base_model from the names of 2023; returns what contradicts them."""
    model, base = ("ptuning_checkpoint", "model_dir") if options.ptuning_checkpoint else ("model_dir", "ori_model_dir")
    problems = []
    for flag, old in (("model_path", model), ("base_model", base)):
        values = vars(options)
        if values[old] is not None and values[flag] is not None:
            problems.append(f"--{flag} and --{old} are mutually exclusive: give only one")
        elif values[old] is not None:
            setattr(options, flag, values[old])
    if options.ptuning_checkpoint and options.ori_model_dir:
        problems.append("--ptuning_checkpoint and --ori_model_dir are mutually exclusive: give only one")
    if options.model_path is None:
        problems.append("--model_path is missing: give a base, a merged directory or a checkpoint")
    return problems


def check_options(options: argparse.Namespace, problems: list[str]) -> None:
    """Raise UserError for every conflict of the command line, before anything is loaded.

    Args:
        problems: that were found before.
    """
    problems = [*problems]
    if (options.instruction is None) == (options.test_path is None):
        problems.append("give either --instruction or --test_path")
    if (options.test_path is None) != (options.output_path is None):
        problems.append("--test_path and --output_path go together")
    unknown = [name for name in options.metrics if name not in SCORES]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)} is unknown, choose from {', '.join(SCORES)}")
    if options.metrics and options.test_path is None:
        problems.append("--metrics needs --test_path")
    for flag in ("batch_size", "max_new_tokens", "num_beams"):
        if vars(options)[flag] < 1:
            problems.append(f"--{flag} {vars(options)[flag]} must be 1 or more")
    if not 0 <= options.seed < 2**64:
        problems.append(f"--seed {options.seed} must be at least 0 and less than 2**64")
    for flag, least in (("max_src_len", 1), ("max_len", SHORTEST)):
        if vars(options)[flag] is not None and vars(options)[flag] < least:
            problems.append(f"--{flag} {vars(options)[flag]} must be {least} or more")
    if options.device not in ("auto", "cpu", "cuda") and not DEVICE.fullmatch(options.device):
        problems.append(f"--device {options.device} is unknown: give auto, cpu, or the number of a GPU, such as 0")
    for flag in ("instruction", "input", "prompt_text", "source_prefix"):
        if not is_text(vars(options)[flag] or ""):
            problems.append(f"--{flag} is not UTF-8: use a terminal in UTF-8, or write it to a file for --test_path")
    if options.do_sample and not options.temperature > 0:
        problems.append(f"--temperature {options.temperature} must be above 0")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p {options.top_p} must be above 0 and at most 1")
    if options.top_k < 0:
        problems.append(f"--top_k {options.top_k} must be 0 or more")
    if not options.repetition_penalty > 0:
        problems.append(f"--repetition_penalty {options.repetition_penalty} must be above 0")
    if options.output_path is not None:
        output = Path(options.output_path)
        problem = output_problem(output)
        if problem:
            problems.append(f"--output_path {output} {problem}")
        elif options.test_path is not None:
            read = os.path.realpath(options.test_path)
            if read in (os.path.realpath(output), os.path.realpath(part_path(output))):
                problems.append(f"--output_path {output} is the test file itself: choose another file")
    if problems:
        raise UserError("; ".join(problems) + ".")


def note_unused(options: argparse.Namespace) -> list[str]:
    """A sentence for each value of sampling that means nothing, because the likeliest token is taken."""
    if options.do_sample:
        return []
    given = {name: vars(options)[name] for name, default in SAMPLING.items() if vars(options)[name] != default}
    return [f"--{name} {value:g} has no effect without --do_sample." for name, value in given.items()]


def is_text(text: str) -> bool:
    """Whether a value has no bytes that are not UTF-8, which Python keeps as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
