"""Positions of ChatGLM2-6B and ChatGLM3-6B: one number a token."""

import numpy as np


def layout(config, input_ids):
    """(position ids [s], tokens that see one another both ways: none) of a row of ids [s]."""
    return np.arange(len(input_ids)), 0
