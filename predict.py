"""Answer from a base, a merged directory, or a checkpoint of any method.

python predict.py --model_path output-glm3/epoch-2-step-700 --instruction "抽取三元组：" --input "发动机水温高。"
python predict.py --model_path chatglm3-spo --test_path data/spo_1.json --output_path answers.jsonl --batch_size 8
python predict.py --model_path ChatGLM3-6B --instruction "你好" --do_sample --temperature 0.8 --top_p 0.8

The prompt is made by the code that made the training prompts; a checkpoint says which base, mode and method it needs.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # no guess to report
from tqdm import tqdm
from transformers import GenerationConfig

from conversation import as_read, reference, unsuited
from data.formats import Columns
from data.records import read_records
from errors import UserError, run
from evaluation.generate import generate_batch, share_prompts, split_prompts
from evaluation.scores import SCORES, score_by_task
from merge_lora import check_base, check_fit, read_method, warn_of_other_base
from methods import METHODS, lora
from modes import MODES, Mode
from modes.directory import read_base
from training.checkpoint import MERGED_FILE, RECORD_FILE, read_record
from training.engine import DTYPES
from training.flags import names
from training.guards import explain_full_memory
from training.options import OptionsParser
from training.precision import gpus_have_bf16
from training.quantization import BITS, check_quantization, load_base


@dataclass(frozen=True)
class Answerer:
    """A model ready to answer, with what its prompts need."""

    mode: Mode
    tokenizer: object
    model: torch.nn.Module
    limits: dict  # max_src_len and max_len of training, which may cut a prompt; empty for a base

    def prompt_ids(self, record: dict) -> list[int]:
        """Every id in front of the answer."""
        return self.mode.prompt_ids(self.tokenizer, record, **self.limits)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OptionsParser(prog="predict.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_path", required=True, help="a base, a merged directory or a checkpoint of any method")
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
    parser.add_argument("--max_new_tokens", type=int, default=512, help="the longest answer")
    parser.add_argument("--max_src_len", type=int, help="the longest prompt; default: as trained, or no limit")
    parser.add_argument("--do_sample", action="store_true", help="sample instead of taking the likeliest token")
    parser.add_argument("--temperature", type=float, default=0.95, help="with --do_sample: below 1 is less random")
    parser.add_argument("--top_p", type=float, default=0.7, help="with --do_sample: the probability mass to draw from")
    parser.add_argument("--top_k", type=int, default=0, help="with --do_sample: draw from so many tokens, 0: from all")
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
        help="round the base to so many bits, 0: to none; default: as the checkpoint was trained",
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Every conflict of the command line in one sentence each, before anything is loaded."""
    problems = []
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
    if options.max_src_len is not None and options.max_src_len < 1:
        problems.append(f"--max_src_len {options.max_src_len} must be 1 or more")
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
        if output.is_dir() or not output.parent.is_dir():
            problems.append(f"--output_path {output} is not a file in an existing directory: choose another file")
        elif options.test_path is not None and output.resolve() == Path(options.test_path).resolve():
            problems.append(f"--output_path {output} is the test file itself: choose another file")
    if problems:
        raise UserError("; ".join(problems) + ".")


