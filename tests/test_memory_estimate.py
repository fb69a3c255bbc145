"""memory/estimate.py: the estimated peak is the measured one within 8%."""

import json
import sys
from dataclasses import replace
from itertools import pairwise, product

import pytest

from benchmarks.memory import ALL, CASE, highest
from memory.activations import head
from memory.estimate import estimate
from memory.step import blocks_in_graph
from methods import METHODS
from parameters import Parameter
from tests import launch
from tests.shapes import SETUP, alike, model

TOLERANCE = 0.08
METHODS_AND_CHECKPOINTING = [
    {"mode": mode, "train_type": train_type, "checkpoint_layers": layers}
    for mode, train_type, layers in product(("glm", "glm2"), ("freeze", "ptuning", "lora", "all"), (0, ALL))
]
OFFLOAD = {"offload_optimizer": True}
MORE = [
    {"train_type": "lora", "precision": "bf16"},
    {"train_type": "all", "precision": "bf16", "checkpoint_layers": ALL},
    {"train_type": "all", "mode": "glm", "precision": "bf16"},
    {"train_type": "all", "accumulation": 2},
    {"train_type": "lora", "mode": "glm", "rows": 5, "supervised": 90},
    {"train_type": "all", "rows": 4, "supervised": 180},
    {"train_type": "all", "mode": "glm", "rows": 4, "supervised": 180},
    {"train_type": "ptuning", "rows": 12, "length": 40, "supervised": 24},
    {"train_type": "all", "bucket": 2_000_000},
    {"train_type": "all", "stage": 1},
    {"train_type": "all", "stage": 1, "accumulation": 2, **OFFLOAD},
    {"train_type": "all", **OFFLOAD, "accumulation": 2},
    {"train_type": "lora", **OFFLOAD},
    {"train_type": "ptuning", "options": {"pre_seq_len": 8, "prefix_projection": False, "prefix_layers": "embedding"}},
    *({"mode": mode, "train_type": train_type, "supervised": 8} for mode in ("glm", "glm2") for train_type in METHODS),
    *({"mode": mode, "train_type": "freeze", "options": {"freeze_module_name": ("layers.3.",)}, "checkpoint_layers": n}
      for mode in ("glm", "glm2") for n in (0, 1)),
    {"train_type": "lora", "options": {"lora_dim": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_module_name":
     ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")}},
    {"train_type": "lora", "rows": 4, "supervised": 180, "options": {"lora_dim": 4, "lora_alpha": 8,
     "lora_dropout": 0.0, "lora_module_name": ("query_key_value", "output_layer")}},
]  # fmt: skip
OFFLOAD_ALL = {**OFFLOAD, "offload_param": True}
FEWER = [case for case in METHODS_AND_CHECKPOINTING if case["mode"] == "glm2"]  # benchmarks/memory.py measures them all
FEWEST = [case for case in FEWER if case["train_type"] in ("lora", "all")]
ZERO3 = [{**case, "stage": 3} for case in FEWER] + [
    {"stage": 3, "train_type": "all", **OFFLOAD_ALL},
    {"stage": 3, "train_type": "lora", **OFFLOAD_ALL},
    {"stage": 3, "train_type": "lora", "rows": 4, "supervised": 180},
]
# limits that the tiny models reach, as 6B models reach DeepSpeed's own
NARROW = {
    "stage3_prefetch_bucket_size": 100_000,
    "stage3_max_live_parameters": 400_000,
    "stage3_max_reuse_distance": 400_000,
    "stage3_param_persistence_threshold": 1_000,
}
TWO_RANKS = {
    "zero2": [*FEWEST, {"train_type": "all", **OFFLOAD}, {"train_type": "lora", **OFFLOAD},
              {"train_type": "all", "stage": 1},
              {"train_type": "all", "stage": 1, "accumulation": 2, "zero": {"overlap_comm": False}}],
    "zero3": [*({**case, "stage": 3} for case in FEWEST), {"stage": 3, "train_type": "all", **OFFLOAD_ALL},
              {"stage": 3, "train_type": "all", "zero": NARROW, "checkpoint_layers": ALL},
              {"stage": 3, "train_type": "lora", "zero": NARROW}],
}  # fmt: skip


@pytest.fixture
def measure(tmp_path):
    """(cases, ranks) -> the result of each case, as of benchmarks/memory.py, without its start."""

    def run(cases, ranks=1):
        words = ["benchmarks/memory.py", "--cases", json.dumps([{**CASE, **case, "ranks": ranks} for case in cases])]
        result = launch.fork([*words, "--results", tmp_path / "result"], ranks)
        assert result.returncode == 0, result.stderr
        return highest([json.loads((tmp_path / f"result.{rank}").read_text()) for rank in range(ranks)])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(1, METHODS_AND_CHECKPOINTING + MORE), (1, ZERO3), (2, TWO_RANKS["zero2"]), (2, TWO_RANKS["zero3"])],
    ids=["zero2", "zero3", "zero2-two-ranks", "zero3-two-ranks"],
)
def test_estimate_is_close_to_what_training_takes(ranks, cases, measure):
    results = measure(cases, ranks)
    rows = zip(results, cases, strict=True)
    off = [(f"{result['error']:+.1%}", case) for result, case in rows if abs(result["error"]) > TOLERANCE]
    assert not off
    for result, case in zip(results, cases, strict=True):
        parameters, sizes = model(case.get("mode", "glm2"), case.get("train_type", "lora"), "small")
        assert result["recomputed"] == min(case.get("checkpoint_layers", 0), blocks_in_graph(parameters, sizes))


