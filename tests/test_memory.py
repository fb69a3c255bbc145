"""memory/estimate.py: the estimated peak is the measured one within 8%, and a suggestion is the fastest that fits."""

import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory import ALL, CASE, SHAPES, measure, method_options
from data.collate import collate
from data.loading import plan_epoch
from doctor.memory import describe_estimate
from memory.activations import head, mask_values, read_sizes
from memory.available import GIB, free_in_group, free_ram, memory_groups, memory_of_rank, usable
from memory.checkpointing import SAFE_SHARE, bytes_of_rank, choose_layers, layers_to_recompute
from memory.estimate import estimate, pinned
from memory.gathering import gather
from memory.gradients import largest_part
from memory.groups import largest_group
from memory.pinned import KEY, VARIABLES, bounded_rounding, rounded_up_to
from memory.setup import Batch, Setup, read_setup
from memory.step import blocks_in_graph, follow_step, largest_batch
from memory.suggestions import BUCKET, CHOICES, smaller_batches, suggest
from methods import METHODS
from modes import MODES
from modes.segments import make_segments
from parameters import Parameter, parameters_of
from training.ds_config import find_ds_file, read_ds_file

TOLERANCE = 0.08


def alike(samples, length=1560, supervised=512):
    """A micro-batch of samples of the same size."""
    return largest_batch([length] * samples, [supervised] * samples, samples)


SETUP = Setup(precision="bf16", stage=2, ranks=1, batch=alike(1), reduce_bucket_size=2 * 10**8)
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
    "zero2": [*FEWER, {"train_type": "all", **OFFLOAD}, {"train_type": "lora", **OFFLOAD},
              {"train_type": "all", "stage": 1},
              {"train_type": "all", "stage": 1, "accumulation": 2, "zero": {"overlap_comm": False}}],
    "zero3": [*ZERO3, {"stage": 3, "train_type": "all", "zero": NARROW, "checkpoint_layers": ALL},
              {"stage": 3, "train_type": "lora", "zero": NARROW}],
}  # fmt: skip


def model(mode, train_type, shapes="6b"):
    """(parameters, sizes) of a prepared model on meta."""
    config = MODES[mode].config_class(**SHAPES[shapes]["glm" if mode == "glm" else "glm2"])
    options = method_options({"options": None, "train_type": train_type}, config.num_hidden_layers)
    METHODS[train_type](**options).configure(config)
    with torch.device("meta"):
        prepared = METHODS[train_type](**options).prepare(MODES[mode].model_class(config))
    parameters = parameters_of(prepared)
    return parameters, read_sizes(config, gated=MODES[mode].gated)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(1, METHODS_AND_CHECKPOINTING + MORE), (1, ZERO3), (2, TWO_RANKS["zero2"]), (2, TWO_RANKS["zero3"])],
    ids=["zero2", "zero3", "zero2-two-ranks", "zero3-two-ranks"],
)
def test_estimate_is_close_to_what_training_takes(ranks, cases):
    results = measure([CASE | case for case in cases], ranks)
    rows = zip(results, cases, strict=True)
    off = [(f"{result['error']:+.1%}", case) for result, case in rows if abs(result["error"]) > TOLERANCE]
    assert not off
    for result, case in zip(results, cases, strict=True):
        parameters, sizes = model(case.get("mode", "glm2"), case.get("train_type", "lora"), "small")
        assert result["recomputed"] == min(case.get("checkpoint_layers", 0), blocks_in_graph(parameters, sizes))


