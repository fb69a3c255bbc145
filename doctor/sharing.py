"""Count the tokens that --share_prompts saves: prompt prefixes shared by samples of a micro-batch."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from data.collate import group_by_prompt
from data.dataset import Sample
from data.loading import Step
from errors import UserError

LOOKED_AT = 256  # micro-batches, which limits the time for a large file


def some_micro_batches(plan: list[Step]) -> tuple[list[list[int]], int]:
    """(samples of at most LOOKED_AT micro-batches of an epoch, number of micro-batches), of several samples each."""
    every = [samples for step in plan for samples in step.micro_batches if len(samples) > 1]
    if len(every) <= LOOKED_AT:
        return every, len(every)
    chosen = np.random.default_rng(0).choice(len(every), LOOKED_AT, replace=False)
    return [every[i] for i in chosen], len(every)


def read_rows(files: Sequence[tuple[Iterable, np.ndarray]], wanted: set[int], encode: Callable) -> dict[int, Sample]:
    """Rows by number; reads the files again and encodes only these rows.

    Args:
        files: (iterator of (line, record or UserError), bool [valid records], which of them are trained on).
        encode: records -> dicts of "input_ids" and "labels".
    """
    rows: dict[int, Sample] = {}
    before = 0
    for scanned, stays in files:
        good = (record for _, record in scanned if not isinstance(record, UserError))
        numbers = before + np.cumsum(stays) - 1
        chosen = {
            int(number): record
            for number, stay, record in zip(numbers, stays, good, strict=True)
            if stay and int(number) in wanted
        }
        for number, row in zip(chosen, encode(list(chosen.values())), strict=True):
            rows[number] = {"input_ids": np.asarray(row["input_ids"]), "labels": np.asarray(row["labels"])}
        before += int(stays.sum())
    return rows


def describe_sharing(
    files: Sequence[tuple[Iterable, np.ndarray]], plan: list[Step], encode: Callable, numbers: np.ndarray
) -> str:
    """A line about an epoch's micro-batches; empty if each has one sample.

    Args:
        files, encode: of `read_rows`. numbers: of the plan's samples, among the rows of `files`.
    """
    micro_batches, count = some_micro_batches(plan)
    if not micro_batches:
        return ""
    rows = read_rows(files, {int(numbers[i]) for samples in micro_batches for i in samples}, encode)
    tokens = saved = 0
    for samples in micro_batches:
        batch = [rows[int(numbers[i])] for i in samples]
        tokens += sum(len(row["input_ids"]) for row in batch)
        saved += sum((len(members) - 1) * shared for members, shared in group_by_prompt(batch))
    sampled = "" if len(micro_batches) == count else f" (in {len(micro_batches):,} of {count:,} micro-batches)"
    return (
        f"--share_prompts: {saved:,} of {tokens:,} tokens ({saved / tokens:.1%}) are saved, because another sample "
        f"of the micro-batch starts with them{sampled}"
    )
