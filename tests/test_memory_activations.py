"""memory/activations.py: the masks counted are those that the models make."""

from functools import partial

import numpy as np

from benchmarks.memory import SHAPES
from data.collate import collate
from memory.activations import mask_values, read_sizes
from modes import MODES
from modes.segments import make_segments
from tests.shapes import alike


def test_masks_are_those_that_the_models_make():
    sample = np.arange(10, 40)
    labels = np.where(sample < 22, -100, sample)
    for mode, positions, expected in (("glm", 0, 18 * 30), ("glm", 7, 18 * 37), ("glm3", 0, 0), ("glm3", 7, 30 * 37)):
        config = MODES[mode].config_class(**SHAPES["6b"]["glm" if mode == "glm" else "glm2"])
        config.pre_seq_len, config.prefix_layers = positions or None, "all"
        ids = sample.copy()
        if mode == "glm":
            ids[11], ids[12] = config.gmask_token_id, config.bos_token_id
        batch = collate([{"input_ids": ids, "labels": labels}] * 2, partial(MODES[mode].layout, config), False)
        masks = make_segments(batch["segments"], positions, "cpu").prepared
        made = sum(mask.numel() for mask in masks if mask is not None)
        assert made == mask_values(read_sizes(config, gated=MODES[mode].gated), alike(2, 30, 18)) == 2 * expected
