"""benchmarks/real_size.py: rows of the table of 2023, lengths of samples, and figures of a run."""

import json
import sys

import pytest

from benchmarks import card_run, real_size, runs
from benchmarks.card_rows import (
    FILES,
    GB_2023,
    UNPINNED,
    ZERO2,
    choose,
    counts,
    ds_file,
    encode,
    full_rows,
    make_records,
    memory_rows,
    operations,
    plan_steps,
    prepared,
    throughput_rows,
    ways,
)
from benchmarks.card_tables import line_of, tables
from memory.available import GIB, usable
from tests import launch
from tests.launch import MODES, REPOSITORY

METHODS = ("freeze", "ptuning", "lora", "all")
SMALL = {"num_layers": 2, "hidden_size": 128, "vocab_size": 4096}
CARD = {"on_gpu": True, "memory": usable(80 * GIB), "ram": 200 * GIB, "precision": "bf16", "matrix_rate": 1e12}
LENGTH = 128


def small_row(kind, mode="glm3", method="lora", **changes):
    """A row of a kind at small shapes, with how it is run."""
    made = {
        "memory": lambda: memory_rows([mode], [method], LENGTH),
        "throughput": lambda: throughput_rows([mode], [method], LENGTH, ["short"], 4, 2),
        "full": lambda: full_rows([mode], LENGTH),
    }[kind]()
    row = {**next(iter(made)), **changes}
    samples = encode(mode, make_records(row["samples"], 40, row["max_len"]), row["max_len"])
    return {**row, "real": False, **choose(row, prepared(mode, row["method"], **SMALL), samples, CARD, 0.8)}


def test_the_table_of_2023():
    rows = list(memory_rows(["glm", "glm3"], list(METHODS), 1560))
    full = [row for row in rows if row["max_len"] == 1560]
    figures_2023 = {(row["mode"], row["method"], row["recompute"]): row["gb_2023"] for row in full}
    assert len(figures_2023) == len(full) == 2 * len(GB_2023)
    assert (figures_2023["glm", "freeze", "every"], figures_2023["glm", "freeze", "none"]) == (36, 38)
    assert figures_2023["glm3", "lora", "none"] == 43
    shorter = {row["max_len"]: row["gb_2023"] for row in rows if row["max_len"] < 1560}
    assert shorter == {768: 43, 300: 44}
    assert all(row["length_2023"] == row["max_len"] for row in rows if row["max_len"] < 1560)


