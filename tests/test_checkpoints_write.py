"""checkpoints/write.py: a checkpoint is written atomically, and records what it is."""

import json
import shutil

import pytest

from checkpoints.record import check_files, make_record, read_record
from checkpoints.side_files import copy_beside
from checkpoints.write import remove_old, save_checkpoint, step_of
from errors import UserError
from files import remove_leftovers, whole_directory
from modes.directory import Base

RECORD = make_record(
    mode="glm2",
    train_type="lora",
    method={"lora_dim": 4},
    base_path="base",
    fingerprint="abc",
    template="{instruction}",
    options={"seed": 1},
    precision="fp32",
)


def write_marker(directory, tensors):
    (directory / "tensors.txt").write_text("".join(name for name, _ in tensors))


def test_record_round_trip(tmp_path):
    save_checkpoint(tmp_path / "epoch-1-step-10", iter([("a", 1), ("b", 2)]), write_marker, RECORD, is_main=True)
    record = read_record(tmp_path / "epoch-1-step-10")
    assert record == {**RECORD, "files": {"tensors.txt": 2}}
    check_files(tmp_path / "epoch-1-step-10", record)
    assert (tmp_path / "epoch-1-step-10" / "tensors.txt").read_text() == "ab"
    (tmp_path / "epoch-1-step-10" / "tensors.txt").write_text("a")
    with pytest.raises(UserError, match=r"tensors\.txt was truncated or changed .*\(1 bytes, not 2\)"):
        check_files(tmp_path / "epoch-1-step-10", record)
    (tmp_path / "epoch-1-step-10" / "tensors.txt").unlink()
    with pytest.raises(UserError, match=r"tensors\.txt is missing, "):
        check_files(tmp_path / "epoch-1-step-10", record)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-1-step-10"]
    assert read_record(tmp_path) is None


def test_other_ranks_write_nothing_but_take_part(tmp_path):
    read = []
    tensors = (read.append(i) or ("name", i) for i in range(3))
    save_checkpoint(tmp_path / "epoch-1-step-10", tensors, write_marker, RECORD, is_main=False)
    assert read == [0, 1, 2] and not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_one_before_and_reads_all_tensors(tmp_path):
    directory = tmp_path / "epoch-1-step-10"
    save_checkpoint(directory, iter([("a", 1)]), write_marker, RECORD, is_main=True)
    read = []

    def full_disk(temporary, tensors):
        next(tensors)
        (temporary / "half").write_text("x")
        raise OSError(28, "No space left on device")

    tensors = (read.append(i) or ("name", i) for i in range(3))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(directory, tensors, full_disk, RECORD, is_main=True)
    assert read == [0, 1, 2]  # a rank that stopped here would leave the others waiting
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-1-step-10"]
    assert (directory / "tensors.txt").read_text() == "a"


def test_what_is_replaced_is_replaced_at_once(tmp_path):
    target = tmp_path / "target"
    with whole_directory(target) as temporary:
        (temporary / "old").write_text("1")
    with whole_directory(target) as temporary:
        assert (target / "old").exists()
        (temporary / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_files_beside_the_weights(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "config.json").write_text("{}")
    (source / "modeling_chatglm.py").write_text("official = True")
    base = Base(source, "glm3", {"torch_dtype": "float16", "num_layers": 4}, ())
    copy_beside(base, target, {"torch_dtype": "bfloat16", "pre_seq_len": 4})
    assert json.loads((target / "config.json").read_text()) == {
        "torch_dtype": "bfloat16",
        "num_layers": 4,
        "pre_seq_len": 4,
    }
    assert (target / "modeling_chatglm.py").read_text() == "official = True"


def test_limit_removes_the_oldest(tmp_path):
    saved = [tmp_path / f"epoch-1-step-{step}" for step in (2, 4, 10)]
    for directory in saved:
        directory.mkdir()
    assert remove_old(saved, None) == saved
    assert remove_old(saved, 2) == saved[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1-step-10", "epoch-1-step-4"]
    assert [step_of(path) for path in saved] == [2, 4, 10] and step_of(tmp_path) == -1


def checkpoint(parent, step, **changes):
    """A checkpoint directory with a record."""
    directory = parent / f"epoch-1-step-{step}"
    save_checkpoint(directory, iter([("a", 1)]), write_marker, {**RECORD, "step": step, **changes}, is_main=True)
    return directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_limit_counts_what_was_written_before_a_resume(tmp_path):
    """Of the same run, up to the step at hand: all else stays, whoever wrote it."""
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 5, options={"seed": 2})
    checkpoint(tmp_path, 6, run="another")
    (tmp_path / "epoch-1-step-7").mkdir()
    (tmp_path / "epoch-1-step-7" / "checkpoint.json").write_text("{")
    checkpoint(tmp_path, 12)
    (tmp_path / "state").mkdir()
    stay = remove_old([checkpoint(tmp_path, 8)], 2)
    assert [path.name for path in stay] == ["epoch-1-step-4", "epoch-1-step-8"]
    earlier = [f"epoch-1-step-{step}" for step in (12, 4, 5, 6, 7, 8)]
    assert names(tmp_path) == [*earlier, "state"]
    stay = remove_old([*stay, checkpoint(tmp_path, 10, options={"seed": 1, "num_train_epochs": 9})], 1)
    assert [path.name for path in stay] == ["epoch-1-step-10"]
    assert names(tmp_path) == ["epoch-1-step-10", *[f"epoch-1-step-{step}" for step in (12, 5, 6, 7)], "state"]


def test_a_checkpoint_that_the_user_removed(tmp_path):
    saved = [checkpoint(tmp_path, step) for step in (2, 4, 6)]
    shutil.rmtree(saved[0])
    assert remove_old(saved, 1) == saved[2:] and names(tmp_path) == ["epoch-1-step-6"]


def test_leftovers_of_killed_processes(tmp_path):
    for name in (".epoch-1-step-2.tmp", ".epoch-1-step-4.old", ".epoch-1-step-5", ".step-3.tmp", "epoch-1-step-6"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "epoch-*-step-*")
    assert names(tmp_path) == [".epoch-1-step-5", ".step-3.tmp", "epoch-1-step-6"]
