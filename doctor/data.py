"""Report on a file of records before training: all errors, lengths, truncation and three samples.

    report = examine(path, scan, encode_batch, max_len=1560, max_src_len=1024)
    show(report, console, token_texts)

`scan` is data/sources.py's scan_rows for one file, `encode_batch` a mode's with its tokenizer bound, `token_texts` maps
ids to strings. The prompt is everything before the first supervised token.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, islice

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.tally import Tally
from data.tokenize import numbered_rows
from errors import UserError
from texts import counted

IGNORED = -100  # the label of a token that is not supervised
NO_LIMIT = 2**40  # tokens
CHUNK = 4096  # records encoded at a time
MARGIN = 8  # spare tokens of a suggested --max_len
SHOWN_PROBLEMS = 20
BINS, BAR_WIDTH = 16, 50  # of the histogram: lines, characters
SHOWN_TOKENS = 160  # per part of a sample: longer ones are shown without their middle
STATISTICS = ("min", "median", "mean", "90%", "99%", "max")


@dataclass(frozen=True)
class Sample:
    """A training row: ids, and the number of truncated tokens.

    runs: lengths of the alternating runs of unsupervised and supervised ids.
    """

    line: int
    why: str
    ids: list[int]
    runs: tuple[int, ...]
    prompt_cut: int
    answer_cut: int

    @property
    def prompt(self) -> int:
        """Number of unsupervised ids."""
        return sum(self.runs[::2])


@dataclass(frozen=True)
class Part:
    """A run of a sample's tokens to show: its first ids, the number of ids left out, and its last ids.

    cut: number of tokens that were truncated there.
    """

    supervised: bool
    length: int
    head: list[int]
    gap: int
    tail: list[int]
    cut: int


def no_numbers() -> np.ndarray:
    """int64 [0]."""
    return np.zeros(0, np.int64)


def no_flags() -> np.ndarray:
    """bool [0]."""
    return np.zeros(0, bool)


@dataclass
class DataReport:
    """The report of `examine`.

    problems: the first errors, each with file:line; problem_count: of all.
    prompt, answer, row: tokens of each good record without limits, int64 [n]; kept: tokens of its row as trained;
    supervised: supervised tokens of the row. front: tokens before the last answer without limits, to which
    --max_src_len applies; in a conversation they include earlier answers. prompt_cut, answer_cut, empty (an answer):
    bool [n].
    objects: int64 [n], the number in the file of each row's object. tally: counts of all objects.
    """

    path: str
    max_len: int
    max_src_len: int
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    prompt: np.ndarray = field(default_factory=no_numbers)
    answer: np.ndarray = field(default_factory=no_numbers)
    row: np.ndarray = field(default_factory=no_numbers)
    kept: np.ndarray = field(default_factory=no_numbers)
    supervised: np.ndarray = field(default_factory=no_numbers)
    front: np.ndarray = field(default_factory=no_numbers)
    prompt_cut: np.ndarray = field(default_factory=no_flags)
    answer_cut: np.ndarray = field(default_factory=no_flags)
    empty: np.ndarray = field(default_factory=no_flags)
    objects: np.ndarray = field(default_factory=no_numbers)
    samples: list[Sample] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def examine(
    path: str, scan: Callable, encode_batch: Callable, *, max_len: int, max_src_len: int, shown: int = SHOWN_PROBLEMS,
    every_answer: bool = False,
) -> DataReport:  # fmt: skip
    """Read and encode a whole file, including lines after errors; only a few numbers per record stay in memory.

    Args:
        scan: (path, tally=Tally) -> iterator of (line, record or UserError).
        encode_batch: (records, max_len=, max_src_len=) -> dicts of "input_ids", "labels" (-100: not supervised).
        shown: number of problems to keep.
        every_answer: whether all answers of a conversation are supervised, so that any empty one counts.

    Raises:
        UserError: the file cannot be read, or the limits leave no space for an answer.
    """
    report = DataReport(str(path), max_len, max_src_len)
    columns: list[np.ndarray] = []
    first: list[Sample] = []  # candidates for the samples to show
    longest: list[tuple[int, int, Sample]] = []
    cut: list[Sample] = []
    good = numbered_rows(_without_problems(scan(path, tally=report.tally), report, shown), report.tally, every_answer)
    while chunk := list(islice(good, CHUNK)):
        records = [record for *_, record in chunk]
        whole = encode_batch(records, max_len=NO_LIMIT, max_src_len=NO_LIMIT)
        trained = encode_batch(records, max_len=max_len, max_src_len=max_src_len)
        numbers = np.array([_measure(a, b) for a, b in zip(whole, trained, strict=True)], np.int64)
        columns.append(np.column_stack([numbers, [(number, is_empty) for _, number, is_empty, _ in chunk]]))
        for (line, *_), row, measured in zip(chunk, trained, numbers.tolist(), strict=True):
            prompt, answer, _, _, kept_prompt, kept_answer, _ = measured
            length = prompt + answer
            if first and len(longest) == 1 and length <= longest[0][0] and cut:
                continue
            cuts = (prompt - kept_prompt, answer - kept_answer)
            sample = Sample(line, "", row["input_ids"], runs_of(row["labels"]), *cuts)
            if not first:
                first.append(sample)
            heapq.heappush(longest, (length, -line, sample))
            if len(longest) > 1:
                heapq.heappop(longest)
            if not cut and (sample.prompt_cut or sample.answer_cut):
                cut.append(sample)
    if columns:
        prompt, answer, kept, supervised, kept_prompt, kept_answer, front, objects, empty = np.concatenate(columns).T
        report.prompt, report.answer, report.row = prompt, answer, prompt + answer
        report.kept, report.supervised, report.front = kept, supervised, front
        report.prompt_cut, report.answer_cut = kept_prompt < prompt, kept_answer < answer
        report.objects, report.empty = objects, empty.astype(bool)
        report.samples = _choose(first, cut, longest)
    return report


def _without_problems(scanned: Iterable, report: DataReport, shown: int) -> Iterator[tuple[int, dict]]:
    for line, record in scanned:
        if isinstance(record, UserError):
            report.problem_count += 1
            if len(report.problems) < shown:
                report.problems.append(str(record))
        else:
            yield line, record


def _measure(whole: dict, trained: dict) -> tuple[int, ...]:
    """(prompt, answer) without limits, (row, supervised, prompt, answer) with them, front without limits."""
    prompt, answer = _parts(whole)
    kept_prompt, kept_answer = _parts(trained)
    in_loss = sum(label != IGNORED for label in trained["labels"][1:])  # no token predicts a first token
    front = prompt + answer - runs_of(whole["labels"])[-1]
    return prompt, answer, len(trained["input_ids"]), in_loss, kept_prompt, kept_answer, front


def runs_of(labels: list[int]) -> tuple[int, ...]:
    """Lengths of the alternating runs of labels with and without -100."""
    runs = [len(list(run)) for _, run in groupby(label == IGNORED for label in labels)]
    return tuple(runs if labels[0] == IGNORED else [0, *runs])


def _parts(row: dict) -> tuple[int, int]:
    supervised = sum(label != IGNORED for label in row["labels"])
    return len(row["labels"]) - supervised, supervised


def _choose(first: list[Sample], cut: list[Sample], longest: list[tuple[int, int, Sample]]) -> list[Sample]:
    """The first record, the first truncated one and the longest one, without repetition."""
    chosen: dict[int, Sample] = {}
    named = [*(("first", sample) for sample in first), *(("first truncated", sample) for sample in cut)]
    for why, sample in [*named, ("longest", longest[0][2])]:
        if sample.line in chosen:
            why = f"{chosen[sample.line].why}, {why}"
        chosen[sample.line] = replace(sample, why=why)
    return list(chosen.values())


def describe(values: np.ndarray) -> list[float]:
    """min, median, mean, 90%, 99%, max; a percentile is the smallest value that this many do not exceed."""
    quantiles = np.quantile(values, [0.5, 0.9, 0.99], method="inverted_cdf").tolist()
    return [int(values.min()), quantiles[0], float(values.mean()), quantiles[1], quantiles[2], int(values.max())]


def histogram(values: np.ndarray, bins: int = BINS) -> list[tuple[int, int, int]]:
    """(from, to, count) of ranges of equal width, both ends included, that cover all values."""
    low, high = int(values.min()), int(values.max())
    width = max(-(-(high - low + 1) // bins), 1)
    counts = np.bincount((values - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]


def show(report: DataReport, console: Console, token_texts: Callable[[list[int]], list[str]]) -> None:
    """Print a report.

    Args:
        token_texts: ids -> one string per token.
    """
    count = len(report.row)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)  # brackets are not markup

    say(f"{report.path}: {counted(report.tally.read, 'record')}, {report.problem_count:,} of them with a problem",
        "bold red" if report.problem_count else "bold")  # fmt: skip
    for problem in report.problems:
        say(f"  {problem}", "red")
    if report.problem_count > len(report.problems):
        say(f"  … and {report.problem_count - len(report.problems):,} more", "red")
    if not count:
        return

    table = Table(title="tokens before truncation", title_justify="left")
    for name in ("", *STATISTICS):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, values in (("prompt", report.prompt), ("answer", report.answer), ("row", report.row)):
        table.add_row(name, *(f"{value:,.0f}" for value in describe(values)))
    console.print(table)

    say("rows by length")
    ranges = histogram(report.row)
    largest_count, digits = max(n for _, _, n in ranges), len(f"{ranges[-1][1]:,}")
    for low, high, number in ranges:
        bar = "█" * round(BAR_WIDTH * number / largest_count) or ("▏" if number else "")
        over = " over --max_len" if low > report.max_len and number else ""
        say(f"  {low:>{digits},}–{high:<{digits},} {bar} {number:,}{over}", "red" if over else "")

    num_truncated = int((report.prompt_cut | report.answer_cut).sum())
    say(
        f"--max_src_len {report.max_src_len} and --max_len {report.max_len} truncate {num_truncated:,} of "
        f"{counted(count, 'sample')} ({num_truncated / count:.1%}): {counted(int(report.prompt_cut.sum()), 'prompt')}, "
        f"{counted(int(report.answer_cut.sum()), 'answer')}",
        "yellow" if num_truncated else "",
    )
    say(suggestion(report))
    tokens, supervised = int(report.kept.sum()), int(report.supervised.sum())
    say(f"rows: {counted(tokens, 'token')}, {supervised:,} of them supervised ({supervised / tokens:.1%})")
    num_unsupervised, num_empty = int((report.supervised == 0).sum()), int(report.empty.sum())
    if num_unsupervised:
        say(f"{counted(num_unsupervised, 'sample')} without a supervised token", "yellow")
    if num_empty:
        say(f"{counted(num_empty, 'sample')} with an empty answer (dropped by --is_skip)", "yellow")
    for sample in report.samples:
        console.print(color(sample, report.path, token_texts), soft_wrap=True)


def limits(report: DataReport, statistic: int) -> dict[str, int]:
    """Limits that truncate nothing (STATISTICS[5]), or about 1% of the samples (4)."""
    front, row = describe(report.front)[statistic], describe(report.row)[statistic]
    return {"max_src_len": int(front), "max_len": int(row) + MARGIN}


def suggestion(report: DataReport) -> str:
    """Limits for these records: those that truncate nothing, and those that truncate 1%."""
    without_truncation, for_most = (
        " ".join(f"--{name} {number}" for name, number in limits(report, i).items()) for i in (5, 4)
    )
    return f"limits that truncate nothing: {without_truncation}; about 1% of the samples: {for_most}"


def parts_of(sample: Sample) -> list[Part]:
    """A sample's runs, of which the longer ones lack their middle; truncation is noted in the last run of its kind."""
    ends = [0, *accumulate(sample.runs)]
    last = {False: (len(sample.runs) - 1) // 2 * 2, True: (len(sample.runs) - 2) // 2 * 2 + 1}
    half = SHOWN_TOKENS // 2
    parts = []
    for i, length in enumerate(sample.runs):
        supervised, ids = bool(i % 2), sample.ids[ends[i] : ends[i + 1]]
        cut = (sample.answer_cut if supervised else sample.prompt_cut) if i == last[supervised] else 0
        gap = max(length - SHOWN_TOKENS, 0)
        head, tail = (ids[:half], ids[-half:]) if gap else (ids, [])
        parts.append(Part(supervised, length, head, gap, tail, cut))
    return parts


def color(sample: Sample, path: str, token_texts: Callable[[list[int]], list[str]]) -> Text:
    """A sample token by token: the prompt blue, supervised tokens green, a red mark at truncated places."""
    text = Text()
    text.append(f"{path}:{sample.line} ({sample.why})\n", "bold")
    for part in parts_of(sample):
        name, style = ("supervised", "green") if part.supervised else ("prompt", "blue")
        text.append(f"  {name} ({counted(part.length, 'token')}): ")
        for number, piece in enumerate(token_texts(part.head) + token_texts(part.tail)):
            if part.gap and number == len(part.head):
                text.append(f" … {part.gap:,} tokens … ", "dim")
            elif number:
                text.append("·", "dim")
            text.append(visible(piece), style)
        if part.cut:
            text.append(f" ✂ {counted(part.cut, 'token')} truncated", "bold red")
        text.append("\n")
    return text


def visible(piece: str) -> str:
    """A token's text in one line: sentencepiece's space as a space, other white space and controls as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece.replace("▁", " "))
