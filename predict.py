"""Generate answers with a base, a merged directory, or a checkpoint of any method.

python predict.py --model_path output-glm3/epoch-2-step-700 --instruction "抽取三元组：" --input "发动机水温高。"
python predict.py --model_path chatglm3-spo --test_path data/spo_1.json --output_path answers.jsonl --batch_size 8
python predict.py --model_path ChatGLM3-6B --instruction "你好" --do_sample --temperature 0.8 --top_p 0.8

Prompts are built by the same code as in training. A checkpoint records the base, mode and method that it needs.
"""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, end_on_interrupt, run_program
from options.parser import refuse_early
from options.predict import PREDICT, parse_predict
from texts import counted

if __name__ == "__main__":
    run_program(lambda: refuse_early(PREDICT, lambda: parse_predict()[1]))  # before torch is loaded
    end_on_interrupt()
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess
from checkpoints.read import read_model
from generation.models import choose_device, find_model
from generation.prediction import answer_question, predict_file
from generation.questions import check_output_path, check_roles, describe_scores, read_questions
from training.guards import explain_full_memory


def main(argv: Sequence[str] | None = None) -> None:
    """Answer the questions of a command line."""
    options, problems, notes = parse_predict(argv)
    model, questions, generation = options.model, options.questions, options.generation
    problems += check_output_path(questions)
    if problems:
        raise UserError(*problems)
    say(notes)
    device = choose_device(model.device)
    checkpoint = read_model(Path(model.model_path))
    records = read_questions(questions, checkpoint.run_options)
    unloaded = find_model(
        checkpoint,
        model.base_model,
        mode=model.mode,
        quantization_bit=model.quantization_bit,
        max_src_len=generation.max_src_len,
        max_len=generation.max_len,
    )
    say(unloaded.notes)
    if questions.test_path is None or questions.output_path is None:  # both or neither
        print(answer_question(unloaded, records[0], generation, model.precision, device))
        return
    check_roles(questions.test_path, records, unloaded.mode)
    assert questions.output_path is not None, "given with --test_path"
    output = Path(os.path.realpath(questions.output_path))
    answers = predict_file(unloaded, records, output, generation, precision=model.precision, device=device)
    print(f"{counted(len(records), 'answer')}: {questions.output_path}")
    if questions.metrics:
        print(describe_scores(questions, unloaded.mode, records, answers))


def say(notes: Sequence[str]) -> None:
    """Print notes on standard error, apart from the answers."""
    for note in notes:
        print(note, file=sys.stderr)


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    gpu = "lower --batch_size or --max_new_tokens, or give --quantization_bit 8 or 4"
    run_program(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
