"""data/loading.py: every sample once, steps that do not depend on how they are split, batches as planned."""

import random
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.collate import collate
from data.loading import AHEAD, FILLER, batches, map_ahead, plan_epoch
from data.records import read_records
from data.tokenize import TokenizedDataset, tokenize_file
from modes import MODES
from tests import golden
from tests.launch import REPOSITORY

SPLITS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))  # micro, accumulation, world


def sizes(count, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 50, count)
    return lengths, rng.integers(0, lengths)


def end_to_end(samples):
    return collate(samples, lambda ids: (np.arange(len(ids)), 0))


def plans(lengths, supervised, micro, accumulation, world, epoch=0, seed=1234, **changes):
    return [
        plan_epoch(
            lengths,
            supervised,
            epoch=epoch,
            seed=seed,
            micro_batch_size=micro,
            accumulation=accumulation,
            world_size=world,
            rank=rank,
            **changes,
        )
        for rank in range(world)
    ]


def rows_of(plan, step):
    return [row for rank in plan for rows in rank[step].micro_batches for row in rows if row != FILLER]


@settings(deadline=None)
@given(st.integers(0, 60), SPLITS, st.integers(-5, 2**40))
def test_every_sample_once_and_ranks_in_step(count, split, seed):
    micro, accumulation, world = split
    lengths, supervised = sizes(count)
    plan = plans(lengths, supervised, *split, seed=seed)
    assert {len(rank) for rank in plan} == {-(-count // (micro * accumulation * world))}
    seen = []
    for k in range(len(plan[0])):
        passes = {len(rank[k].micro_batches) for rank in plan}
        assert len(passes) == 1 and 1 <= passes.pop() <= accumulation
        for rank in plan:
            for rows in rank[k].micro_batches:
                assert rows == [FILLER] or (1 <= len(rows) <= micro and FILLER not in rows)
        rows = rows_of(plan, k)
        for rank in plan:
            assert rank[k].num_samples == len(rows) > 0
            assert rank[k].num_items == sum(supervised[i] for i in rows)
            assert rank[k].num_tokens == sum(lengths[i] for i in rows)
        seen += rows
    assert sorted(seen) == list(range(count))


@settings(deadline=None)
@given(st.integers(1, 60), SPLITS, st.randoms())
def test_steps_do_not_depend_on_the_split(count, split, random):
    lengths, supervised = sizes(count)
    shuffled = list(split)
    random.shuffle(shuffled)
    whole = (split[0] * split[1] * split[2], 1, 1)
    expected = plans(lengths, supervised, *whole)
    for other in (split, shuffled, (1, 1, whole[0]), (1, whole[0], 1)):
        plan = plans(lengths, supervised, *other)
        assert len(plan[0]) == len(expected[0])
        for k, step in enumerate(expected[0]):
            assert sorted(rows_of(plan, k)) == sorted(step.micro_batches[0])
            assert plan[0][k].num_items == step.num_items


@settings(deadline=None)
@given(st.integers(1, 60), SPLITS, st.integers(49, 200))
def test_packed_rows_are_full_and_do_not_depend_on_the_split(count, split, row_length):
    """Every sample once, no row over its length, the same rows in the same order however a step is split."""
    lengths, supervised = sizes(count)
    micro, accumulation, world = split
    plan = plans(lengths, supervised, *split, row_length=row_length)
    whole = plans(lengths, supervised, micro * accumulation * world, 1, 1, row_length=row_length)[0]
    assert [sorted(rows_of(plan, k)) for k in range(len(whole))] == [
        sorted(planned.micro_batches[0]) for planned in whole
    ]
    assert sorted(i for k in range(len(whole)) for i in rows_of(plan, k)) == list(range(count))
    one_by_one = plans(lengths, supervised, 1, 1, 1, row_length=row_length)[0]
    for step in one_by_one:
        assert step.num_rows == 1 and lengths[step.micro_batches[0]].sum() == step.num_tokens <= row_length
        assert step.num_items == supervised[step.micro_batches[0]].sum()
    assert sum(step.num_rows for step in whole) == len(one_by_one) == sum(step.num_rows for step in plan[0])


def test_packed_rows_resume_behind_any_row():
    lengths, supervised = sizes(300)
    whole = plans(lengths, supervised, 1, 1, 1, row_length=100)[0]
    seen = 0
    for k, step in enumerate(whole[:20]):
        assert plans(lengths, supervised, 1, 1, 1, row_length=100, skip=seen)[0] == whole[k:]
        seen += step.num_samples
    halves = plans(lengths, supervised, 2, 1, 1, row_length=100, skip=seen)[0]
    assert sorted(halves[0].micro_batches[0]) == sorted(whole[20].micro_batches[0] + whole[21].micro_batches[0])


@pytest.mark.parametrize("file", ["spo_0.json", "samples/reviews_train.json"])
@pytest.mark.parametrize("mode", MODES)
def test_packing_wastes_little_of_the_sample_sets(mode, file):
    records = [record for _, record in read_records(REPOSITORY / "data" / file)]
    rows = MODES[mode].encode_batch(golden.tokenizer(mode), records, max_len=1560, max_src_len=1024)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    plan = plans(lengths, lengths, 1, 1, 1, row_length=1560)[0]
    assert lengths.sum() / (1560 * len(plan)) >= 0.97


def test_order_changes_with_epoch_and_seed_only():
    lengths, supervised = sizes(40)
    first = plans(lengths, supervised, 2, 2, 1)
    assert plans(lengths, supervised, 2, 2, 1) == first
    assert plans(lengths, supervised, 2, 2, 1, epoch=1) != first
    assert plans(lengths, supervised, 2, 2, 1, seed=1235) != first
    assert plans(lengths, supervised, 2, 2, 1, seed=1235) != plans(lengths, supervised, 2, 2, 1, seed=1234, epoch=1)


def test_longest_first_and_alike_across_ranks():
    lengths = np.arange(1, 9)
    plan = plans(lengths, lengths, micro=2, accumulation=2, world=2)
    assert [[sorted(lengths[rows].tolist()) for rows in rank[0].micro_batches] for rank in plan] == [
        [[7, 8], [3, 4]],
        [[5, 6], [1, 2]],
    ]


def test_last_step_has_filler_rows_only_where_nothing_is_left():
    lengths, supervised = sizes(5)
    plan = plans(lengths, supervised, micro=1, accumulation=4, world=2)  # one step of 5 samples: 3 passes, 2 ranks
    assert [len(rank[0].micro_batches) for rank in plan] == [3, 3]
    assert [rank[0].micro_batches.count([FILLER]) for rank in plan] == [0, 1]


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('{"instruction": "a", "output": "b"}\n' * 7)

    def encode_batch(records):
        rows = [([10 * n + i for i in range(n + 2)], n) for n in range(1, len(records) + 1)]
        return [{"input_ids": ids, "labels": [-100] * n + ids[n:], "truncated": n == 3} for ids, n in rows]

    return TokenizedDataset(tokenize_file(path, encode_batch, tmp_path / "cache", key="k"))


def test_batches_follow_the_plan(dataset):
    plan = plans(dataset.lengths, dataset.supervised, micro=2, accumulation=2, world=1)[0]
    seen = []
    for step, micro_batches in batches(dataset, plan, end_to_end):
        items = 0
        for rows, batch in zip(step.micro_batches, micro_batches, strict=True):
            expected = end_to_end([dataset[i] for i in rows])
            torch.testing.assert_close(batch, expected, rtol=0, atol=0)
            items += int((batch["labels"][:, 1:] != -100).sum())
            seen += rows
        assert items == step.num_items
    assert sorted(seen) == list(range(7))


def test_filler_rows_have_nothing_to_learn(dataset):
    short = dataset.select([0])
    plan = plans(short.lengths, short.supervised, micro=1, accumulation=1, world=2)
    for rank, labels in ((0, [-100, 11, 12]), (1, [-100, -100, -100])):
        ((step, micro_batches),) = [(s, list(m)) for s, m in batches(short, plan[rank], end_to_end)]
        assert step.num_items == 2
        expected = {
            "input_ids": torch.tensor([[10, 11, 12]]),
            "labels": torch.tensor([labels]),
            "supervised": torch.tensor([1, 2] if rank == 0 else [], dtype=torch.long),
            "position_ids": torch.tensor([[0, 1, 2]]),
            "segments": [(3, -1, 0)],
        }
        torch.testing.assert_close(micro_batches, [expected], rtol=0, atol=0)


def test_micro_batches_left_over_do_not_shift_the_next_step(dataset):
    plan = plans(dataset.lengths, dataset.supervised, micro=1, accumulation=3, world=1)[0]
    for step, micro_batches in batches(dataset, plan, end_to_end):
        row = next(micro_batches)["input_ids"][0].tolist()
        assert row == dataset[step.micro_batches[0][0]]["input_ids"].tolist()


def test_starts_at_a_later_step(dataset):
    plan = plans(dataset.lengths, dataset.supervised, micro=1, accumulation=2, world=1)[0]
    collate_fn = end_to_end
    whole = [(step, list(rows)) for step, rows in batches(dataset, plan, collate_fn)]
    rest = [(step, list(rows)) for step, rows in batches(dataset, plan, collate_fn, first_step=2, num_workers=1)]
    assert [step for step, _ in rest] == plan[2:]
    torch.testing.assert_close([rows for _, rows in rest], [rows for _, rows in whole[2:]], rtol=0, atol=0)
    assert list(batches(dataset, plan, collate_fn, first_step=len(plan))) == []


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_background_threads_prepare_the_same_batches(num_workers, dataset):
    """No process is started, which a signal to the group would reach, and no random number is drawn."""
    plan = plans(dataset.lengths, dataset.supervised, micro=2, accumulation=1, world=3)[2]
    assert plan[-1].micro_batches == [[FILLER]]
    alone = [list(rows) for _, rows in batches(dataset, plan, end_to_end)]
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    seen, children = [], psutil.Process().children()
    for _, rows in batches(dataset, plan, end_to_end, num_workers=num_workers):
        seen.append(list(rows))
        assert background_threads() and psutil.Process().children() == children
    torch.testing.assert_close(seen, alone, rtol=0, atol=0)
    now = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert (now[0] == generators[0]).all() and now[1:] == generators[1:]
    assert not background_threads()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_results_are_computed_in_advance_and_no_more_than_that(num_threads):
    started = []
    results = map_ahead(lambda item: started.append(item) or item, range(100), num_threads)
    for item in range(10):
        assert next(results) == item
        give_up = time.time() + 10
        while len(started) < 1 + item + AHEAD * num_threads and time.time() < give_up:
            time.sleep(0.001)
        assert sorted(started) == list(range(1 + item + AHEAD * num_threads))  # while this thread does something else
    results.close()
    assert not background_threads()


@pytest.mark.parametrize("num_threads", [0, 1, 2])
def test_an_error_comes_when_its_result_is_due(num_threads):
    def work(item):
        if item == 3:
            raise OSError(5, "Input/output error", "tokens.bin")
        return item

    results = map_ahead(work, range(100), num_threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="Input/output error: 'tokens.bin'"):
        next(results)
    assert not background_threads()


def test_a_run_that_stops_in_an_epoch_leaves_no_thread(dataset):
    plan = plans(dataset.lengths, dataset.supervised, micro=1, accumulation=1, world=1)[0]
    for _, micro_batches in batches(dataset, plan, end_to_end, num_workers=2):
        next(micro_batches)
        break
    assert not background_threads()
