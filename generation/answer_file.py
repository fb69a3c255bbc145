"""The answers to a file of records: kept batch by batch, complete and in the order of the records in the end.

answers.jsonl.part    a header (what made the answers), then {"index": 3, "answer": "…"} for each record answered so far
answers.jsonl         appears when all records are answered; an earlier one stays until then

The same command finds the .part file and answers only what is missing.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from errors import UserError
from files import try_to_write, write_json_lines

ANSWER = "prediction"
OWN_ANSWER = "previous_prediction"  # where a record's own `prediction` goes


def part_path(output: Path) -> Path:
    """Where the answers are until all of them are there."""
    return output.with_name(f"{output.name}.part")


def output_problem(output: Path) -> str | None:
    """Why the answers cannot be written to a path, as a clause with what helps; None where they can.

    Tries it: permissions alone tell too little. Leaves nothing behind.
    """
    if os.path.isdir(output) or not os.path.isdir(output.parent):
        return "is not a file in an existing directory: choose another file"
    try:
        if output.exists() and not output.is_file():
            return "is not a regular file: choose another file"
        part_path(output).stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"cannot be written ({error.strerror}): choose another file"
    try:
        try_to_write(output.parent)
        if part_path(output).exists():
            part_path(output).open("a").close()
    except OSError as error:
        return f"cannot be written ({error.strerror}): choose another file"
    return None


def read_part(output: Path, header: dict) -> dict[int, str]:
    """index → answer of an earlier try with the same header; {} where there was none.

    Raises:
        UserError: what is there was made by another command, or is no file of answers.
    """
    path = part_path(output)
    if not path.exists():
        return {}
    try:
        first, *lines = path.read_bytes().split(b"\n")
        if not first:  # ended before the header was there
            return {}
        before = json.loads(first)
        differs = [key for key in header if before.get(key, header[key]) != header[key]]
        if before.keys() == header.keys() and not differs:
            # behind the last line end is what a kill cut off
            return {entry["index"]: entry["answer"] for entry in map(json.loads, lines[:-1])}
        if "model" not in before:
            raise ValueError("no header")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): move it away.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is no file of answers: move it away, or choose another --output_path.") from None
    raise UserError(
        f"{path} holds the answers of an unfinished command that differs in {', '.join(differs) or 'its flags'}: give "
        "that command again to finish it, remove the file, or choose another --output_path."
    )


@contextmanager
def kept_answers(
    output: Path, header: dict, answers: dict[int, str]
) -> Iterator[Callable[[Sequence[int], Sequence[str]], None]]:
    """A function (indices, answers) -> None that keeps a batch: what it got survives a kill of this process.

    Args:
        answers: of an earlier try; see `read_part`.

    Raises:
        UserError: the disk is full, or the directory is gone.
    """
    path = part_path(output)

    with explained(output):
        # what an earlier try kept, without the line that a kill cut off
        write_json_lines(path, [header, *entries(answers.items())])
        with path.open("a", encoding="utf-8") as file:

            def keep(indices: Sequence[int], texts: Sequence[str]) -> None:
                for entry in entries(zip(indices, texts, strict=True)):
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()

            yield keep


def finish(output: Path, records: list[dict], answers: dict[int, str]) -> None:
    """Write the objects of the file with their answers, whole or not at all; the .part file goes.

    Raises:
        UserError: the disk is full, or the directory is gone.
    """
    with explained(output):
        write_json_lines(output, (with_answer(record, answers[i]) for i, record in enumerate(records)))
        part_path(output).unlink(missing_ok=True)


def entries(answers: Iterable[tuple[int, str]]) -> Iterator[dict]:
    """The lines of a .part file behind its header."""
    for i, text in answers:
        yield {"index": i, "answer": text}


def with_answer(record: dict, answer: str) -> dict:
    """The object with the answer as "prediction"; one that it has already is kept as "previous_prediction" (_2, …)."""
    own, number = OWN_ANSWER, 2
    while own in record:
        own, number = f"{OWN_ANSWER}_{number}", number + 1
    return {**{own if key == ANSWER else key: value for key, value in record.items()}, ANSWER: answer}


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """Raise what the disk refuses as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output_path {output} cannot be written ({error.strerror}): free some space, then give the same command "
            "again, which continues from the answers kept so far."
        ) from error
