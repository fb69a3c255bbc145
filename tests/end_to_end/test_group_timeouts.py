"""--timeout_minutes reaches every process group: torch's, DeepSpeed's, and that of the stop request."""

import json
import re

import pytest

from tests import launch

HPZ = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}  # DeepSpeed makes a group for it


@pytest.mark.slow
@pytest.mark.parametrize("sections", [None, HPZ], ids=["zero2", "hpz"])
def test_every_group(sections, tmp_path):
    options = launch.train_options("glm2", "lora", tmp_path / "output", max_steps=1, timeout_minutes=3)
    if sections:
        (tmp_path / "ds.json").write_text(json.dumps(sections))
        options["ds_file"] = tmp_path / "ds.json"
    result = launch.fork(["tests/end_to_end/group_timeouts.py", *launch.flags(options)], 2)
    assert result.returncode == 0, result.stdout + result.stderr
    found = dict(re.findall(r"^rank (\d): (.*)$", result.stdout, re.MULTILINE))
    assert found.keys() == {"0", "1"} and found["0"] == found["1"]
    timeouts = found["0"].split()
    assert set(timeouts) == {str(2 * 180 + 60)} and len(timeouts) == (2 if sections else 1)
