"""memory/available.py: a rank may use its GPU, or its share of the RAM that control groups leave."""

import pytest
import torch

from memory.available import GIB, free_in_group, free_ram, memory_groups, memory_of_rank, usable


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
    assert all(free_in_group(*places) >= 2**59 for places in groups)