@pytest.mark.slow
def test_the_norm_of_the_largest_gradient_is_measured():
    """The float64 copy is the fullest moment of the optimizer where one gradient is large."""
    (result,) = measure([CASE | {"mode": "glm", "train_type": "ptuning", "rows": 1, "length": 40, "supervised": 8}])
    assert result["estimated_moments"]["optimizer"] == pytest.approx(result["moments"]["optimizer 1"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["lora", "ptuning"])
def test_every_recomputed_layer_lowers_the_peak(train_type):
    cases = [
        CASE | {"mode": mode, "train_type": train_type, "checkpoint_layers": n, "supervised": 16}
        for mode in ("glm", "glm2")
        for n in (0, 1, 2)  # the last block keeps little, and below it backward is fullest in any case
    ]
    results = measure(cases)
    for of_mode in (results[:3], results[3:]):
        peaks = [result["measured"] for result in of_mode]
        assert all(less < more for more, less in pairwise(peaks)), peaks
    assert all(abs(result["error"]) < TOLERANCE for result in results)


@pytest.mark.slow
def test_what_samples_share_takes_no_more_than_if_each_had_it():
    cases = [{"rows": 4, "common": 100}, {"rows": 4, "common": 100, "train_type": "ptuning", "checkpoint_layers": 2}]
    for result in measure([CASE | case for case in cases]):
        assert 0.5 * result["estimated"] < result["measured"] < result["estimated"]


def test_what_is_held_between_steps_is_arithmetic():
    parameters, sizes = model("glm3", "all")
    values = sum(parameter.size for parameter in parameters)
    assert 6.2e9 < values < 6.3e9
    found = estimate(parameters, sizes, SETUP)
    assert found.parts["weights"] == 2 * values and found.parts["optimizer"] == 12 * values
    embedding = 65_024 * 4096  # the norm of its gradient is taken in float64
    assert found.moments["optimizer"] == pytest.approx(16 * values + 8 * embedding, rel=0.001)
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


def test_suggestions_are_the_cheapest_that_fit():
    parameters, sizes = model("glm3", "lora")
    setup = replace(SETUP, batch=alike(4), accumulation=2)
    batches = smaller_batches([1560] * 4, [512] * 4, 4)
    found = {gigabytes: suggest(parameters, sizes, setup, usable(gigabytes * GIB), batches=batches)
             for gigabytes in (80, 40, 24, 16, 1)}  # fmt: skip
    assert found[80].micro_batch_size == 4 and found[80].setup.accumulation == 2
    layers = {gigabytes: suggestion.setup.recomputed for gigabytes, suggestion in found.items()}
    assert layers[80] == 0 < layers[40] < layers[24] <= 28
    assert found[80].flags().startswith("--ds_file ds_zero2_no_offload.json --per_device_train_batch_size 4 ")
    assert (
        found[40]
        .flags()
        .startswith(
            f"--ds_file ds_zero2_no_offload.json --gradient_checkpointing --checkpoint_layers {layers[40]} --per_device"
        )
    )
    assert found[24].setup.stage == 2 and not found[24].setup.offload_optimizer
    for gigabytes, suggestion in found.items():
        assert suggestion.fits == (gigabytes > 1) == (suggestion.estimate.gpu_peak <= usable(gigabytes * GIB))
        assert suggestion.micro_batch_size * suggestion.setup.accumulation == 8
        assert suggestion.estimate == estimate(parameters, sizes, suggestion.setup)
        assert suggestion.estimate.gpu_peak >= found[1].estimate.gpu_peak

    full, sizes = model("glm3", "all")
    order = []
    for gigabytes in (141, 24, 16):
        found = suggest(full, sizes, replace(setup, ranks=8), usable(gigabytes * GIB), batches=batches)
        assert found.fits
        order.append((found.setup.offload_optimizer, -found.micro_batch_size, found.setup.stage))
    assert order == sorted(order) and order[0][0] < order[-1][0]


def test_choices_are_what_the_shipped_files_say():
    for ds_file, stage, optimizer, param in CHOICES:
        setup = read_setup(read_ds_file(find_ds_file(ds_file)), precision="bf16", ranks=2, batch=SETUP.batch)
        assert (setup.stage, setup.offload_optimizer, setup.offload_param) == (stage, optimizer, param)
        assert setup.reduce_bucket_size == BUCKET and setup.overlap_comm and setup.pin_memory in (optimizer, True)


def test_what_zero3_has_gathered():
    parameters = [Parameter("word_embeddings.weight", (10,), False)]
    parameters += [Parameter(f"layers.{i}.weight", (100,), True) for i in range(4)]
    parameters.append(Parameter("output_layer.weight", (10,), False))
    setup = replace(SETUP, stage=3, ranks=2, prefetch_bucket_size=200, persistence_threshold=0)
    _, sizes = model("glm3", "lora", "small")
    found = gather(parameters, sizes, setup, lowest=0, embedding_again=False)
    assert found.start == 420  # asked for at once; then the first buffer beside its copies, then the second one
    assert found.forward == [(2, 210 + 420), (4, 200 + 200 + 210), (4, 400 + 10 + 10)]
    assert found.backward == [100, 200, 300, 400, 410]  # what backward has come through is given back
    assert gather(parameters, sizes, replace(setup, on_gpu=False), lowest=0, embedding_again=True).start == 840
    small = gather(parameters, sizes, replace(setup, persistence_threshold=10), lowest=0, embedding_again=False)
    assert small.start == 400 and small.backward[-1] == 400
    narrow = gather(parameters, sizes, replace(setup, max_live_parameters=150), lowest=0, embedding_again=False)
    assert narrow.start == 250 and narrow.backward == [100, 200, 250, 250, 250]
    assert gather(parameters, sizes, replace(setup, ranks=1), lowest=0, embedding_again=False).start == 0


def test_a_part_holds_the_parameters_that_it_touches_whole():
    assert largest_part([[4, 4, 4, 4]], 2) == 8
    assert largest_part([[2, 12, 2]], 2) == 14
    assert largest_group(1) == 10**8 and largest_group(8) > 6.3e9
    assert largest_part([], 2) == 0 and largest_part([[5]], 1) == 5
    assert largest_part([[4, 4, 4, 4], [6]], 2) == 14  # a group of one belongs to all ranks


def test_setup_reads_a_deepspeed_file():
    zero = {"stage": 3, "reduce_bucket_size": 7, "offload_param": {"device": "cpu", "pin_memory": True}}
    setup = read_setup({"zero_optimization": zero}, precision="bf16", ranks=2, batch=SETUP.batch)
    assert (setup.stage, setup.reduce_bucket_size, setup.prefetch_bucket_size) == (3, 7, 5 * 10**7)
    assert setup.offload_param and setup.pin_memory and not setup.offload_optimizer and setup.overlap_comm
    assert [pinned(n, setup) for n in (0, 1, 1024, 1025)] == [0, 1, 1024, 2048]
    bounded = replace(setup, rounded_up_to=1024)
    assert [pinned(n, bounded) for n in (1023, 1024, 1025)] == [1024, 1024, 1025]


def test_norms_of_gradients_are_taken_in_float64():
    """A copy of 8 bytes a value, of the largest gradient: where one is large, more than the optimizer's own copies."""
    parameters = [
        Parameter("layers.0.dense_4h_to_h.weight", (1000, 1000), True),
        Parameter("layers.0.dense_4h_to_h.bias", (1000,), True),
    ]
    sizes = model("glm3", "lora", "small")[1]

    def fullest(moment, **changes):
        setup = replace(SETUP, precision="fp32", batch=alike(1, 16, 8), **changes)
        return max(sum(now.values()) for name, now in follow_step(parameters, sizes, setup) if name == moment)

    values = 1_001_000
    assert fullest("optimizer") == 4 * values + 8 * 10**6
    assert fullest("optimizer", ranks=2) == 4 * values + 8 * (10**6 // 2)  # each has half of a group
    assert fullest("optimizer", stage=3, ranks=2) == 8 * (10**6 // 2)
    plain = fullest("backward", reduce_bucket_size=1000)  # with offload, as a bucket is reduced
    assert fullest("backward", reduce_bucket_size=1000, offload_optimizer=True) == plain + 8 * 10**6 - 4 * values


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


def test_rounding_of_pinned_blocks_is_bounded_where_torch_can(monkeypatch):
    header = Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h"
    known = header.is_file() and KEY.removesuffix("_mb") in header.read_text()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert rounded_up_to() == sys.maxsize
    added = bounded_rounding()
    assert bool(added) == known
    for name, value in added.items():
        monkeypatch.setenv(name, value)
    assert rounded_up_to() == (32 * 2**20 if known else sys.maxsize)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert not bounded_rounding() and rounded_up_to() == sys.maxsize  # the user's settings stay
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"expandable_segments:True, {KEY}:8")
    assert rounded_up_to() == 8 * 2**20


def test_description_says_the_peak_and_its_parts():
    parameters, sizes = model("glm3", "lora")
    text = describe_estimate(estimate(parameters, sizes, SETUP), SETUP)
    assert (
        text.startswith("Peak tensor memory per GPU: ")
        and "weights 11.6" in text
        and "peak of each phase: forward" in text
    )
    text = describe_estimate(estimate(parameters, sizes, replace(SETUP, stage=3, offload_param=True)), SETUP)
    assert "Offloaded to RAM per rank: " in text and "GiB (weights" in text


def test_the_largest_micro_batch_of_samples():
    lengths, supervised = [5, 9, 17], [3, 6, 4]
    assert largest_batch(lengths, supervised, 2) == Batch(26, 2, 10, 17**2 + 9**2, 17 * 4 + 9 * 6)
    every = largest_batch(lengths, supervised, 6)
    assert every == Batch(31, 3, 13, 17**2 + 9**2 + 5**2, 17 * 4 + 9 * 6 + 5 * 3)
    assert [batch.samples for batch in smaller_batches(lengths, supervised, 6).values()] == [3, 3, 2, 1]
    assert smaller_batches(lengths, supervised, 6)[2] == largest_batch(lengths, supervised, 2)


def test_the_largest_row_of_packed_samples():
    """No less than any micro-batch of two rows that an epoch really has, and not much more."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(16, 200, 500)
    supervised = draw.integers(1, lengths // 2)
    plans = [plan_epoch(lengths, supervised, epoch=epoch, seed=0, micro_batch_size=2, accumulation=1, world_size=2,
                        rank=rank, row_length=256) for epoch in (1, 2) for rank in (0, 1)]  # fmt: skip
    most = largest_batch(lengths, supervised, 2, row_length=256)
    for samples in (np.array(rows) for plan in plans for step in plan for rows in step.micro_batches if rows[0] >= 0):
        real = largest_batch(lengths[samples], supervised[samples], len(samples))
        for name, value in vars(real).items():
            assert value <= vars(most)[name], name
    assert most.tokens == 512 and most.samples <= 512 // 16 + 1 and most.supervised <= 320


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
        masks = make_segments(batch["segments"], positions, "cpu").plan
        made = sum(mask.numel() for mask in masks if mask is not None)
        assert made == mask_values(read_sizes(config, gated=MODES[mode].gated), alike(2, 30, 18)) == 2 * expected


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
    found = []
    for limit in (peaks[0] + 1, *peaks[:every], peaks[every] // 2):
        count, result = layers_to_recompute(parameters, sizes, setup, limit)
        assert count == next((n for n, peak in enumerate(peaks) if peak <= limit), most)
        assert bytes_of_rank(result, setup) == peaks[count]
        found.append(count)
    assert found[0] == 0 and found[-1] == most >= every - 3
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


def test_memory_of_a_rank_is_a_card_or_a_share_of_what_ram_is_free(tmp_path):
    assert memory_of_rank(1, gpu_memory=24.0) == usable(24 * GIB) < 24 * GIB
    ram = free_ram(tmp_path, tmp_path)  # no control groups there
    assert 0.8 * ram < 4 * memory_of_rank(4) < 1.25 * ram or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("line", "group", "limit_file", "usage_file"),
    [
        ("0::/jobs/7", "jobs/7", "memory.max", "memory.current"),
        ("4:cpu:/\n3:memory:/jobs/7", "memory/jobs/7", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("0::/not/mounted/here", ".", "memory.max", "memory.current"),  # a container sees its own group as the root
    ],
)
def test_control_groups_limit_ram(tmp_path, line, group, limit_file, usage_file):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line + "\n")
    directory = tmp_path / "cgroup" / group
    directory.mkdir(parents=True)
    for name, text in ((limit_file, "1000"), (usage_file, "600"), ("memory.stat", "anon 400\ninactive_file 100")):
        (directory / name).write_text(text + "\n")
    assert free_ram(tmp_path / "proc", tmp_path / "cgroup") == 500
    (directory / limit_file).write_text("max\n" if limit_file == "memory.max" else f"{2**63 - 4096}\n")
    assert free_ram(tmp_path / "proc", tmp_path / "cgroup") > 2**20
    groups = memory_groups(tmp_path / "proc", tmp_path / "cgroup")
    assert all(free_in_group(*one) >= 2**59 for one in groups)