@pytest.mark.parametrize("mode", MODES)
def test_long_samples_have_max_len_tokens(mode):
    for length in (LENGTH, 1560):
        lengths, supervised = counts(encode(mode, make_records("long", 5, length), length))
        assert set(lengths) == {length}
        assert all(length // 4 < count < length // 2 for count in supervised)
    texts = [record["input"] for record in make_records("long", 50, LENGTH)]
    assert len(set(texts)) == 50


@pytest.mark.parametrize("mode, method, recompute, least, most", [
    ("glm", "lora", "every", 12.0, 12.6), ("glm3", "lora", "none", 16.5, 17.5), ("glm3", "freeze", "none", 23.0, 24.5),
])  # fmt: skip
def test_memory_rows_are_run_as_they_are(mode, method, recompute, least, most):
    row = next(row for row in memory_rows([mode], [method], 1560) if row["recompute"] == recompute)
    samples = encode(mode, make_records("long", 4, 1560), 1560)
    shape = prepared(mode, method, 28, 4096, None)
    chosen = choose(row, shape, samples, {**CARD, "memory": GIB}, 0.8)  # on a card that is too small, too
    assert (chosen["file"], chosen["batch"], chosen["accumulation"]) == (ZERO2, 1, 1)
    assert chosen["recomputed"] == (28 if recompute == "every" else 0)
    assert least < chosen["estimated"] / GIB < most


def test_what_fits_a_card_of_80_gib():
    """LoRA as many rows as fit; all parameters offloaded, pinned where RAM is large enough; else a sentence."""
    samples = encode("glm3", make_records("long", 40, 1560), 1560)
    lora, everything = (prepared("glm3", method, 28, 4096, None) for method in ("lora", "all"))
    (row,) = throughput_rows(["glm3"], ["lora"], 1560, ["long"], 32, 8)
    chosen = choose(row, lora, samples, CARD, 0.8)
    assert (chosen["file"], chosen["accumulation"], chosen["recomputed"]) == (ZERO2, 1, 0)
    assert 1 < chosen["batch"] < 32 and 0.7 * CARD["memory"] < chosen["estimated"] <= 0.8 * CARD["memory"]

    (row,) = throughput_rows(["glm3"], ["all"], 1560, ["long"], 8, 8)
    chosen = choose(row, everything, samples, CARD, 0.8)
    assert (chosen["file"], chosen["accumulation"]) == ("ds_zero2_offload.json", 8)
    for ram, accumulation in ((128, 8), (115, 1)):
        chosen = choose(row, everything, samples, {**CARD, "ram": ram * GIB}, 0.8)
        # before torch 2.13 pinned blocks are rounded up to powers of two, and only unpinned ones fit
        assert chosen["file"].removesuffix(UNPINNED) == "ds_zero2_offload.json"
        assert chosen["accumulation"] == accumulation
    none, zero2, zero3 = (
        choose(row, everything, samples, {**CARD, "ram": 110 * GIB}, 0.8) for row in full_rows(["glm3"], 1560)
    )
    assert all("nothing fits by estimate" in sentence for sentence in (none, zero2, zero3))
    assert "95.0 GiB where the card has 61.3" in none and "ds_zero3_offload.json" in zero3


def test_files():
    row = {"files": FILES, "accumulation": 8}
    assert ways(row)[0] == (ZERO2, 1) and [count for _, count in ways(row)[1:]] == [8] * 4 + [1] * 4
    pinned, unpinned = ds_file("ds_zero3_offload.json"), ds_file("ds_zero3_offload.json" + UNPINNED)
    sections = ("offload_optimizer", "offload_param")
    assert all(pinned["zero_optimization"][name]["pin_memory"] for name in sections)
    assert not any(unpinned["zero_optimization"][name]["pin_memory"] for name in sections)


def test_steps_are_full():
    row = small_row("throughput", batch=4)
    records, planned = plan_steps(row, {**row, "accumulation": 2}, 3)
    assert [len(micro_batches) for _, micro_batches in planned] == [2, 2, 2]
    assert len(records) >= sum(len(batch) for _, step in planned for batch in step)
    for tokens, step in planned:
        assert tokens == sum(len(sample["input_ids"]) for batch in step for sample in batch)
        assert 0.6 * 8 * LENGTH < tokens <= 8 * LENGTH


@pytest.mark.parametrize("mode", MODES)
def test_operations_of_a_step(mode):
    """6 for each weight and token where all is trained, 4 where only LoRA is; recomputation is added."""
    rows = encode(mode, make_records("long", 2, LENGTH), LENGTH)
    for method, times in (("all", 6), ("lora", 4)):
        config, parameters = prepared(mode, method, 4, 512, 512)
        matrices = {
            name: shape[0] * shape[1]
            for name, shape, _ in parameters
            if len(shape) == 2 and "layers." in name and "lora" not in name
        }
        # behind the last layer's attention there are supervised tokens only
        supervised = sum(label != -100 for row in rows for label in row["labels"][1:]) / (2 * LENGTH)
        behind = sum(n for name, n in matrices.items() if "layers.3." in name and "query_key_value" not in name)
        weights = sum(matrices.values()) - (1 - supervised) * behind
        needed, done = operations(mode, method, config, [[row] for row in rows], recomputed=0)
        assert needed == done
        per_token = needed / (2 * LENGTH)
        assert times * weights < per_token < 1.25 * times * weights
        needed_again, again = operations(mode, method, config, [[row] for row in rows], recomputed=4)
        assert needed_again == needed and 2 * weights < (again - needed) / (2 * LENGTH) < 2.5 * weights


def test_figures_of_a_run():
    row = small_row("memory")
    _, planned = plan_steps(row, row, 3)
    seconds = (5.0, 0.5, 0.25)
    metrics = [
        {"tokens_per_second": tokens / time, "loss": 8.0, "peak_memory_bytes": 1}
        for (tokens, _), time in zip(planned, seconds, strict=True)
    ]
    peaks = {"allocated": 10 * GIB, "on_card": 13 * 10**9, "ram": GIB}
    config, _ = prepared("glm3", "lora", **SMALL)
    result = card_run.figures({**row, "estimated": 9 * GIB}, metrics, peaks, planned, config, CARD, 1)
    assert result["tokens_per_second"] == pytest.approx(2 * LENGTH / 0.75, abs=0.1)  # the first step does not count
    assert result["seconds_per_step"] == 0.375
    assert result["error"] == pytest.approx(-0.1)
    assert result["ratio"] == pytest.approx(13 / 20)
    needed = result["operations_per_token"] * 2 * LENGTH
    assert result["utilization"] == pytest.approx(needed / 0.75 / CARD["matrix_rate"])
    assert result["hardware_utilization"] > result["utilization"]  # every layer is recomputed

    row |= {**result, "tried": [{"batch": 4, "failed": "no room"}], "real": True}
    assert "2023: 20 GB, ratio 0.65 (<= 0.7: met)" in line_of(row) and "batch 4: no room" in line_of(row)
    failed = {**small_row("throughput"), "failed": "error"}
    table = "\n".join(tables([row, failed, {**row, "kind": "full"}]))
    assert "| ChatGLM3-6B, LoRA | 2 | 20 | 1560 | 128 | 13.0 | 0.65 | 10.0 | 0.54 |" in table
    assert table.count("\n|") == 6
    assert line_of(failed).endswith(": error") and "zero2" in line_of(failed)


def test_the_page_has_what_is_estimated(tmp_path):
    words = ["--work_dir", str(tmp_path), "--plan", "--gpu_memory", "80", "--rows", "memory", "--modes", "glm", "glm2"]
    options = real_size.read_options(words)
    rows = [real_size.measure(row, CARD, options) for row in real_size.wanted_rows(options)]
    table = "\n".join(tables(rows)).strip()
    assert table.count("\n") == 1 + 14
    for page in ("performance.md", "performance.zh-CN.md"):
        assert table in (REPOSITORY / "docs" / page).read_text(encoding="utf-8"), page


def test_a_batch_without_room_is_halved(monkeypatch, tmp_path):
    ran = []

    def train_row(row, base, card, options):
        ran.append(row["batch"])
        return {**row, "failed": "rank 0: the GPU memory is full"} if row["batch"] > 1 else {**row, "loss": 1.0}

    monkeypatch.setattr(real_size, "train", train_row)
    options = real_size.Options(real_size.RunOptions(**SMALL, max_len=LENGTH, work_dir=str(tmp_path)))
    measured = real_size.train_until_it_fits(small_row("throughput"), tmp_path, CARD, options)
    assert ran == [4, 2, 1] and "failed" not in measured
    assert [attempt["batch"] for attempt in measured["tried"]] == [4, 2]


def test_rows_that_tell_most_come_first_and_none_starts_too_late(tmp_path):
    run = real_size.RunOptions(
        **SMALL, work_dir=str(tmp_path), modes=("glm", "glm3"), rows=real_size.KINDS, minutes=0.5
    )
    options = real_size.Options(run)
    rows = real_size.wanted_rows(options)
    assert [row["mode"] for row in rows] == sorted((row["mode"] for row in rows), key=["glm", "glm3"].index)
    assert [(row["kind"], row["method"]) for row in rows[:3]] == [("throughput", "lora")] * 2 + [("memory", "lora")]
    assert len(rows) == sum(len(real_size.rows_of(mode, options)) for mode in run.modes)
    measured = list(real_size.measure_in_time(rows, CARD, options))
    assert len(measured) == len(rows) and not any(tmp_path.iterdir())
    assert all(row["failed"] == "not run: 30 s of --minutes 0.5 were left" for row in measured)
    assert real_size.base_bytes("glm3", real_size.RunOptions()) > 12e9


def test_why_a_command_failed(tmp_path):
    log = tmp_path / "log"
    code = "import sys; print('error: --max_len 3 is short: raise it.'); print('RuntimeError: launcher'); sys.exit(3)"
    assert runs.run([sys.executable, "-c", code], log, 1).startswith("--max_len 3 is short: raise it. (see ")
    assert runs.run([sys.executable, "-c", "1 / 0; "], log, 1).startswith("ZeroDivisionError: division by zero")
    assert "stopped after 0.01 minutes" in runs.run([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.01)
    assert runs.run([sys.executable, "-c", ""], log, 1) is None
    assert "for lack of memory" in runs.sentence_of("exits with return code = -9", 1)


@pytest.mark.slow
def test_a_measured_run_writes_no_checkpoint(tmp_path):
    options = launch.train_options("glm3", "lora", tmp_path / "output", max_steps=2, save_state_step=1)
    result = launch.fork(["benchmarks/card_run.py", *launch.flags(options)], 1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "output" / "card.json").read_text())["ram"] > 10**8
    assert len(launch.metrics(tmp_path / "output")) == 2
    assert not [*(tmp_path / "output").glob("epoch-*"), *(tmp_path / "output").glob("state/*")]


def test_rate_of_large_products():
    card = card_run.look_at_card()
    assert card["matrix_rate"] > 1e8 and card["memory"] > 0


@pytest.mark.slow
def test_rows_run_at_small_shapes(tmp_path):
    output = tmp_path / "real_size.json"
    words = {
        "num_layers": 2, "hidden_size": 128, "vocab_size": 4096, "max_len": LENGTH, "rows": "throughput",
        "methods": "lora", "samples": "short", "largest_batch": 1, "steps": 3, "warm_up": 1,
        "work_dir": tmp_path / "work", "output": output,
    }  # fmt: skip
    result = launch.fork(["benchmarks/real_size.py", *launch.flags(words)])
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = json.loads(output.read_text())["results"]
    assert row["batch"] == 1 and row["allocated"] > 0 and row["tokens_per_second"] > 0, row
