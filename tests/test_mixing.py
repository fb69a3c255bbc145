"""data/mixing.py: several files as one set, and a share of general records in it."""

import json

import numpy as np
import pytest

from conversation import as_read
from data.mixing import MixedDataset, mix
from data.tokenize import TokenizedDataset, tokenize_file


def encode_batch(records):
    """A row of as many 7s as the record says, of which the last one after a first token is supervised."""
    rows = []
    for record in records:
        number = as_read(record)["n"]
        ids = [1, *[7] * number, int(record["output"])]
        rows.append(
            {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:], "truncated": as_read(record)["n"] > 3}
        )
    return rows


@pytest.fixture
def make(tmp_path):
    def make_one(name, numbers):
        path = tmp_path / name
        lines = [json.dumps({"instruction": "a", "n": n, "output": str(100 + i)}) for i, n in enumerate(numbers)]
        path.write_text("\n".join(lines))
        return TokenizedDataset(tokenize_file(path, encode_batch, tmp_path / "cache", key=name), name)

    return make_one


def test_rows_of_several_files(make):
    first, second = make("a.json", [1, 2]), make("b.json", [3, 4, 5])
    both = MixedDataset([first, second])
    assert len(both) == 5 and both.lengths.tolist() == [3, 4, 5, 6, 7]
    assert [both.place(i) for i in range(5)] == ["a.json:1", "a.json:2", "b.json:1", "b.json:2", "b.json:3"]
    for i, (part, row) in enumerate([(first, 0), (first, 1), (second, 0), (second, 1), (second, 2)]):
        assert all((both[i][key] == part[row][key]).all() for key in ("input_ids", "labels"))
    kept = both.select((~both.truncated).nonzero()[0])
    assert [kept.place(i) for i in range(len(kept))] == ["a.json:1", "a.json:2", "b.json:1"]
    nested = MixedDataset([both, first])
    assert nested.place(4) == "b.json:3" and nested.place(5) == "a.json:1"


def test_replay_is_a_share_of_the_task_and_depends_on_the_seed_alone(make):
    task, general = make("task.json", [1] * 20), make("general.json", list(range(1, 11)))
    mixed = mix(task, general, 0.25, seed=1)
    places = [mixed.place(i) for i in range(20, len(mixed))]
    assert len(mixed) == 25 and len(set(places)) == 5 and all(place.startswith("general.json") for place in places)
    assert np.array_equal(mix(task, general, 0.25, seed=1).lengths, mixed.lengths)
    assert [mix(task, general, 0.25, seed=2).place(i) for i in range(20, 25)] != places
    twice = mix(task, general, 1.0, seed=1)  # more than there are: each comes twice
    assert sorted(twice.place(i) for i in range(20, 40)) == sorted(2 * [general.place(i) for i in range(10)])
    assert len(mix(task, general, 0.001, seed=1)) == 21