def choose_device() -> torch.device:
    """The current GPU (the first one, unless told otherwise), or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of --precision."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if gpus_have_bf16([device.index or 0]) else torch.float16


def load_answerer(
    model_path: str | Path,
    base_model: str | Path | None = None,
    precision: str = "auto",
    max_src_len: int | None = None,
    quantization_bit: int | None = None,
    mode: str | None = None,
) -> Answerer:
    """Load a base, a merged directory, or a checkpoint together with its base.

    Args:
        mode: generation of a base whose files do not tell it; a checkpoint knows its own.
        quantization_bit: to round the base to, 0 for none; None for what the checkpoint was trained on.

    Raises:
        UserError: the directory is none of these, or the base of a checkpoint is missing or another one.
    """
    path = Path(model_path)
    device = choose_device()
    if not path.is_dir():
        raise UserError(f"--model_path {path} is not a directory: give a base, a merged directory or a checkpoint.")
    train_type, method_options, record = "all", {}, read_record(path, MERGED_FILE)
    base_path = path
    if (path / RECORD_FILE).is_file() or (path / lora.CONFIG_FILE).is_file():
        train_type, method_options, record = read_method(path)
        if train_type != "all":
            base_path = Path(base_model or recorded_base(path, record))
    base = read_base(base_path, mode, recorded=record and record["mode"])
    if base.note:
        print(base.note, file=sys.stderr)
    trained = {}
    if train_type != "all":
        check_base(base, record, force=False)
        check_fit(base, path, train_type, method_options)
        warn_of_other_base(base, path, record)
        trained = record["options"] if record else {}
    bits = trained.get("quantization_bit") if quantization_bit is None else quantization_bit
    double = bits == 4 and bool(trained.get("double_quantization"))
    check_quantization(base, bits, double)

    generation, method = MODES[base.mode], METHODS[train_type]
    config = generation.config_class.from_pretrained(base.path)
    method.configure(config, **method_options)
    tokenizer = generation.tokenizer_class.from_pretrained(base.path)
    model = load_base(generation, base, config, choose_dtype(precision, device), bits, double, device)
    model = method.load(model, path).eval()
    limits = {name: record["options"].get(name) for name in ("max_src_len", "max_len")} if record else {}
    if max_src_len is not None:
        limits = {"max_src_len": max_src_len}
    return Answerer(generation, tokenizer, model, limits)


def recorded_base(path: Path, record: dict | None) -> str:
    """The base that a checkpoint or a peft adapter names.

    Raises:
        UserError: it names none, or one that is not on this machine.
    """
    named = record["base"].get("path") if record else lora.check_config(path).get("base_model_name_or_path")
    if not named or not Path(named).is_dir():
        raise UserError(f"{path} was trained on {named or 'an unnamed base'}, which is not here: add --base_model.")
    return named


def answer(
    answerer: Answerer, prompts: list[list[int]], generation: GenerationConfig, shared: dict | None = None
) -> list[str]:
    """The answers of a batch of prompts (the ids of `Answerer.prompt_ids`), in their order.

    Args:
        shared: what `share_prompts` computed of prompts that these are among.
    """
    tokenizer, model = answerer.tokenizer, answerer.model
    with torch.inference_mode():
        rows = generate_batch(
            model, prompts, pad_id=tokenizer.pad_token_id, generation=generation, device=model.device, shared=shared
        )
    return [answerer.mode.answer_text(tokenizer, row) for row in rows]


def answer_all(
    answerer: Answerer, records: list[dict], generation: GenerationConfig, batch_size: int
) -> Iterator[tuple[int, str]]:
    """(index, answer) of every record; records of like length share a batch, so that little is padded.

    What all prompts begin with, as a rule an instruction, is computed once. ChatGLM-6B's prompts see themselves in
    both directions: the instruction's keys and values depend on what follows, and nothing can be shared.
    """
    prompts = [answerer.prompt_ids(record) for record in records]
    shared = None
    if answerer.mode.causal_prompt and prompts:
        with torch.inference_mode():
            shared = share_prompts(answerer.model, prompts, generation=generation, device=answerer.model.device)
    for batch in split_prompts([len(ids) for ids in prompts], batch_size):
        yield from zip(batch, answer(answerer, [prompts[i] for i in batch], generation, shared), strict=True)


def generation_config(answerer: Answerer, options: argparse.Namespace) -> GenerationConfig:
    """The generation flags as transformers wants them; sampling values only where sampling is on."""
    sampling = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.do_sample,
        num_beams=options.num_beams,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=answerer.mode.stop_ids(answerer.tokenizer),
        pad_token_id=answerer.tokenizer.pad_token_id,
        **(sampling if options.do_sample else {}),
    )


def predict_file(answerer: Answerer, options: argparse.Namespace, records: list[dict]) -> None:
    """Answer every record of a file; the output appears only when it is complete."""
    generation = generation_config(answerer, options)
    answers = dict(
        tqdm(
            answer_all(answerer, records, generation, options.batch_size),
            total=len(records),
            desc="predicting",
            unit="record",
        )
    )
    output = Path(options.output_path)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as lines:
            for i, record in enumerate(records):
                lines.write(json.dumps({**as_read(record), "prediction": answers[i]}, ensure_ascii=False) + "\n")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{len(records)} answers: {output}")
    if options.metrics:
        tasks = [str(as_read(record).get(options.task_key, "")) for record in records] if options.task_key else []
        texts = [answers[i] for i in range(len(records))], [reference(record) for record in records]
        figures = {}
        for name in options.metrics:
            figures |= score_by_task(name, *texts, tasks)
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def check_roles(path: str, records: list[dict], mode: Mode) -> None:
    """Raise UserError for a record that the model's generation has no words for."""
    for number, record in enumerate(records, 1):
        clause = unsuited(record, mode.roles)
        if clause:
            raise UserError(
                f"{path}: record {number} holds {clause}, known to ChatGLM3 alone: use such a model, or drop it."
            )


def trained_options(model_path: Path) -> dict:
    """The flags of the run that wrote a checkpoint or a merged directory; {} for a base or a peft adapter."""
    record = read_record(model_path) or read_record(model_path, MERGED_FILE)
    return record["options"] if record else {}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and answer."""
    options = build_parser().parse_args(argv)
    check_options(options)
    trained = trained_options(Path(options.model_path))
    names = {"prompt": "prompt_column", "response": "response_column", "history": "history_column"}
    given = {key: vars(options)[flag] or trained.get(flag) for key, flag in names.items()}
    prefix = trained.get("source_prefix", "") if options.source_prefix is None else options.source_prefix
    columns = Columns(**given, prefix=prefix)
    records = [{"instruction": prefix + (options.instruction or ""), "input": options.input}]
    if options.test_path is not None:
        found = read_records(options.test_path, require_output=bool(options.metrics), columns=columns)
        records = [record for _, record in found]
    answerer = load_answerer(
        options.model_path,
        options.base_model,
        options.precision,
        options.max_src_len,
        options.quantization_bit,
        options.mode,
    )
    torch.manual_seed(options.seed)
    if options.test_path is not None:
        check_roles(options.test_path, records, answerer.mode)
        predict_file(answerer, options, records)
    else:
        print(answer(answerer, [answerer.prompt_ids(records[0])], generation_config(answerer, options))[0])


if __name__ == "__main__":
    gpu = "lower --batch_size or --max_new_tokens, or give --quantization_bit 8 or 4"
    run(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
