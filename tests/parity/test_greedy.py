"""Sixteen greedy tokens, with the key/value cache and without, are those of the official models."""

import pytest

from tests import golden


@pytest.mark.parametrize("prefix", ["", *golden.PREFIXES])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(mode, prefix, use_cache):
    tensors = golden.tensors(mode)
    case = f"{prefix}.greedy" if prefix else "greedy"
    output = golden.shared_model(mode, prefix).generate(
        tensors[f"{case}.prompt"], max_new_tokens=16, do_sample=False, use_cache=use_cache
    )
    assert output.tolist() == tensors[f"{case}.output"].tolist()
