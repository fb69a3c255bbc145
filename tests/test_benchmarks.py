"""The other sides of the training benchmark do the same work: same losses and logits, operations as torch counts."""

import peft
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loop_of_2023, trl_side
from benchmarks import train as benchmark
from benchmarks.arithmetic import Trained, end_to_end, flops_of, padded, read_shape
from benchmarks.plot import bars, draw, training_table
from modes import MODES
from scripts.card_flags import table as card_table
from tests import golden, launch

METHODS = ("freeze", "ptuning", "lora", "all")


def make_rows(mode: str, count: int = 4) -> list[dict]:
    """Rows of different lengths."""
    rows = MODES[mode].encode_batch(golden.tokenizer(mode), golden.RECORDS[:count], max_len=256, max_src_len=160)
    return [{name: list(row[name]) for name in ("input_ids", "labels")} for row in rows]


def loop_options(mode: str, train_type: str, **changes) -> loop_of_2023.LoopOptions:
    """What the loop of 2023 trains of a golden base."""
    return loop_of_2023.LoopOptions(
        mode=mode, train_type=train_type, model_name_or_path=str(golden.base_path(mode)), lora_dim=4, lora_alpha=8,
        freeze_module_name=("layers.3.",), pre_seq_len=4, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("train_type", METHODS)
@pytest.mark.parametrize("mode", launch.MODES)
def test_loss_of_the_loop_is_ours(mode, train_type):
    rows, pad_id = make_rows(mode), golden.tokenizer(mode).pad_token_id
    model = loop_of_2023.load(loop_options(mode, train_type))
    loop_of_2023.recompute_everything(model)
    model.eval()  # the prefix has a dropout
    ids, labels = loop_of_2023.pad(rows, pad_id)
    theirs, ours = loop_of_2023.loss_of(model, ids, labels), model(input_ids=ids, labels=labels).loss
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)


@pytest.mark.slow
def test_losses_of_the_loop_are_those_of_train_py(tmp_path):
    options = launch.train_options("glm3", "all", tmp_path / "ours", num_train_epochs=1, learning_rate=1e-3)
    options |= {"per_device_train_batch_size": 2, "max_steps": 3, **benchmark.LENGTHS}
    launch.train(options)
    split = benchmark.TrainingOptions(seed=1234, batch_size=2, accumulation=1)
    steps, pad_id = benchmark.plan("glm3", golden.base_path("glm3"), golden.ROOT / "samples.jsonl", 1, split)
    loop = loop_options("glm3", "all", learning_rate=1e-3, warmup_ratio=0)
    model = loop_of_2023.load(loop)
    loop_of_2023.recompute_everything(model)
    theirs = loop_of_2023.train(model, steps[:3], pad_id, loop)
    assert [loss for loss, *_ in theirs] == pytest.approx(launch.losses(tmp_path / "ours"), abs=1e-5)


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_logits_of_the_other_implementation_are_ours(mode):
    ids, _ = loop_of_2023.pad(make_rows(mode), golden.tokenizer(mode).pad_token_id)
    theirs = trl_side.load(mode, golden.base_path(mode)).eval()(input_ids=ids, use_cache=False).logits
    ours = golden.shared_model(mode)(input_ids=ids, use_cache=False).logits
    assert golden.relative_error(theirs, ours) < 1e-4


