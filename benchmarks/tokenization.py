"""Records per second of tokenization: ours against the loop of 2023, one record at a time.

python benchmarks/tokenization.py --output benchmarks/results/tokenization.json

Both read the same file (data/spo_0.json, repeated) and make the same ids and labels, which is checked first. Ours is
the way of train.py: read, check, encode, and arrays on disk that all ranks and all later runs map. The loop of 2023
(benchmarks/tokenizers_of_2023.py) ends with lists in the memory of the process, and each rank and each run repeats it.

A line for each generation: both, the median of the paired ratios in seconds and in processor time, and ours when it
has been done before. Below it what ours is made of: JSON alone and sentencepiece alone, on one core. JSON last.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, modes_flag, output_flag, repeats_flag, size_flag  # noqa: E402
from benchmarks.runs import GOLDEN  # noqa: E402
from errors import run_program  # noqa: E402
from modes import GENERATIONS, MODES  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class TokenizationOptions:
    """What is tokenized, and how often."""

    TITLE: ClassVar[str] = "tokenization"

    modes: tuple[str, ...] = modes_flag(*GENERATIONS)
    records: int = size_flag(20_000, "Number of records.", "记录数。")
    repeats: int = repeats_flag(5)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, TokenizationOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

from benchmarks.pairs import alternate, report, seconds  # noqa: E402
from benchmarks.tokenizers_of_2023 import TOKENIZERS, read_one_by_one  # noqa: E402
from data.formats import Columns  # noqa: E402
from data.sources import Source, read_rows  # noqa: E402
from data.tally import Tally  # noqa: E402
from data.tokenize import CHUNK, TokenizedDataset, tokenize_file  # noqa: E402

LIMITS = {"max_len": 512, "max_src_len": 400}


def check_equal(dataset: TokenizedDataset, rows: list[dict]) -> None:
    """Exit unless both sides made the same."""
    if len(dataset) != len(rows):
        sys.exit(f"{len(dataset)} rows and {len(rows)} of 2023")
    for i, row in enumerate(rows):
        ours = dataset[i]
        if any(ours[name].tolist() != row[name] for name in ("input_ids", "labels")):
            sys.exit(f"row {i} is not the same")


def measure(mode_name: str, path: Path, directory: Path, num_records: int, repeats: int) -> dict:
    """One generation: both sides in alternation, the second run, and the parts of ours."""
    mode, base = MODES[mode_name], GOLDEN / mode_name / "base"
    tokenizer = mode.tokenizer_class.from_pretrained(base)
    theirs = TOKENIZERS[mode_name](base / tokenizer.vocab_files_names["vocab_file"])
    encode = partial(mode.encode_arrays, tokenizer, **LIMITS)
    turns = iter(range(10**6))

    def read(file: Path, tally: Tally | None = None) -> Iterator[tuple[int, dict]]:
        return read_rows(Source(str(file), Columns()), roles=mode.roles, apart=False, tally=tally)

    def ours(kept: bool = False) -> TokenizedDataset:
        key = "kept" if kept else str(next(turns))
        return TokenizedDataset(tokenize_file(path, encode, directory / mode_name, key=key, read=read))

    one_by_one = partial(read_one_by_one, path, mode_name, theirs, **LIMITS)
    check_equal(ours(kept=True), one_by_one())
    result = alternate(ours, one_by_one, repeats)
    again = statistics.median(seconds(lambda: ours(kept=True))[0] for _ in range(repeats))

    records = [record for _, record in read(path)]
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [text for r in records for text in (r["instruction"] + r["input"], r["output"])]
    parts = {
        "hash_seconds": lambda: ours(kept=True),
        "json_seconds": lambda: [json.loads(line) for line in lines],
        "read_and_check_seconds": lambda: list(read(path)),
        "sentencepiece_seconds": lambda: sentences(tokenizer, texts),
        "encode_seconds": lambda: [encode(records[at : at + CHUNK]) for at in range(0, len(records), CHUNK)],
    }
    parts = {name: round(min(seconds(work)[1] for _ in range(repeats)), 4) for name, work in parts.items()}
    speeds = {name: round(num_records / statistics.median(result[name])) for name in ("ours", "other")}
    return {
        "mode": mode_name,
        "tokens": int(ours(kept=True).lengths.sum()),
        "records_per_second": {**speeds, "again": round(num_records / again)},
        **result,
        "again": round(again, 4),
        "ratio_again": round(statistics.median(result["other"]) / again, 1),
        "cpu_of_parts": parts,
    }


def sentences(tokenizer, texts: list[str]) -> None:
    """sentencepiece alone on one core, in portions as large as ours."""
    for at in range(0, len(texts), 2 * CHUNK):
        tokenizer.sp_model.encode(texts[at : at + 2 * CHUNK], out_type="numpy", num_threads=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every generation, print a line for each, and report the result."""
    options = section(TokenizationOptions, read_command_line(PROGRAM, argv))
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "records.jsonl"
        lines = (REPOSITORY / "data" / "spo_0.json").read_text(encoding="utf-8").splitlines()
        many = (lines * (options.records // len(lines) + 1))[: options.records]
        path.write_text("\n".join(many) + "\n", encoding="utf-8")
        for mode in options.modes:
            row = measure(mode, path, Path(directory) / "cache", options.records, options.repeats)
            speeds, parts = row["records_per_second"], row["cpu_of_parts"]
            print(
                f"{mode}: ours {speeds['ours']:,} records/s, of 2023 {speeds['other']:,}: {row['ratio']} times as fast "
                f"({row['ratio_cpu']} in processor time); again {speeds['again']:,}, {row['ratio_again']} times"
            )
            shown = ", ".join(f"{name[:-8]} {1e6 * value / options.records:.1f}" for name, value in parts.items())
            cpu = {side: 1e6 * statistics.median(row[f"{side}_cpu"]) / options.records for side in ("ours", "other")}
            print(f"  microseconds of a core a record: ours {cpu['ours']:.1f} ({shown}); 2023 {cpu['other']:.1f}")
            rows.append(row)
    report({"benchmark": "tokenization", "records": options.records, **LIMITS, "results": rows}, options.output)


if __name__ == "__main__":
    run_program(main)
