"""Answer from a base, a merged directory, or a checkpoint of any method.

python predict.py --model_path output-glm3/epoch-2-step-700 --instruction "抽取三元组：" --input "发动机水温高。"
python predict.py --model_path chatglm3-spo --test_path data/spo_1.json --output_path answers.jsonl --batch_size 8
python predict.py --model_path ChatGLM3-6B --instruction "你好" --do_sample --temperature 0.8 --top_p 0.8

The prompt is made by the code that made the training prompts; a checkpoint says which base, mode and method it needs.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # no guess to report
from tqdm import tqdm
from transformers import GenerationConfig

from checkpoints.record import MERGED_FILE, RECORD_FILE, read_record
from conversation import as_read, reference, unsuited
from data.formats import Columns
from data.records import read_records
from data.tally import Tally
from errors import UserError, run
from evaluation.scores import score_by_task
from generation.answer_file import finish, kept_answers, part_path, read_part
from generation.answerer import Answerer, answer, answer_batches
from merge_lora import check_base, check_fit, read_method, warn_of_other_base
from methods import METHODS, lora
from modes import MODES, Mode
from modes.directory import Base, fingerprint, read_base
from training.engine import DTYPES
from training.guards import explain_full_memory
from training.precision import gpus_have_bf16
from training.predict_options import SAMPLING, note_unused, parse_options
from training.quantization import check_quantization, load_base


def choose_device(name: str = "auto") -> torch.device:
    """The device of --device; auto: the current GPU (the first one, unless told otherwise), or the CPU.

    Raises:
        UserError: there is no such GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    number = int(name.removeprefix("cuda").removeprefix(":") or 0)
    if number >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch sees {torch.cuda.device_count()} GPUs, counted from 0: give such a number or cpu."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of --precision."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if gpus_have_bf16([device.index or 0]) else torch.float16


@dataclass(frozen=True)
class FoundModel:
    """A base, a merged directory or a checkpoint that was found and checked; no weight is loaded yet."""

    path: Path
    base: Base
    train_type: str
    config: object
    tokenizer: object
    limits: dict  # see Answerer
    bits: int | None  # that the base is rounded to
    double: bool  # whether the scales are rounded as well

    @property
    def mode(self) -> Mode:
        """Its generation."""
        return MODES[self.base.mode]

    def identity(self) -> str:
        """A hash of all weights: values of the base's tensors, and the files of a checkpoint."""
        digest = hashlib.sha256(fingerprint(self.base).encode())
        if self.train_type != "all":
            for file in sorted(path for path in self.path.iterdir() if path.is_file()):
                with file.open("rb") as content:
                    digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]


def find_model(
    model_path: str | Path,
    base_model: str | Path | None = None,
    max_src_len: int | None = None,
    quantization_bit: int | None = None,
    mode: str | None = None,
    max_len: int | None = None,
) -> FoundModel:
    """Find a base, a merged directory, or a checkpoint together with its base, and check what needs no weights.

    Args:
        mode: generation of a base whose files do not tell it; a checkpoint knows its own.
        quantization_bit: to round the base to, 0 for none; None for what the checkpoint was trained on.
        max_len: of a prompt with its answer; None for what the checkpoint was trained with.

    Raises:
        UserError: the directory is none of these, or the base of a checkpoint is missing or another one.
    """
    path = Path(model_path)
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
    generation = MODES[base.mode]
    config = generation.config_class.from_pretrained(base.path)
    METHODS[train_type].configure(config, **method_options)
    tokenizer = generation.tokenizer_class.from_pretrained(base.path)
    limits = {name: record["options"].get(name) for name in ("max_src_len", "max_len")} if record else {}
    if max_src_len is not None:
        limits = {"max_src_len": max_src_len}
    if max_len is not None:
        limits = {"max_src_len": limits.get("max_src_len") or max_len, "max_len": max_len}
    return FoundModel(path, base, train_type, config, tokenizer, limits, bits, double)


def load_model(found: FoundModel, precision: str = "auto", device: torch.device | None = None) -> Answerer:
    """Load the weights."""
    device = device or choose_device()
    dtype = choose_dtype(precision, device)
    model = load_base(found.mode, found.base, found.config, dtype, found.bits, found.double, device)
    model = METHODS[found.train_type].load(model, found.path).eval()
    return Answerer(found.mode, found.tokenizer, model, found.limits)


def load_answerer(
    model_path: str | Path,
    base_model: str | Path | None = None,
    precision: str = "auto",
    max_src_len: int | None = None,
    quantization_bit: int | None = None,
    mode: str | None = None,
) -> Answerer:
    """`find_model`, then `load_model`."""
    return load_model(find_model(model_path, base_model, max_src_len, quantization_bit, mode), precision)


