"""--cache_frozen_features: what it is for, and where its file lies."""

import numpy as np
import pytest
import torch

from data.features import FeatureDataset, feature_bytes, is_whole
from data.tokenize import TokenizedDataset, tokenize_file
from errors import UserError
from parameters import Parameter
from training.features import first_trained_block, make_room, publish


def parameters(*trained):
    names = ["word_embeddings.weight", *(f"layers.{i}.dense.weight" for i in range(12)), "final_layernorm.weight"]
    return [Parameter(f"transformer.{name}", (2, 2), any(part in name for part in trained)) for name in names]


def test_the_first_block_that_is_trained():
    assert first_trained_block(parameters("layers.10.", "layers.11.", "final_layernorm")) == 10
    for trained, reason in ((("word_emb", "layers.3."), "transformer.word_embeddings.weight is trained"),
                          (("layers.0.", "layers.11."), "transformer.layers.0.dense.weight is trained"),
                          (("final_layernorm",), "no layer is trained")):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            first_trained_block(parameters(*trained))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_their_features(tmp_path, dtype):
    path = tmp_path / "train.json"
    path.write_text('{"instruction": "a", "output": "b"}\n' * 3)
    rows = [{"input_ids": [1] * n, "labels": [-100] + [1] * (n - 1), "truncated": False} for n in (4, 2, 5)]
    dataset = TokenizedDataset(tokenize_file(path, lambda records: rows, tmp_path / "cache", key="k")).select([2, 0])
    file = tmp_path / "features.bin"
    size = feature_bytes(dataset, 8, dtype)
    assert size == 9 * 8 * dtype.itemsize and not is_whole(file, size)
    make_room(file, size)
    written = FeatureDataset(dataset, file, 8, dtype)
    for i in range(2):
        written.of(i)[:] = torch.full((int(dataset.lengths[i]), 8), float(i + 1))
    assert is_whole(file, size) and not is_whole(file, size + 1)
    read = FeatureDataset(dataset, file, 8, dtype)
    assert len(read) == 2 and read.place(1).endswith(":1")
    assert read[0].keys() == {"input_ids", "labels", "features"} and read[0]["features"].dtype == dtype
    assert [float(read[i]["features"].sum()) for i in range(2)] == [5 * 8, 2 * 4 * 8]
    assert np.array_equal(read.lengths, dataset.lengths)


def test_a_disk_without_room_is_told_first(tmp_path):
    with pytest.raises(UserError, match=r"GB free and --cache_frozen_features needs 1,000,000,000\.00 GB"):
        make_room(tmp_path / "features.tmp", 10**18)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cache_frozen_features cannot write"):
        make_room(tmp_path / "file" / "features.tmp", 10)


def test_a_finished_file_is_not_replaced(tmp_path):
    """Another machine may have mapped it; one that was cut short is replaced."""
    path = tmp_path / "features.bin"
    for number, content in enumerate((b"first", b"after", b"third")):
        temporary = tmp_path / f"features.{number}.tmp"
        temporary.write_bytes(content)
        if number == 2:
            path.write_bytes(b"cut")
        before = path.stat().st_ino if path.exists() else None
        publish(temporary, path, 5)
        assert path.read_bytes() == (b"third" if number == 2 else b"first") and not temporary.exists()
        assert (path.stat().st_ino == before) == (number == 1)
