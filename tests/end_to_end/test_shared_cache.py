"""Two machines that share --data_cache_dir write it at the same time."""

import pytest

from tests import launch


@pytest.mark.slow
def test_two_machines_write_the_same_cache(tmp_path):
    """Two ranks, each the only one of its machine by what the launcher says; then two on one machine find the file."""
    options = launch.train_options("glm2", "freeze", tmp_path / "output", cache_frozen_features=True, max_steps=2)
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}
    place["MASTER_PORT"] = str(launch.free_port())
    words = ["train.py", *launch.flags(options)]
    result = launch.start_each(words, [{**place, "RANK": str(rank)} for rank in (0, 1)]).finish(120)
    assert result.returncode == 0 and "computed once and cached in" in result.stdout, result.stdout + result.stderr
    cache = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert cache == ["", ".bin"], cache  # token arrays and features, each once and whole
    again = launch.train({**options, "output_dir": tmp_path / "again"}, 2)
    assert "cached in" in again.stdout
    assert launch.losses(tmp_path / "again") == launch.losses(tmp_path / "output")