def recorded_base(path: Path, record: dict | None) -> str:
    """The base that a checkpoint or a peft adapter names.

    Raises:
        UserError: it names none, or one that is not on this machine.
    """
    named = record["base"].get("path") if record else lora.check_config(path).get("base_model_name_or_path")
    if not named or not Path(named).is_dir():
        raise UserError(f"{path} was trained on {named or 'an unnamed base'}, which is not here: add --base_model.")
    return named


def generation_config(found: FoundModel, options: argparse.Namespace) -> GenerationConfig:
    """The generation flags as transformers wants them; sampling values only where sampling is on."""
    sampling = {name: vars(options)[name] for name in SAMPLING if options.do_sample}
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.do_sample,
        num_beams=options.num_beams,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=found.mode.stop_ids(found.tokenizer),
        pad_token_id=found.tokenizer.pad_token_id,
        **sampling,
    )


def describe_answers(found: FoundModel, options: argparse.Namespace, prompts: list[list[int]]) -> dict:
    """What the answers follow from, as the header of a .part file; other commands have another one."""
    flags = ["max_new_tokens", "max_len", "do_sample", "num_beams", "repetition_penalty", "precision"]
    if options.do_sample:
        flags += [*SAMPLING, "seed", "batch_size"]
    ids = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    header = {"model": found.identity(), "records or prompts": ids, "quantization_bit": found.bits or 0}
    return header | {f"--{flag}": vars(options)[flag] for flag in flags}


def predict_file(found: FoundModel, options: argparse.Namespace, records: list[dict], device: torch.device) -> None:
    """Answer every record of a file; see generation/answer_file.py for how the answers are kept."""
    output = Path(os.path.realpath(options.output_path))
    prompts = [found.mode.prompt_ids(found.tokenizer, record, **found.limits) for record in records]
    header = describe_answers(found, options, prompts)
    answers = read_part(output, header)
    if answers:
        print(f"{len(answers)} of {len(records)} answers are in {part_path(output)}: continuing.")
    answerer = load_model(found, options.precision, device)
    batches = answer_batches(
        answerer, prompts, generation_config(found, options), options.batch_size,
        done=frozenset(answers), seed=options.seed, max_len=options.max_len,
    )  # fmt: skip
    bar = tqdm(total=len(records), initial=len(answers), desc="predicting", unit="record")
    with bar, kept_answers(output, header, answers) as keep:
        for indices, texts in batches:
            keep(indices, texts)
            answers.update(zip(indices, texts, strict=True))
            bar.update(len(answers) - bar.n)
    finish(output, [as_read(record) for record in records], answers)
    print(f"{len(records)} answers: {options.output_path}")
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


def read_questions(options: argparse.Namespace, trained: dict) -> list[dict]:
    """The records of --test_path, or the one of --instruction.

    Raises:
        UserError: a record that cannot be asked, or with --metrics one without an answer.
    """
    names = {"prompt": "prompt_column", "response": "response_column", "history": "history_column"}
    given = {key: vars(options)[flag] or trained.get(flag) for key, flag in names.items()}
    prefix = trained.get("source_prefix", "") if options.source_prefix is None else options.source_prefix
    if options.test_path is None:
        return [{"instruction": prefix + (options.instruction or ""), "input": options.input}]

    def read(prefix: str) -> list[dict]:
        columns, needed = Columns(**given, prefix=prefix), bool(options.metrics)
        found = read_records(options.test_path, require_output=needed, columns=columns, tally=tally)
        return [record for _, record in found]

    tally = Tally()
    records = read(prefix)
    assert tally.read == len(records), "every record that is read is asked"
    print(f"{options.test_path}: {tally.read:,} records; {tally.describe()}")
    if options.prompt_text is not None:  # as in 2023, whose records with an instruction kept it
        prompted = read(prefix + options.prompt_text)
        records = [a if as_read(a).get("instruction") else b for a, b in zip(records, prompted, strict=True)]
    return records


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and answer."""
    options = parse_options(argv)
    for note in note_unused(options):
        print(note, file=sys.stderr)
    records = read_questions(options, trained_options(Path(options.model_path)))
    device = choose_device(options.device)
    found = find_model(
        options.model_path,
        options.base_model,
        options.max_src_len,
        options.quantization_bit,
        options.mode,
        options.max_len,
    )
    if options.test_path is not None:
        check_roles(options.test_path, records, found.mode)
        predict_file(found, options, records, device)
        return
    answerer = load_model(found, options.precision, device)
    torch.manual_seed(options.seed)
    prompt = answerer.prompt_ids(records[0])
    print(answer(answerer, [prompt], generation_config(found, options), max_len=options.max_len)[0])


if __name__ == "__main__":
    gpu = "lower --batch_size or --max_new_tokens, or give --quantization_bit 8 or 4"
    run(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