def counted(model, work) -> int:
    """Operations of the matrix products of `work` and its backward by torch's counter, attention among them."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        work().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("train_type", METHODS)
@pytest.mark.parametrize("mode", ["glm", "glm3"])
def test_operations_are_those_that_torch_counts(mode, train_type):
    rows, pad_id = make_rows(mode), golden.tokenizer(mode).pad_token_id
    model = loop_of_2023.load(loop_options(mode, train_type))
    config = model.config
    ids, labels = loop_of_2023.pad(rows, pad_id)
    layers = config.num_hidden_layers
    trained = Trained.by(train_type, layers, lora_dim=4, prefix_length=4)
    if train_type == "freeze":
        assert list(trained.layers) == [0, 1, 2, 3]
        trained = Trained([3])
    shape, passes = read_shape(config, gated=mode != "glm"), [padded(*ids.shape, trained.prefix_length)]

    ours = counted(model, lambda: model(input_ids=ids, labels=labels, use_cache=False).loss)
    asked_for = int((labels[:, 1:] != -100).sum())
    expected = flops_of(
        shape, passes, trained, logits=asked_for, last=asked_for, embeddings_in_backward=train_type == "all",
        lowest=3 if train_type == "freeze" else 0,
    )  # fmt: skip
    assert ours == pytest.approx(expected, rel=0.01)

    loop_of_2023.recompute_everything(model)
    model.train()
    theirs = counted(model, lambda: loop_of_2023.loss_of(model, ids, labels))
    expected = flops_of(shape, passes, trained, logits=ids.numel(), embeddings_in_backward=True, recomputed=layers)
    assert theirs == pytest.approx(expected, rel=0.01)
    assert isinstance(model, peft.PeftModel) == (train_type == "lora")


def test_pairs_of_samples_end_to_end():
    assert end_to_end([(4, -1, 0)]) == (4, 10)  # a triangle
    assert end_to_end([(4, -1, 0), (3, 0, 0)]) == (7, 10 + 3 * 7)  # the second sees the first, under a mask
    assert end_to_end([(5, -1, 3)]) == (5, 3 * 3 + 2 * 5)  # a prompt that sees itself both ways
    assert end_to_end([(4, -1, 0)], prefix_length=2) == (4, 4 * 6)
    assert padded(2, 4) == (8, 32) and padded(2, 4, 3) == (8, 56) and padded(2, 4, causal=True) == (8, 20)


def test_steps_keep_their_records():
    rows = [{"input_ids": [i] * (1 + i % 5), "labels": [i] * (1 + i % 5)} for i in range(24)]
    steps = [[rows[0:4], rows[4:8]], [rows[8:12], rows[12:16]], [rows[16:20], rows[20:24]]]
    flat = lambda steps: [row["input_ids"] for step in steps for batch in step for row in batch]  # noqa: E731
    drawn, by_length = benchmark.as_drawn(steps, 1), trl_side.in_order(steps, "by_length", 1)
    for order in (drawn, by_length):
        assert sorted(flat(order)) == sorted(flat(steps))
        assert [[len(batch) for batch in step] for step in order] == [[4, 4]] * 3
    assert all(sorted(flat([a])) == sorted(flat([b])) for a, b in zip(drawn, steps, strict=True))
    widths = [{len(row["input_ids"]) for row in batch} for step in by_length for batch in step]
    assert max(map(len, widths)) <= 2  # rows of one length, or of two next to one another
    assert trl_side.in_order(steps, "given", 1) == steps


def test_speed_is_all_tokens_over_all_seconds():
    rows = [{"tokens_per_second": 100.0}, {"tokens_per_second": 50.0}]  # 1 s and 4 s
    assert benchmark.speed(rows, [100, 200]) == pytest.approx(60.0)


def test_the_page_has_what_was_measured(tmp_path):
    """The committed results can be drawn, and the tables of docs/performance.md are those that the commands print."""
    results = launch.REPOSITORY / "benchmarks" / "results"
    ratios = bars(sorted(results.glob("*.json")))
    assert len(ratios) >= 20 and all(ratio > 1 for _, ratio in ratios)
    draw(ratios, [1.0, 2.0], tmp_path / "performance.png")
    assert (tmp_path / "performance.png").stat().st_size > 10_000
    tables = "\n".join(training_table(sorted(results.glob("train_*.json")))), "\n".join(card_table())
    for page in ("performance.md", "performance.zh-CN.md"):
        text = (launch.REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        assert all(table in text for table in tables), page
