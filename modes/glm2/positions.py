"""Positions of ChatGLM2-6B and ChatGLM3-6B: one number per token."""

from collections.abc import Sequence

import numpy as np

from modes.config import Config


def layout(config: Config, input_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, int]:
    """(position ids [s], number of tokens with bidirectional attention: 0) of a row of ids [s]."""
    return np.arange(len(input_ids)), 0
