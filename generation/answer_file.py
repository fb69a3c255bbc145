"""The file of answers to a file of records: a .part file while batches are answered, then complete and in order.

answers.jsonl.part    a header (model and options), then {"index": 3, "answer": "…"} for each record answered so far
answers.jsonl         written when all records are answered; an earlier one stays until then

The same command resumes from the .part file and answers only the remaining records.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from errors import UserError
from files import try_to_write, write_json_lines

ANSWER = "prediction"
OWN_ANSWER = "previous_prediction"  # new key of a record's own `prediction`


def part_path(output: Path) -> Path:
    """The path of the unfinished file of answers."""
    return output.with_name(f"{output.name}.part")


def output_problem(output: Path) -> str | None:
    """Why the answers cannot be written to a path, as a clause with the remedy; None if they can.

    Tries to write, because permissions alone are not enough. Leaves no file behind.
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
    """index → answer of an interrupted command with the same header; {} if there is none.

    Raises:
        UserError: the file belongs to another command, or is not a file of answers.
    """
    path = part_path(output)
    if not path.exists():
        return {}
    try:
        first, *lines = path.read_bytes().split(b"\n")
        if not first:  # killed before the header was written
            return {}
        before = json.loads(first)
        differs = [key for key in header if before.get(key, header[key]) != header[key]]
        if before.keys() == header.keys() and not differs:
            # a kill may have truncated the last line
            return {entry["index"]: entry["answer"] for entry in map(json.loads, lines[:-1])}
        if "model" not in before:
            raise ValueError("no header")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): move it away.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a file of answers: move it away, or choose another --output_path.") from None
    raise UserError(
        f"{path} holds the answers of an unfinished command that differs in {', '.join(differs) or 'its flags'}: "
        "repeat that command to finish it, remove the file, or choose another --output_path."
    )


@contextmanager
def kept_answers(
    output: Path, header: dict, answers: dict[int, str]
) -> Iterator[Callable[[Sequence[int], Sequence[str]], None]]:
    """A function (indices, answers) -> None that writes a batch to the disk, so that it survives a kill.

    Args:
        answers: of an interrupted command; see `read_part`.

    Raises:
        UserError: the disk is full, or the directory is gone.
    """
    path = part_path(output)

    with explained(output):
        # the answers so far, without a truncated line
        write_json_lines(path, [header, *entries(answers.items())])
        with path.open("a", encoding="utf-8") as file:

            def keep(indices: Sequence[int], texts: Sequence[str]) -> None:
                for entry in entries(zip(indices, texts, strict=True)):
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()

            yield keep


def finish(output: Path, records: list[dict], answers: dict[int, str]) -> None:
    """Write the file's objects with their answers, atomically, and delete the .part file.

    Raises:
        UserError: the disk is full, or the directory is gone.
    """
    with explained(output):
        write_json_lines(output, (with_answer(record, answers[i]) for i, record in enumerate(records)))
        part_path(output).unlink(missing_ok=True)


def entries(answers: Iterable[tuple[int, str]]) -> Iterator[dict]:
    """The lines of a .part file after its header."""
    for i, text in answers:
        yield {"index": i, "answer": text}


def with_answer(record: dict, answer: str) -> dict:
    """The object with the answer as "prediction"; its own prediction becomes "previous_prediction" (_2, …)."""
    new_key, number = OWN_ANSWER, 2
    while new_key in record:
        new_key, number = f"{OWN_ANSWER}_{number}", number + 1
    return {**{new_key if key == ANSWER else key: value for key, value in record.items()}, ANSWER: answer}


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """Raise the disk's errors as UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output_path {output} cannot be written ({error.strerror}): free some space, then run the same command "
            "again, which continues from the answers so far."
        ) from error
