"""data/collate.py: whole tensors, what is shared, and models that see of it what they would see sample by sample."""

from functools import partial

import numpy as np
import pytest
import torch

from data.collate import MIN_SHARED, collate, group_by_prompt
from modes import MODES
from tests import golden

SAMPLES = [
    {"input_ids": np.array([11, 12, 13]), "labels": np.array([11, 12, 13])},
    {"input_ids": [21, 22, 23, 24, 25], "labels": [-100, -100, -100, 24, 25]},
]
PROMPT = list(range(100, 100 + MIN_SHARED))
PREFIXES = {
    "none": {},
    "keys and values": {"pre_seq_len": 6, "prefix_projection": True},
    "embeddings": {"pre_seq_len": 6, "prefix_layers": "embedding"},
}


def causal(ids):
    return np.arange(len(ids)), 0


def prompt_of_two(ids):
    return np.stack([np.arange(len(ids)), np.maximum(np.arange(len(ids)) - 1, 0)]), 2


def sample(ids, count):
    """A row whose last `count` tokens are supervised."""
    return {
        "input_ids": np.array(ids),
        "labels": np.array([-100] * (len(ids) - count) + ids[len(ids) - count :]),
    }


def check(batch, **expected):
    assert batch.keys() == {"input_ids", "labels", "supervised", "position_ids", "segments"}
    assert batch["supervised"].tolist() == [i for i, label in enumerate(batch["labels"][0].tolist()) if label != -100]
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values if name == "segments" else torch.tensor(values), rtol=0, atol=0)


def test_samples_lie_end_to_end_and_nothing_is_padded():
    check(
        collate(SAMPLES, causal),
        input_ids=[[11, 12, 13, 21, 22, 23, 24, 25]],
        labels=[[-100, 12, 13, -100, -100, -100, 24, 25]],  # no token precedes a sample's first one
        position_ids=[[0, 1, 2, 0, 1, 2, 3, 4]],
        segments=[(3, -1, 0), (5, -1, 0)],
    )
    assert SAMPLES[0]["labels"].tolist() == [11, 12, 13]


def test_two_rows_of_positions_and_a_prompt_that_sees_itself():
    check(
        collate(SAMPLES, prompt_of_two),
        position_ids=[[[0, 1, 2, 0, 1, 2, 3, 4], [0, 0, 1, 0, 0, 1, 2, 3]]],
        segments=[(3, -1, 2), (5, -1, 2)],
    )


def test_a_common_prompt_stands_once():
    samples = [sample([*PROMPT, 1, 2], 1), sample([*PROMPT, 3, 4, 5], 2)]
    check(
        collate(samples, causal),
        input_ids=[[*PROMPT, 1, 2, 3, 4, 5]],
        labels=[[-100] * MIN_SHARED + [-100, 2, -100, 4, 5]],
        position_ids=[[*range(MIN_SHARED + 2), *range(MIN_SHARED, MIN_SHARED + 3)]],
        segments=[(MIN_SHARED, -1, 0), (2, 0, 0), (3, 0, 0)],
    )
    apart = collate(samples, causal, share_prompts=False)
    assert apart["segments"] == [(MIN_SHARED + 2, -1, 0), (MIN_SHARED + 3, -1, 0)]
    assert len(collate(samples, prompt_of_two)["segments"]) == 2  # such a prompt sees what follows the common part


def test_who_predicts_a_label_is_not_shared():
    """Equal prompts, equal first answers: the token in front of the first label stays each sample's own."""
    samples = [sample([*PROMPT, 1, 2, 9], 2), sample([*PROMPT, 1, 2, 8], 2)]
    assert group_by_prompt(samples) == [([1, 0], MIN_SHARED)]
    long = [sample([*PROMPT, *range(1000 * i, 1000 * i + 40 * MIN_SHARED)], 2) for i in (1, 2)]
    assert [members for members, _ in group_by_prompt(long)] == [[0], [1]]  # too little of such rows
    assert group_by_prompt([sample(PROMPT, MIN_SHARED)] * 2) == [([0], 0), ([1], 0)]
    unsupervised = sample([*PROMPT, 1], 0)
    assert group_by_prompt([unsupervised] * 3) == [([0, 1, 2], MIN_SHARED)]  # something of each stays


def test_different_prompts_are_shared_apart():
    other_prompt = [token + 50 for token in PROMPT]
    samples = [sample([*prompt, i, 1, 2], 1) for i in range(3) for prompt in (PROMPT, other_prompt)]
    assert group_by_prompt(samples) == [([0, 2, 4], MIN_SHARED), ([1, 3, 5], MIN_SHARED)]
    assert group_by_prompt([sample([1, 2, 3, 4], 1), sample([1, 2, 3, 5], 1)]) == [([0], 0), ([1], 0)]  # too short


def rows_of(mode):
    """The golden records, and some with a common instruction."""
    question = "你现在是一个信息抽取模型,请抽取关系。"
    common = [{"instruction": question, "input": f"第{i}个句子", "output": "甲_乙_丙" * (i + 1)} for i in range(4)]
    return MODES[mode].encode_batch(golden.tokenizer(mode), golden.RECORDS + common, 200, 120)


def padded(rows):
    """What the models are given without segments."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda name, value: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])  # noqa: E731
    return {"input_ids": fill("input_ids", 3), "labels": fill("labels", -100)}


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_those_of_padded_rows(mode, prefix, share_prompts):
    """Within 1e-6 of the loss and of each gradient's norm: nothing crosses from sample to sample."""
    model, rows = golden.load_model(mode, **PREFIXES[prefix]), rows_of(mode)
    if PREFIXES[prefix]:
        torch.manual_seed(0)
        model.init_prefix()
    batch = collate(rows, partial(MODES[mode].layout, model.config), share_prompts)
    tokens = sum(len(row["input_ids"]) for row in rows)
    shares = share_prompts and mode != "glm"
    assert batch["input_ids"].shape[1] < tokens - 20 if shares else batch["input_ids"].shape[1] == tokens
    results = []
    for inputs in (padded(rows), batch):
        model.zero_grad()
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (ours, our_gradients) = results
    assert ours == pytest.approx(loss, rel=1e-6)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        if not name.endswith("query_key_value.bias"):  # that of the keys is zero but for noise
            assert (our_gradients[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_does_not_depend_on_its_neighbors(mode):
    """Its loss stays to the last digits when another one changes."""
    model, rows = golden.shared_model(mode), rows_of(mode)
    layout = partial(MODES[mode].layout, model.config)
    silent = {**rows[1], "labels": [-100] * len(rows[1]["labels"])}
    changed = {**silent, "input_ids": [*silent["input_ids"][:-3], 5, 6, 7]}
    losses = [model(**collate([rows[0], neighbor], layout), use_cache=False).loss for neighbor in (silent, changed)]
    assert losses[0] == losses[1]
