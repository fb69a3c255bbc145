"""Answers per second of predict.py: batches of like length against one record after the other.

python benchmarks/prediction.py --mode glm3 --records 64 --batch_size 16 --repeats 3

A random base of the asked shape answers the first records of data/spo_1.json, always with as many tokens, once as
predict.py does it and once as a loop over `chat` would: one record at a time, in the order of the file. Prints the
median of the paired ratios; JSON last.
"""

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from transformers import GenerationConfig  # noqa: E402

from benchmarks.pairs import alternate, report  # noqa: E402
from benchmarks.real_size import make_base  # noqa: E402
from data.records import read_records  # noqa: E402
from modes import MODES  # noqa: E402
from predict import answer, answer_all, load_answerer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=list(MODES), default="glm3")
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        make_base(base, options.mode, options.num_layers, options.hidden_size, 8192)
        answerer = load_answerer(base)
    generation = GenerationConfig(
        min_new_tokens=options.new_tokens,
        max_new_tokens=options.new_tokens,
        do_sample=False,
        eos_token_id=answerer.mode.stop_ids(answerer.tokenizer),
        pad_token_id=answerer.tokenizer.pad_token_id,
    )
    records = [record for _, record in islice(read_records(REPOSITORY / "data" / "spo_1.json"), options.records)]

    def one_by_one() -> list[str]:
        return [answer(answerer, [answerer.prompt_ids(record)], generation)[0] for record in records]

    def in_batches() -> dict[int, str]:
        return dict(answer_all(answerer, records, generation, options.batch_size))

    result = alternate(in_batches, one_by_one, options.repeats)
    speeds = {name: round(options.records / min(result[name]), 1) for name in ("ours", "other")}
    print(f"{options.mode}: ours {speeds['ours']} records/s, one by one {speeds['other']}; ratio {result['ratio']}")
    report({"benchmark": "prediction", **vars(options), **result})


if __name__ == "__main__":
    main()
