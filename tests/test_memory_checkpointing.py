"""memory/checkpointing.py: as few layers are recomputed as the memory allows, and the reason is printed."""

from dataclasses import replace

import pytest

from memory.available import GIB
from memory.checkpointing import SAFE_SHARE, bytes_of_rank, choose_layers, layers_to_recompute
from memory.estimate import estimate
from memory.step import blocks_in_graph
from tests.shapes import SETUP, alike, model


@pytest.mark.parametrize(
    ("mode", "train_type", "changes"),
    [
        ("glm3", "lora", {}),
        ("glm", "ptuning", {}),
        ("glm", "freeze", {}),
        ("glm3", "all", {"stage": 3, "ranks": 8}),
        ("glm3", "all", {"on_gpu": False, "precision": "fp32", "offload_optimizer": True}),
    ],
)
def test_as_few_layers_are_recomputed_as_fit(mode, train_type, changes):
    parameters, sizes = model(mode, train_type)
    setup = replace(SETUP, batch=alike(4), **changes)
    every = blocks_in_graph(parameters, sizes)
    peaks = [bytes_of_rank(estimate(parameters, sizes, replace(setup, recomputed=n)), setup) for n in range(every + 1)]
    most = every if peaks[every] == min(peaks) else peaks.index(min(peaks))
    counts = []
    for limit in (peaks[0] + 1, *peaks[:every], peaks[every] // 2):
        count, result = layers_to_recompute(parameters, sizes, setup, limit)
        assert count == next((n for n, peak in enumerate(peaks) if peak <= limit), most)
        assert bytes_of_rank(result, setup) == peaks[count]
        counts.append(count)
    assert counts[0] == 0 and counts[-1] == most >= every - 3
    assert bytes_of_rank(estimate(parameters, sizes, setup), setup) >= estimate(parameters, sizes, setup).gpu_peak


def test_a_number_is_taken_and_auto_says_why():
    parameters, sizes = model("glm3", "lora")
    assert choose_layers(5, parameters, sizes, SETUP, 0) == (5, "--checkpoint_layers 5")
    assert choose_layers(99, parameters, sizes, SETUP, 0)[0] == 28
    low, high = (choose_layers("auto", parameters, sizes, SETUP, gigabytes * GIB) for gigabytes in (20, 80))
    assert 28 > low[0] > high[0] == 0
    limit = SAFE_SHARE * 20
    taken = estimate(parameters, sizes, replace(SETUP, recomputed=low[0])).gpu_peak / GIB
    said = f"auto: estimated peak {taken:.2f} GiB per GPU, budget {limit:.2f} GiB (80% of usable memory)"
    assert taken <= limit and low[1].endswith(said)
    count, why = choose_layers("auto", parameters, sizes, SETUP, GIB)
    assert 25 <= count <= 28 and " GiB per GPU, over the budget 0.80 GiB (80% of usable memory)" in why
