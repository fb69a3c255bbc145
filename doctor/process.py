"""`python -m doctor.process`: examines runs for the page, in a process of its own, because it loads torch.

It reads a request per line of standard input and writes its answer, both JSON, until the input ends or nothing comes.
A problem is (flag, sentence); the flag is "" where the sentence names it.
    {"argv": flags of train.py, "ranks": 1}                  -> {"problems", "notes", "plan", "memory", "bounded"}
    {"argv": …, "ranks": 1, "preview": true}                 -> {"problems", "files", "bounded"}
"""

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local
import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # as in train.py

from doctor.dry_run import (
    Examined,
    Machine,
    estimate_memory,
    examine_files,
    plan_steps,
    rows_of_epoch,
    sources_of,
    stop_at_problems,
)
from doctor.plain import as_plain
from errors import UserError
from modes.directory import read_base
from options.config_file import flat
from options.train import TrainOptions, parse_train
from training.check import check, collected
from training.command import Command
from training.datasets import Encoder
from training.places import record_files

IDLE_SECONDS = 300
MOST_ROWS = 10_000  # of a file


class Reader:
    """Reads the first rows of a run's files; keeps the last ones, because most requests change other flags."""

    def __init__(self) -> None:
        self._key: list[object] = []
        self._examined: list[Examined] = []

    def examine(self, options: TrainOptions, encoder: Encoder) -> list[Examined]:
        """The reports on all files.

        Raises:
            UserError: a file cannot be read.
        """
        places = [*(Path(source.path) for _, source in sources_of(options)), encoder.base.vocabulary]
        states = [(str(place), place.stat().st_mtime_ns, place.stat().st_size) for place in places if place.exists()]
        key = [flat([options.columns, options.data]), record_files(options), encoder.base.mode, states]
        if key != self._key:
            self._key, self._examined = [], list(examine_files(options, encoder, MOST_ROWS))
            self._key = key
        return self._examined


def check_run(argv: list[str], reader: Reader) -> dict[str, Any]:
    """All problems of a run; its steps and its memory if it has none that prevents them."""
    try:
        command = check(*parse_train(argv))
        encoder = Encoder(command.base, command.options.data, command.options.columns)
        examined = reader.examine(command.options, encoder)
    except UserError as error:
        return {"problems": [("", sentence) for sentence in error.sentences]}
    answer: dict[str, Any] = {"notes": list(command.notes), "bounded": bound(examined)}
    problems = []
    for file in examined:
        sentences: list[str] = []
        with collected(sentences):
            stop_at_problems([file.report])
        problems += [(file.flag, sentence) for sentence in sentences]
    sentences = []
    with collected(sentences):
        answer |= describe_run(command, examined)
    return answer | {"problems": problems + [("train_path", sentence) for sentence in sentences]}


def describe_run(command: Command, examined: list[Examined]) -> dict[str, Any]:
    """Steps and memory.

    Raises:
        UserError: --is_skip leaves nothing to train on.
    """
    _, lengths, supervised = rows_of_epoch(command.options, examined)
    if not len(lengths):
        return {}
    machine = Machine.of(command)
    report = estimate_memory(command, machine, lengths, supervised)
    found = report.suggestion
    memory = {
        "lines": [line for line, _ in report.lines],
        "fits": found.fits if found else None,
        "flags": found.flags().split() if found else [],
    }
    return {"plan": plan_steps(command.options, machine, lengths, supervised)[1], "memory": memory}


def preview(argv: list[str], reader: Reader) -> dict[str, Any]:
    """The reports on the files of a run, whose other flags may be wrong."""
    try:
        options, _ = parse_train(argv)
        base = read_base(options.model.model_name_or_path, options.model.mode)
        encoder = Encoder(base, options.data, options.columns)
        examined = reader.examine(options, encoder)
    except UserError as error:
        return {"problems": [("", sentence) for sentence in error.sentences], "files": []}
    token_texts = encoder.tokenizer.convert_ids_to_tokens
    files = [as_plain(file.report, token_texts) | {"flag": file.flag} for file in examined]
    return {"problems": [], "files": files, "bounded": bound(examined)}


def bound(examined: list[Examined]) -> int:
    """The number of rows of a file after which reading ended; 0 if all were read."""
    return MOST_ROWS * any(len(file.report.row) + file.report.problem_count >= MOST_ROWS for file in examined)


def main() -> None:
    """Answer requests."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    os.nice(5)  # runs on this machine come first
    reader = Reader()
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:  # one request at a time: none waits in the buffer
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)
        os.environ |= {"WORLD_SIZE": str(request["ranks"]), "LOCAL_WORLD_SIZE": str(request["ranks"])}
        answer = (preview if request.get("preview") else check_run)(request["argv"], reader)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
