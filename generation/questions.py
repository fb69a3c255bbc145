"""The records that predict.py answers, and the scores of its answers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from conversation import as_read, expected, unsuited
from data.formats import Columns
from data.records import read_records
from data.tally import Tally
from errors import UserError
from generation.answer_file import output_problem, part_path
from modes import MODES
from modes.mode import Mode
from options.predict import QuestionOptions
from scores import score_by_task


def check_output_path(questions: QuestionOptions) -> list[str]:
    """One sentence if the answers cannot be written, or would replace the questions."""
    if questions.output_path is None:
        return []
    output = Path(questions.output_path)
    problem = output_problem(output)
    if problem:
        return [f"--output_path {output} {problem}."]
    if questions.test_path is not None:
        read = os.path.realpath(questions.test_path)
        if read in (os.path.realpath(output), os.path.realpath(part_path(output))):
            return [f"--output_path {output} is the test file itself: choose another file."]
    return []


def check_roles(path: str, records: Sequence[dict], mode: Mode) -> None:
    """Raise UserError for a record that the model's generation cannot represent."""
    for number, record in enumerate(records, 1):
        clause = unsuited(record, mode.roles)
        if clause:
            able = " and ".join(other.title for other in MODES.values() if not unsuited(record, other.roles))
            raise UserError(
                f"{path}: record {number} has {clause}, which only {able} supports: use such a model, or drop it."
            )


def read_questions(questions: QuestionOptions, trained: dict) -> list[dict]:
    """The records of --test_path, or the one of --instruction.

    Args:
        trained: flags of the run that trained the model; {} if they are unknown.

    Raises:
        UserError: a record cannot be answered, or with --metrics one has no answer.
    """
    prefix = trained.get("source_prefix", "") if questions.source_prefix is None else questions.source_prefix
    path = questions.test_path
    if path is None:
        return [{"instruction": prefix + (questions.instruction or ""), "input": questions.input}]
    tally = Tally()

    def read(prefix: str) -> list[dict]:
        columns = Columns(
            prompt=questions.prompt_column or trained.get("prompt_column"),
            response=questions.response_column or trained.get("response_column"),
            history=questions.history_column or trained.get("history_column"),
            prefix=prefix,
        )
        numbered = read_records(path, require_output=bool(questions.metrics), columns=columns, tally=tally)
        return [record for _, record in numbered]

    records = read(prefix)
    assert tally.read == len(records), "every record that is read is asked"
    print(f"{path}: {tally.read:,} records; {tally.describe()}")
    if questions.prompt_text is not None:  # as in 2023: records with an instruction keep it
        prompted = read(prefix + questions.prompt_text)
        records = [a if as_read(a).get("instruction") else b for a, b in zip(records, prompted, strict=True)]
    return records


def describe_scores(questions: QuestionOptions, mode: Mode, records: Sequence[dict], answers: Sequence[str]) -> str:
    """The scores of --metrics as JSON; with --task_key for each task, too."""
    tasks = [str(as_read(record).get(questions.task_key, "")) for record in records] if questions.task_key else []
    references = [expected(mode.written(record)) for record in records]
    figures: dict[str, float] = {}
    for name in questions.metrics:
        figures |= score_by_task(name, answers, references, tasks)
    return json.dumps({name: round(value, 4) for name, value in figures.items()})
