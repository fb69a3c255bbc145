"""data/collate.py: whole tensors."""

import numpy as np
import torch

from data.collate import collate

SAMPLES = [
    {"input_ids": np.array([11, 12, 13]), "labels": np.array([-100, 12, 13])},
    {"input_ids": [21, 22, 23, 24, 25], "labels": [-100, -100, -100, 24, 25]},
]


def check(batch, input_ids, labels):
    assert set(batch) == {"input_ids", "labels"}
    torch.testing.assert_close(batch["input_ids"], torch.tensor(input_ids), rtol=0, atol=0)
    torch.testing.assert_close(batch["labels"], torch.tensor(labels), rtol=0, atol=0)


def test_pads_right_to_the_longest():
    check(
        collate(SAMPLES, pad_id=3, multiple=1),
        [[11, 12, 13, 3, 3], [21, 22, 23, 24, 25]],
        [[-100, 12, 13, -100, -100], [-100, -100, -100, 24, 25]],
    )


def test_pads_to_a_multiple_of_eight():
    check(
        collate(SAMPLES, pad_id=0),
        [[11, 12, 13, 0, 0, 0, 0, 0], [21, 22, 23, 24, 25, 0, 0, 0]],
        [[-100, 12, 13, -100, -100, -100, -100, -100], [-100, -100, -100, 24, 25, -100, -100, -100]],
    )


def test_a_row_that_fills_the_multiple_is_not_widened():
    row = {"input_ids": list(range(8)), "labels": list(range(8))}
    check(collate([row], pad_id=9), [list(range(8))], [list(range(8))])


def test_pad_id_inside_a_row_keeps_its_label():
    row = {"input_ids": [5, 2], "labels": [5, 2]}
    check(collate([row], pad_id=2, multiple=4), [[5, 2, 2, 2]], [[5, 2, -100, -100]])
