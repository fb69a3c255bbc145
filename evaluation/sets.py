"""The sets that --dev_path and --probe_path name, ready for the evaluator."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from transformers import GenerationConfig

from conversation import answers_apart, as_read, asked, reference
from data.loading import plan_epoch
from data.tokenize import TokenizedDataset
from evaluation.evaluator import EvaluationSet, make_evaluator
from generation.generate import generate_answers
from modes import Mode

SPARE_TOKENS = 16  # an answer may be so much longer than the longest reference


def sample_indices(total: int, wanted: int | None, seed: int) -> list[int]:
    """`wanted` of the numbers below `total` (all with None or where there are no more), in ascending order."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return np.sort(np.random.default_rng(seed % 2**32).choice(total, wanted, replace=False)).tolist()


def make_evaluation_set(
    prefix: str,
    name: str,
    dataset: TokenizedDataset,
    read: Callable[[], Iterable[dict]],
    mode: Mode,
    tokenizer,
    read_batches: Callable,
    *,
    num_answers: int,
    every_answer: bool,
    task_key: str | None,
    max_len: int,
    max_src_len: int,
    micro_batch_size: int,
    seed: int,
    world_size: int,
    rank: int,
) -> tuple[EvaluationSet, int]:
    """A set, and the tokens of the longest reference among the records to answer (0 where none is answered).

    Args:
        prefix: "" or "probe_".
        name: of the set, for progress messages.
        read: () -> the record of each row of `dataset`.
        read_batches: (dataset, plan) -> (step, its micro-batches), as `data.loading.batches`.
        every_answer: ask for each of a conversation's answers, not for the last one alone.
        task_key: the key of a record that names its task, for a score of each; None for one score.
        num_answers: records to answer, drawn by the seed; 0 for the loss alone.
    """
    plan = plan_epoch(
        dataset.lengths,
        dataset.supervised,
        epoch=0,
        seed=0,
        micro_batch_size=micro_batch_size,
        accumulation=len(dataset),  # one step with all of it: as many batches on every rank
        world_size=world_size,
        rank=rank,
    )

    def all_batches():
        for _, micro_batches in read_batches(dataset, plan):
            yield from micro_batches

    if not num_answers:
        return EvaluationSet(prefix, name, all_batches), 0
    chosen = sample_indices(len(dataset), num_answers, seed)
    wanted = set(chosen)
    records = [record for i, record in enumerate(read()) if i in wanted]
    if every_answer:
        parts = [part for record in records for part in answers_apart(record)]
        records = [parts[i] for i in sample_indices(len(parts), num_answers, seed)]
    answered = EvaluationSet(
        prefix,
        name,
        all_batches,
        asked=[asked(record) for record in records],
        references=[reference(record) for record in records],
        prompts=[mode.prompt_ids(tokenizer, record, max_src_len, max_len) for record in records],
        tasks=[str(as_read(record).get(task_key, "")) for record in records] if task_key else [],
    )
    return answered, int(dataset.supervised[chosen].max())


def greedy(mode: Mode, tokenizer, longest: int) -> GenerationConfig:
    """The likeliest token each time, up to a little more than the longest reference."""
    return GenerationConfig(
        max_new_tokens=longest + SPARE_TOKENS,
        do_sample=False,
        eos_token_id=mode.stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def make_evaluation_sets(
    mode: Mode,
    tokenizer,
    read_batches: Callable,
    open_dataset: Callable,
    paths: dict[str, str | None],
    *,
    metric: str,
    samples: int,
    **sizes,
) -> tuple[list[EvaluationSet], GenerationConfig]:
    """The dev and the probe set, those that there are, and how answers to them are generated.

    Args:
        read_batches: (dataset, plan) -> (step, its micro-batches), as `data.loading.batches`.
        open_dataset: `make_dataset` with all but flag, path and is_skip given.
        paths: {"dev_path": FILE or None, "probe_path": FILE or None}.
        sizes: what `make_evaluation_set` is to know of lengths, batches and ranks.
    """
    sets, longest = [], 0
    for flag, path in paths.items():
        if path:
            dataset, _, read = open_dataset(flag=flag, path=path, is_skip=False)
            prefix = "" if flag == "dev_path" else "probe_"
            num_answers = 0 if metric == "dev_loss" else samples
            one, longest_here = make_evaluation_set(
                prefix, path, dataset, read, mode, tokenizer, read_batches, num_answers=num_answers, **sizes
            )
            sets.append(one)
            longest = max(longest, longest_here)
    return sets, greedy(mode, tokenizer, longest)


def prepare_evaluator(
    engine,
    sets: list[EvaluationSet],
    output_dir: Path,
    *,
    mode: Mode,
    tokenizer,
    generation: GenerationConfig,
    metric: str,
    batch_size: int,
    patience: int | None,
    start_step: int,
    at: Callable[[str], None],
) -> Callable | None:
    """evaluate(step, epoch) -> Verdict, see `make_evaluator`; None where there are no sets.

    Args:
        at: is called with what comes next, as often on every rank; what it raises ends an evaluation.
    """
    if not sets:
        return None
    answer = partial(
        generate_answers,
        engine,
        pad_id=tokenizer.pad_token_id,
        generation=generation,
        answer_text=partial(mode.answer_text, tokenizer),
        batch_size=batch_size,
        causal=mode.causal_prompt,
        at=at,
    )
    return make_evaluator(
        engine, sets, output_dir, metric=metric, generate=answer, patience=patience, start_step=start_step, at=at
    )
