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
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # no guess to report
from checkpoints.read import read_model
from conversation import as_read, reference, unsuited
from data.formats import Columns
from data.records import read_records
from data.tally import Tally
from errors import UserError, run
from evaluation.scores import score_by_task
from generation.models import choose_device, find_model
from generation.options import GenerationOptions
from generation.prediction import answer_question, predict_file
from modes import Mode
from training.guards import explain_full_memory
from training.predict_options import note_unused, parse_options


def check_roles(path: str, records: list[dict], mode: Mode) -> None:
    """Raise UserError for a record that the model's generation has no words for."""
    for number, record in enumerate(records, 1):
        clause = unsuited(record, mode.roles)
        if clause:
            raise UserError(
                f"{path}: record {number} holds {clause}, known to ChatGLM3 alone: use such a model, or drop it."
            )


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
        numbered = read_records(options.test_path, require_output=needed, columns=columns, tally=tally)
        return [record for _, record in numbered]

    tally = Tally()
    records = read(prefix)
    assert tally.read == len(records), "every record that is read is asked"
    print(f"{options.test_path}: {tally.read:,} records; {tally.describe()}")
    if options.prompt_text is not None:  # as in 2023, whose records with an instruction kept it
        prompted = read(prefix + options.prompt_text)
        records = [a if as_read(a).get("instruction") else b for a, b in zip(records, prompted, strict=True)]
    return records


def describe_scores(options: argparse.Namespace, records: list[dict], answers: list[str]) -> str:
    """The figures of --metrics, for each task as well where --task_key is given, as JSON."""
    tasks = [str(as_read(record).get(options.task_key, "")) for record in records] if options.task_key else []
    figures: dict[str, float] = {}
    for name in options.metrics:
        figures |= score_by_task(name, answers, [reference(record) for record in records], tasks)
    return json.dumps({name: round(value, 4) for name, value in figures.items()})


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and answer."""
    options = parse_options(argv)
    say(note_unused(options))
    device = choose_device(options.device)
    checkpoint = read_model(Path(options.model_path))
    records = read_questions(options, checkpoint.run_options)
    found = find_model(
        checkpoint,
        options.base_model,
        mode=options.mode,
        quantization_bit=options.quantization_bit,
        max_src_len=options.max_src_len,
        max_len=options.max_len,
    )
    say(found.notes)
    generation_options = GenerationOptions(
        **{field.name: vars(options)[field.name] for field in fields(GenerationOptions)}
    )
    if options.test_path is None:
        print(answer_question(found, records[0], generation_options, options.precision, device))
        return
    check_roles(options.test_path, records, found.mode)
    output = Path(os.path.realpath(options.output_path))
    answers = predict_file(found, records, output, generation_options, precision=options.precision, device=device)
    print(f"{len(records)} answers: {options.output_path}")
    if options.metrics:
        print(describe_scores(options, records, answers))


def say(notes: list[str]) -> None:
    """Print notes beside the answers."""
    for note in notes:
        print(note, file=sys.stderr)


if __name__ == "__main__":
    gpu = "lower --batch_size or --max_new_tokens, or give --quantization_bit 8 or 4"
    run(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
