"""Records per second of tokenising: ours against the loop of 2023, one record after the other.

python benchmarks/tokenization.py --mode glm3 --records 20000 --repeats 3

Both read the same file (data/spo_0.json, repeated) and make the same ids and labels. Ours ends with arrays on disk that
all ranks and all later runs map; the loop ends with lists in the memory of one rank. Prints the median of the paired
ratios; JSON last.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.pairs import alternate, report  # noqa: E402
from data.tokenize import TokenizedDataset, tokenize_file  # noqa: E402
from modes import MODES  # noqa: E402

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"


def one_by_one(path: Path, mode: str, tokenizer, max_len: int, max_src_len: int) -> list[dict]:
    """Tokens as strings, then as ids, part by part, and Python lists."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        question = record["instruction"] + record.get("input", "")
        prompt = MODES[mode].template.replace("{instruction}{input}", question)
        source = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(prompt))[:max_src_len]
        answer = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(record["output"]))
        ids = (source + answer + [tokenizer.eos_token_id])[:max_len]
        rows.append({"input_ids": ids, "labels": ([-100] * len(source) + ids[len(source) :])[:max_len]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=list(MODES), default="glm3")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    mode = MODES[options.mode]
    tokenizer = mode.tokenizer_class.from_pretrained(GOLDEN / options.mode / "base")
    limits = {"max_len": 512, "max_src_len": 400}
    with tempfile.TemporaryDirectory() as directory:
        path, turns = Path(directory) / "records.jsonl", iter(range(10**6))
        lines = (REPOSITORY / "data" / "spo_0.json").read_text(encoding="utf-8").splitlines()
        many = (lines * (options.records // len(lines) + 1))[: options.records]
        path.write_text("\n".join(many) + "\n", encoding="utf-8")

        def ours() -> None:
            encode = partial(mode.encode_batch, tokenizer, **limits)
            directory_of_arrays = tokenize_file(path, encode, Path(directory) / "cache", key=str(next(turns)))
            assert len(TokenizedDataset(directory_of_arrays)) == options.records

        result = alternate(ours, lambda: one_by_one(path, options.mode, tokenizer, **limits), options.repeats)
    speeds = {name: round(options.records / min(result[name])) for name in ("ours", "other")}
    print(f"{options.mode}: ours {speeds['ours']:,} records/s, one by one {speeds['other']:,}; ratio {result['ratio']}")
    report({"benchmark": "tokenization", "mode": options.mode, "records": options.records, **result})


if __name__ == "__main__":
    main()
