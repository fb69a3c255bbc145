"""Prepare the sets of --dev_path and --probe_path for the evaluator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from transformers import GenerationConfig

from conversation import answers_apart, as_read, asked, expected
from data.loading import Batches, plan_epoch
from data.sources import RecordSet
from evaluation.evaluator import EvaluationSet, Verdict, make_evaluator
from generation.generate import generate_answers
from modes.mode import Mode
from modes.tokenizer import Tokenizer
from options.sections import DataOptions, EvaluationOptions, StepOptions

SPARE_TOKENS = 16  # by which an answer may be longer than the longest reference


def sample_indices(total: int, wanted: int | None, seed: int) -> list[int]:
    """`wanted` of the numbers below `total`, in ascending order; all for None, or if there are fewer."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return np.sort(np.random.default_rng(seed % 2**32).choice(total, wanted, replace=False)).tolist()


@dataclass(frozen=True)
class Evaluation:
    """Evaluation sets, one for each given flag, and the generation of their answers."""

    mode: Mode
    tokenizer: Tokenizer
    sets: list[EvaluationSet]
    generation_config: GenerationConfig


def make_evaluation_set(
    prefix: str,
    record_set: RecordSet,
    mode: Mode,
    tokenizer: Tokenizer,
    batches: Batches,
    *,
    evaluation: EvaluationOptions,
    data: DataOptions,
    steps: StepOptions,
) -> tuple[EvaluationSet, int]:
    """A set, and the tokens of the longest reference among the records to answer (0 if there are none).

    Args:
        prefix: "" or "probe_".
    """
    rows, name = record_set.rows, record_set.name
    plan = plan_epoch(
        rows.lengths,
        rows.supervised,
        epoch=0,
        seed=0,
        micro_batch_size=steps.per_device_train_batch_size,
        accumulation=len(rows),  # all rows in one step: the same number of batches on every rank
        world_size=dist.get_world_size(),
        rank=dist.get_rank(),
    )

    def all_batches() -> Iterator[dict]:
        for _, micro_batches in batches.read(rows, plan):
            yield from micro_batches

    if evaluation.eval_metric == "dev_loss":
        return EvaluationSet(prefix, name, all_batches), 0
    count, seed = evaluation.eval_samples, steps.seed
    chosen = sample_indices(len(rows), count, seed)
    wanted = set(chosen)
    records = [record for i, record in enumerate(record_set.records()) if i in wanted]
    if data.loss_on == "all":  # all answers of a conversation
        parts = [part for record in records for part in answers_apart(record)]
        records = [parts[i] for i in sample_indices(len(parts), count, seed)]
    records = [mode.written(record) for record in records]
    key = evaluation.task_key
    answered = EvaluationSet(
        prefix,
        name,
        all_batches,
        asked=[asked(record) for record in records],
        references=[expected(record) for record in records],
        prompts=[mode.prompt_ids(tokenizer, record, data.max_src_len, data.max_len) for record in records],
        tasks=[str(as_read(record).get(key, "")) for record in records] if key else [],
    )
    return answered, int(rows.supervised[chosen].max())


def greedy(mode: Mode, tokenizer: Tokenizer, longest: int) -> GenerationConfig:
    """Greedy decoding, up to slightly more tokens than the longest reference."""
    return GenerationConfig(
        max_new_tokens=longest + SPARE_TOKENS,
        do_sample=False,
        eos_token_id=mode.stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def make_evaluation(
    record_sets: dict[str, RecordSet],
    mode: Mode,
    tokenizer: Tokenizer,
    batches: Batches,
    *,
    evaluation: EvaluationOptions,
    data: DataOptions,
    steps: StepOptions,
) -> Evaluation:
    """The dev and the probe set, if given, and the generation of their answers.

    Args:
        record_sets: "" or "probe_" -> the records of --dev_path or --probe_path.
    """
    answered = [
        make_evaluation_set(prefix, records, mode, tokenizer, batches, evaluation=evaluation, data=data, steps=steps)
        for prefix, records in record_sets.items()
    ]
    longest = max((longest for _, longest in answered), default=0)
    return Evaluation(mode, tokenizer, [part for part, _ in answered], greedy(mode, tokenizer, longest))


def prepare_evaluator(
    engine: DeepSpeedEngine,
    evaluation: Evaluation,
    options: EvaluationOptions,
    output_dir: Path,
    *,
    batch_size: int,
    start_step: int,
    at: Callable[[str], None],
) -> Callable[[int, int], Verdict] | None:
    """evaluate(step, epoch) -> Verdict, see `make_evaluator`; None without sets.

    Args:
        at: called with the name of the next phase, equally often on every rank; if it raises, the evaluation ends.
    """
    if not evaluation.sets:
        return None
    mode, tokenizer = evaluation.mode, evaluation.tokenizer

    def answer_text(ids: list[int]) -> str:
        return mode.answer_text(tokenizer, ids)

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        return generate_answers(
            engine, prompts, pad_id=tokenizer.pad_token_id, generation_config=evaluation.generation_config,
            answer_text=answer_text, batch_size=batch_size, causal=mode.causal_prompt, at=at,
        )  # fmt: skip

    return make_evaluator(
        engine, evaluation.sets, output_dir, metric=options.eval_metric, generate=generate,
        patience=options.early_stopping_patience, start_step=start_step, at=at,
    )  # fmt: skip
