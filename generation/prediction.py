"""Answer the records of a file; an interrupted command resumes (see generation/answer_file.py)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from conversation import Record, as_read
from generation.answer_file import finish, kept_answers, part_path, read_part
from generation.answerer import Answerer, answer, answer_batches, answer_rows
from generation.models import UnloadedModel, load_model
from generation.request import Request, Sampling
from modes.mode import Mode
from modes.tokenizer import Tokenizer
from options.predict import AnswerOptions, GenerationOptions

SAME_ANSWERS = ("max_len", "do_sample", "num_beams", "repetition_penalty")  # require these to be equal
SAME_SAMPLES = ("temperature", "top_p", "top_k", "seed", "batch_size")  # and these if answers are sampled


def generation_config(mode: Mode, tokenizer: Tokenizer, options: AnswerOptions, num_beams: int = 1) -> GenerationConfig:
    """The options as keywords of transformers; sampling values only with sampling."""
    return GenerationConfig(
        max_new_tokens=options.answer_tokens,
        do_sample=options.do_sample,
        num_beams=num_beams,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=mode.stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **(options.sampling if options.do_sample else {}),
    )


def describe_answers(
    unloaded: UnloadedModel, options: GenerationOptions, precision: str, prompts: list[list[int]]
) -> dict[str, object]:
    """The header of a .part file: everything that determines the answers."""
    ids = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    names = SAME_ANSWERS + SAME_SAMPLES * options.do_sample
    return {
        "model": unloaded.identity(),
        "records or prompts": ids,
        "quantization_bit": unloaded.quantization_bit or 0,
        "--precision": precision,
        "--max_new_tokens": options.answer_tokens,
        **{f"--{name}": vars(options)[name] for name in names},
    }


def answer_question(
    unloaded: UnloadedModel, record: Record, options: GenerationOptions, precision: str, device: torch.device
) -> str:
    """The answer to one record."""
    answerer = load_model(unloaded, precision, device)
    torch.manual_seed(options.seed)
    prompt = answerer.prompt_ids(record)
    config = generation_config(answerer.mode, answerer.tokenizer, options, options.num_beams)
    return answer(answerer, [prompt], config, max_len=options.max_len)[0]


def predict_file(
    unloaded: UnloadedModel,
    records: list[Record],
    output: Path,
    options: GenerationOptions,
    *,
    precision: str = "auto",
    device: torch.device | None = None,
) -> list[str]:
    """Answer every record, write the answers to `output`, and return them; weights are loaded after all prompts.

    Raises:
        UserError: there are answers of another command, or the file cannot be written.
    """
    prompts = [unloaded.mode.prompt_ids(unloaded.tokenizer, record, **unloaded.limits) for record in records]
    header = describe_answers(unloaded, options, precision, prompts)
    answers = read_part(output, header)
    if answers:
        print(f"{len(answers)} of {len(records)} answers are in {part_path(output)}: continuing.")
    answerer = load_model(unloaded, precision, device)
    bar = tqdm(total=len(records), initial=len(answers), desc="predicting", unit="record")
    with bar, kept_answers(output, header, answers) as keep:
        for indices, texts in answer_prompts(answerer, prompts, options, frozenset(answers)):
            keep(indices, texts)
            answers.update(zip(indices, texts, strict=True))
            bar.update(len(answers) - bar.n)
    finish(output, [as_read(record) for record in records], answers)
    return [answers[i] for i in range(len(records))]


def answer_prompts(
    answerer: Answerer, prompts: list[list[int]], options: GenerationOptions, done: frozenset[int]
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (indices, answers) as they end: one by one, or in batches with beams, which transformers searches."""
    if options.num_beams > 1:
        config = generation_config(answerer.mode, answerer.tokenizer, options, options.num_beams)
        yield from answer_batches(
            answerer, prompts, config, options.batch_size, done=done, seed=options.seed, max_len=options.max_len
        )
        return
    requests = [make_request(answerer, ids, options, number) for number, ids in enumerate(prompts)]
    for i, text in answer_rows(answerer, requests, options.batch_size, done=done):
        yield [i], [text]


def make_request(answerer: Answerer, prompt: list[int], options: GenerationOptions, number: int) -> Request:
    """The request for a record's answer. number: of the record, so that each has its own seed."""
    room = options.max_len - len(prompt) if options.max_len else options.answer_tokens
    return Request(
        prompt,
        max_new_tokens=min(room, options.answer_tokens),
        stop_ids=frozenset(answerer.mode.stop_ids(answerer.tokenizer)),
        sampling=Sampling(
            temperature=options.temperature if options.do_sample else 0,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=options.seed + number,
            repetition_penalty=options.repetition_penalty,
        ),
    )
