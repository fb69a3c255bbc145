"""Score extracted triples: exact matches between the "prediction" and the "output" of every record.

    python scripts/score.py output/predictions.jsonl

Prints one JSON object. Precision, recall and F1 are micro averages over all triples of all records; a record's triples
are the set of its lines, so neither order nor repetition counts. `exact_records` is the share of records whose set is
right as a whole.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.records import read_records  # noqa: E402
from errors import UserError, run  # noqa: E402


def triples(text: str) -> set[str]:
    """The lines of an answer, without blank ones and without space around them."""
    return {line.strip() for line in text.splitlines() if line.strip()}


def score(pairs: list[tuple[str, str]]) -> dict:
    """Micro precision, recall and F1 of (prediction, output) pairs; 0 where a division has nothing to divide."""
    right = found = wanted = exact = 0
    for prediction, output in pairs:
        predicted, expected = triples(prediction), triples(output)
        right += len(predicted & expected)
        found += len(predicted)
        wanted += len(expected)
        exact += predicted == expected
    return {
        "records": len(pairs),
        "precision": round(right / max(found, 1), 4),
        "recall": round(right / max(wanted, 1), 4),
        "f1": round(2 * right / max(found + wanted, 1), 4),
        "exact_records": round(exact / max(len(pairs), 1), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "predictions", help="what predict.py --output_path wrote: records with a prediction, one a line"
    )
    path = parser.parse_args().predictions
    pairs = []
    for line, record in read_records(path):
        if type(record.get("prediction")) is not str:
            raise UserError(f'{path}:{line}: no text under "prediction"; make the file with predict.py --output_path.')
        pairs.append((record["prediction"], record["output"]))
    print(json.dumps(score(pairs)))


if __name__ == "__main__":
    run(main)