@pytest.mark.slow
def test_the_norm_of_the_largest_gradient_is_measured(measure):
    """The float64 copy is the peak of the optimizer if one gradient is large."""
    (result,) = measure([{"mode": "glm", "train_type": "ptuning", "rows": 1, "length": 40, "supervised": 8}])
    assert result["estimated_moments"]["optimizer"] == pytest.approx(result["moments"]["optimizer 1"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["lora", "ptuning"])
def test_every_recomputed_layer_lowers_the_peak(train_type, measure):
    cases = [
        {"mode": mode, "train_type": train_type, "checkpoint_layers": n, "supervised": 16}
        for mode in ("glm", "glm2")
        for n in (0, 1, 2)  # the last block keeps little, and below it backward has its peak in any case
    ]
    results = measure(cases)
    for of_mode in (results[:3], results[3:]):
        peaks = [result["measured"] for result in of_mode]
        assert all(less < more for more, less in pairwise(peaks)), peaks
    assert all(abs(result["error"]) < TOLERANCE for result in results)


@pytest.mark.slow
def test_what_samples_share_takes_no_more_than_if_each_had_it(measure):
    cases = [{"rows": 4, "common": 100}, {"rows": 4, "common": 100, "train_type": "ptuning", "checkpoint_layers": 2}]
    for result in measure(cases):
        assert 0.5 * result["estimated"] < result["measured"] < result["estimated"]


def test_what_is_held_between_steps_is_arithmetic():
    parameters, sizes = model("glm3", "all")
    values = sum(parameter.size for parameter in parameters)
    assert 6.2e9 < values < 6.3e9
    estimated = estimate(parameters, sizes, SETUP)
    assert estimated.parts["weights"] == 2 * values and estimated.parts["optimizer"] == 12 * values
    embedding = 65_024 * 4096  # the norm of its gradient is taken in float64
    assert estimated.moments["optimizer"] == pytest.approx(16 * values + 8 * embedding, rel=0.001)
    split = estimate(parameters, sizes, replace(SETUP, ranks=8, stage=3))
    assert split.parts["weights"] == 2 * values // 8 and split.parts["optimizer"] == pytest.approx(12 * values / 8)
    offloaded = estimate(parameters, sizes, replace(SETUP, offload_optimizer=True))
    assert "optimizer" not in offloaded.parts and offloaded.host["optimizer"] >= 12 * values


def test_more_takes_more():
    parameters, sizes = model("glm3", "lora")
    peak = lambda **changes: estimate(parameters, sizes, replace(SETUP, **changes)).gpu_peak  # noqa: E731
    assert peak(recomputed=28) < peak()
    assert peak() < peak(batch=alike(2)) < peak(batch=alike(4))
    assert peak() < peak(batch=alike(1, 3000))
    logits = [head(sizes, alike(1, supervised=m), trained=False, lora=False, value_bytes=2) for m in (100, 512, 1500)]
    hidden = 1500 * sizes.hidden * 2
    assert logits[0] < logits[1] and logits[2] <= logits[1] + 2 * hidden  # 512 at a time
    every = head(sizes, alike(1, supervised=1500), trained=False, lora=True, value_bytes=2)
    assert every > 1500 * sizes.vocab * 12  # all at once beside a LoRA branch
    losses = [estimate(parameters, sizes, replace(SETUP, batch=alike(1, supervised=m))).moments["loss"]
              for m in (513, 1050, 1560)]  # fmt: skip
    feed_forward = 3 * sizes.ffn * 2
    assert all(b - a > 500 * feed_forward for a, b in pairwise(losses))  # of the last block
    assert peak() < peak(precision="fp32") and peak(precision="fp16") == peak()
    assert estimate(parameters, sizes, replace(SETUP, stage=3, ranks=4, recomputed=28)).gpu_peak < peak(recomputed=28)


def test_parameters_offloaded_by_zero3_are_pinned_twice():
    """As pieces one by one, then in a block for each group; torch keeps what it pinned."""
    parameters = [
        Parameter("a.weight", (1000, 1000), True),
        Parameter("b.weight", (1000, 500), True),
        Parameter("c.weight", (1000, 300), False),
    ]
    sizes = model("glm3", "lora", "small")[1]
    setup = replace(SETUP, stage=3, offload_param=True, rounded_up_to=0)
    weights = lambda **changes: estimate(parameters, sizes, replace(setup, **changes)).host["weights"]  # noqa: E731
    assert weights() == 2 * (2 * 1_500_000 + 300_000)
    assert weights(ranks=2) == weights() // 2
    assert weights(pin_memory=False) == weights(on_gpu=False) == 2 * 1_800_000
    rounded = 2**21 + 2**20 + 2**20 + 2**22  # three pieces and a group
    assert weights(rounded_up_to=sys.maxsize) == rounded
