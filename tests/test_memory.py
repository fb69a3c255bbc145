"""doctor/memory.py: the estimated peak is the measured one within 10%, and a suggestion is the fastest that fits."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from benchmarks.memory import CASE, SHAPES, measure, method_options
from doctor.activations import Batch, read_sizes
from doctor.gathering import gather
from doctor.gradients import largest_part
from doctor.memory import GIB, describe, estimate, pinned
from doctor.setup import Setup, read_setup
from doctor.step import blocks_in_graph, largest_batch
from doctor.suggestions import BUCKET, CHOICES, smaller_batches, suggest, usable
from methods import METHODS
from modes import MODES
from training.ds_config import find_ds_file, read_ds_file

TOLERANCE = 0.10
SETUP = Setup(precision="bf16", stage=2, ranks=1, batch=Batch(rows=1, length=1560, supervised=512),
              reduce_bucket_size=2 * 10**8)  # fmt: skip
METHODS_AND_CHECKPOINTING = [
    {"mode": mode, "train_type": train_type, "checkpointing": checkpointing}
    for mode, train_type, checkpointing in product(("glm", "glm2"), ("freeze", "ptuning", "lora", "all"), (False, True))
]
OFFLOAD = {"offload_optimizer": True}
MORE = [
    {"train_type": "lora", "precision": "bf16"},
    {"train_type": "all", "precision": "bf16", "checkpointing": True},
    {"train_type": "all", "mode": "glm", "precision": "bf16"},
    {"train_type": "all", "accumulation": 2},
    {"train_type": "all", "bucket": 2_000_000},
    {"train_type": "all", "stage": 1},
    {"train_type": "all", "stage": 0},
    {"train_type": "all", **OFFLOAD, "accumulation": 2},
    {"train_type": "lora", **OFFLOAD},
    {"train_type": "ptuning", "options": {"pre_seq_len": 8, "prefix_projection": False, "prefix_layers": "embedding"}},
    {"train_type": "lora", "options": {"lora_dim": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_module_name":
     ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")}},
]  # fmt: skip
OFFLOAD_ALL = {**OFFLOAD, "offload_param": True}
FEWER = [case for case in METHODS_AND_CHECKPOINTING if case["mode"] == "glm2"]  # benchmarks/memory.py measures them all
ZERO3 = [{**case, "stage": 3} for case in FEWER] + [
    {"stage": 3, "train_type": "all", **OFFLOAD_ALL},
    {"stage": 3, "train_type": "lora", **OFFLOAD_ALL},
]
# limits that the tiny models reach, as 6B models reach DeepSpeed's own
NARROW = {
    "stage3_prefetch_bucket_size": 100_000,
    "stage3_max_live_parameters": 400_000,
    "stage3_max_reuse_distance": 400_000,
    "stage3_param_persistence_threshold": 1_000,
}
TWO_RANKS = {
    "zero2": [*FEWER, {"train_type": "all", **OFFLOAD}, {"train_type": "lora", **OFFLOAD}],
    "zero3": [*ZERO3, {"stage": 3, "train_type": "all", "zero": NARROW, "checkpointing": True},
              {"stage": 3, "train_type": "lora", "zero": NARROW}],
}  # fmt: skip


def model(mode, train_type, shapes="6b"):
    """(parameters, sizes) of a prepared model on meta."""
    config = MODES[mode].config_class(**SHAPES[shapes]["glm" if mode == "glm" else "glm2"])
    options = method_options({"options": None, "train_type": train_type}, config.num_hidden_layers)
    METHODS[train_type].configure(config, **options)
    with torch.device("meta"):
        prepared = METHODS[train_type].prepare(MODES[mode].model_class(config), **options)
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in prepared.named_parameters()]
    return parameters, read_sizes(config, gated=mode != "glm")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(1, METHODS_AND_CHECKPOINTING + MORE), (1, ZERO3), (2, TWO_RANKS["zero2"]), (2, TWO_RANKS["zero3"])],
    ids=["zero2", "zero3", "zero2-two-ranks", "zero3-two-ranks"],
)
def test_estimate_is_within_ten_percent_of_what_training_takes(ranks, cases):
    results = measure([CASE | case for case in cases], ranks)
    off = [(f"{r['error']:+.1%}", case) for r, case in zip(results, cases, strict=True) if abs(r["error"]) > TOLERANCE]
    assert not off
    for result, case in zip(results, cases, strict=True):
        if case.get("checkpointing"):
            parameters, sizes = model(case.get("mode", "glm2"), case["train_type"], "small")
            assert blocks_in_graph(parameters, sizes) == result["recomputed"]


def test_what_is_held_between_steps_is_arithmetic():
    parameters, sizes = model("glm3", "all")
    values = sum(torch.Size(shape).numel() for _, shape, _ in parameters)
    assert 6.2e9 < values < 6.3e9
    found = estimate(parameters, sizes, SETUP)
    assert found.parts["weights"] == 2 * values and found.parts["optimizer"] == 12 * values
    assert found.moments["optimizer"] == pytest.approx(22 * values, rel=0.01)
    split = estimate(parameters, sizes, replace(SETUP, ranks=8, stage=3))
    assert split.parts["weights"] == 2 * values // 8 and split.parts["optimizer"] == pytest.approx(12 * values / 8)
    offloaded = estimate(parameters, sizes, replace(SETUP, offload_optimizer=True))
    assert "optimizer" not in offloaded.parts and offloaded.host["optimizer"] >= 12 * values


def test_more_takes_more():
    parameters, sizes = model("glm3", "lora")
    peak = lambda **changes: estimate(parameters, sizes, replace(SETUP, **changes)).gpu_peak  # noqa: E731
    assert peak(recomputed=28) < peak()
    assert peak() < peak(batch=Batch(2, 1560, 1024)) < peak(batch=Batch(4, 1560, 2048))
    assert peak() < peak(batch=Batch(1, 1560, 1500)) < peak(batch=Batch(1, 3000, 1500))
    assert peak() < peak(precision="fp32") and peak(precision="fp16") == peak()
    assert estimate(parameters, sizes, replace(SETUP, stage=3, ranks=4, recomputed=28)).gpu_peak < peak(recomputed=28)


def test_suggestions_are_the_cheapest_that_fit():
    parameters, sizes = model("glm3", "lora")
    setup = replace(SETUP, batch=Batch(4, 1560, 2048), accumulation=2)
    batches = smaller_batches(setup.batch, 4, 512)
    found = {}
    for gigabytes in (80, 40, 24, 16, 1):
        found[gigabytes] = suggest(parameters, sizes, setup, gigabytes * GIB, batches=batches,
                                   recomputed=blocks_in_graph(parameters, sizes))  # fmt: skip
    assert not found[80].checkpointing and found[80].micro_batch_size == 4 and found[80].setup.accumulation == 2
    assert found[24].setup.stage == 2 and found[24].checkpointing and not found[24].setup.offload_optimizer
    start = "--ds_file ds_zero2_no_offload.json --gradient_checkpointing --per_device_train_batch_size "
    assert found[24].flags().startswith(start)
    for gigabytes, suggestion in found.items():
        assert suggestion.fits == (gigabytes > 1) == (suggestion.estimate.gpu_peak <= usable(gigabytes * GIB))
        assert suggestion.micro_batch_size * suggestion.setup.accumulation == 8
        assert suggestion.estimate == estimate(parameters, sizes, suggestion.setup)
        assert suggestion.estimate.gpu_peak >= found[1].estimate.gpu_peak

    full, sizes = model("glm3", "all")
    order = []
    for gigabytes in (141, 24, 16):
        found = suggest(full, sizes, replace(setup, ranks=8), gigabytes * GIB, batches=batches, recomputed=28)
        assert found.fits
        order.append((found.setup.offload_optimizer, -found.micro_batch_size, found.setup.stage))
    assert order == sorted(order) and order[0][0] < order[-1][0]


def test_choices_are_what_the_shipped_files_say():
    for ds_file, stage, optimizer, param, _ in CHOICES:
        setup = read_setup(read_ds_file(find_ds_file(ds_file)), precision="bf16", ranks=2, batch=SETUP.batch)
        assert (setup.stage, setup.offload_optimizer, setup.offload_param) == (stage, optimizer, param)
        assert setup.reduce_bucket_size == BUCKET and setup.overlap_comm and setup.pin_memory in (optimizer, True)


def test_what_zero3_has_gathered():
    parameters = [("word_embeddings.weight", (10,), False)]
    parameters += [(f"layers.{i}.weight", (100,), True) for i in range(4)] + [("output_layer.weight", (10,), False)]
    setup = replace(SETUP, stage=3, ranks=2, prefetch_bucket_size=200, persistence_threshold=0)
    _, sizes = model("glm3", "lora")
    found = gather(parameters, sizes, setup, lowest=0, embedding_again=False)
    assert found.start == 420  # asked for at once; then the first buffer beside its copies, then the second one
    assert found.forward == [(2, 210 + 420), (4, 200 + 200 + 210), (4, 400 + 10 + 10)]
    assert found.backward == 410
    assert gather(parameters, sizes, replace(setup, on_gpu=False), lowest=0, embedding_again=True).start == 840
    small = gather(parameters, sizes, replace(setup, persistence_threshold=10), lowest=0, embedding_again=False)
    assert small.start == 400 and small.backward == 400
    narrow = gather(parameters, sizes, replace(setup, max_live_parameters=150), lowest=0, embedding_again=False)
    assert narrow.start == 250 and narrow.backward == 250
    assert gather(parameters, sizes, replace(setup, ranks=1), lowest=0, embedding_again=False).start == 0


def test_a_part_holds_the_parameters_that_it_touches_whole():
    assert largest_part([4, 4, 4, 4], 2) == 8
    assert largest_part([2, 12, 2], 2) == 14
    assert largest_part([], 2) == 0 and largest_part([5], 1) == 5


def test_setup_reads_a_deepspeed_file():
    zero = {"stage": 3, "reduce_bucket_size": 7, "offload_param": {"device": "cpu", "pin_memory": True}}
    setup = read_setup({"zero_optimization": zero}, precision="bf16", ranks=2, batch=SETUP.batch)
    assert (setup.stage, setup.reduce_bucket_size, setup.prefetch_bucket_size) == (3, 7, 5 * 10**7)
    assert setup.offload_param and setup.pin_memory and not setup.offload_optimizer and setup.overlap_comm
    assert [pinned(n) for n in (0, 1, 1024, 1025)] == [0, 1, 1024, 2048]


def test_description_says_the_peak_and_its_parts():
    parameters, sizes = model("glm3", "lora")
    text = describe(estimate(parameters, sizes, SETUP), SETUP)
    assert text.startswith("GPU of a rank: ") and "weights 11.6" in text and "fullest moments: loss" in text
    text = describe(estimate(parameters, sizes, replace(SETUP, stage=3, offload_param=True)), SETUP)
    assert "offloaded to RAM, of a rank: " in text and "GiB (weights" in text


def test_the_largest_micro_batch_of_a_plan():
    batch = largest_batch([[0, 1], [2], [-1]], lengths=[5, 9, 17], supervised=[3, 4, 6])
    assert batch == Batch(rows=2, length=24, supervised=7)
    assert smaller_batches(Batch(rows=6, length=24, supervised=20), 6, most_supervised=6) == {
        6: Batch(6, 24, 20), 3: Batch(3, 24, 18), 2: Batch(2, 24, 12), 1: Batch(1, 24, 6),
    }  # fmt: skip
    assert smaller_batches(Batch(rows=2, length=8, supervised=4), 4, most_supervised=3)[4].rows == 2
