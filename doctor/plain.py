"""A report on a file of records as JSON values, for the page."""

from collections.abc import Callable, Sequence
from typing import Any

from doctor.data import STATISTICS, DataReport, Part, Sample, describe, histogram, limits, parts_of, visible

NOTHING, FEW = STATISTICS.index("max"), STATISTICS.index("99%")  # truncated by the suggested limits
MOST_PARTS = 40  # of a sample


def as_plain(report: DataReport, token_texts: Callable[[list[int]], list[str]]) -> dict[str, Any]:
    """A report's numbers, histogram and samples.

    Args:
        token_texts: ids -> one string per token.
    """
    plain: dict[str, Any] = {
        "path": report.path,
        "records": report.tally.read,
        "formats": report.tally.formats,
        "ignored": list(report.tally.ignored),
        "problems": report.problems,
        "problem_count": report.problem_count,
    }
    if not len(report.row):
        return plain
    columns = {"prompt": report.prompt, "answer": report.answer, "row": report.row}
    return plain | {
        "rows": len(report.row),
        "truncated": int((report.prompt_cut | report.answer_cut).sum()),
        "empty": int(report.empty.sum()),
        "unsupervised": int((report.supervised == 0).sum()),
        "tokens": int(report.kept.sum()),
        "supervised": int(report.supervised.sum()),
        "statistics": {name: [round(number, 1) for number in describe(values)] for name, values in columns.items()},
        "histogram": histogram(report.row),
        "max_len": report.max_len,
        "limits": {"nothing": limits(report, NOTHING), "few": limits(report, FEW)},
        "samples": [plain_sample(sample, token_texts) for sample in report.samples],
    }


def plain_sample(sample: Sample, token_texts: Callable[[list[int]], list[str]]) -> dict[str, Any]:
    """A sample's line and its first parts; each token is (id, text)."""

    def tokens(ids: Sequence[int]) -> list[tuple[int, str]]:
        return [(number, visible(text)) for number, text in zip(ids, token_texts(list(ids)), strict=True)]

    def plain_part(part: Part) -> dict[str, Any]:
        return vars(part) | {"head": tokens(part.head), "tail": tokens(part.tail)}

    parts = parts_of(sample)
    return {
        "line": sample.line,
        "why": sample.why,
        "parts": [plain_part(part) for part in parts[:MOST_PARTS]],
        "more": max(len(parts) - MOST_PARTS, 0),
    }
