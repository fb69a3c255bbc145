"""checkpoints/record.py: a record that is broken, or of a later version, is refused."""

import json

import pytest

from checkpoints.record import make_record, read_record
from errors import UserError

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


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', json.dumps({**RECORD, "base": "x"})])
def test_a_broken_record(tmp_path, content):
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match="checkpoint.json"):
        read_record(tmp_path)


def test_a_record_of_a_later_version(tmp_path):
    (tmp_path / "checkpoint.json").write_text(json.dumps({**RECORD, "format": 99}))
    with pytest.raises(UserError, match="later version"):
        read_record(tmp_path)
