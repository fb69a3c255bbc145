"""parallel/ranks.py: a rank that waits for the others ends in a sentence if the store ends, at whatever moment."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from errors import UserError
from parallel.ranks import through_store


class EndsBefore:
    """The store as rank 1 has it, which rank 0 closes just before a method is called."""

    def __init__(self, method):
        self.method = method
        self.of_rank_0 = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
        self.of_rank_0[0].set("first-0", "{}")
        self.of_rank_1 = dist.TCPStore("127.0.0.1", self.of_rank_0[0].port, is_master=False, wait_for_workers=False)

    def __getattr__(self, method):
        if method == self.method:
            self.of_rank_0.clear()  # the last reference: its connections are closed, as at the process's end
        return getattr(self.of_rank_1, method)


@pytest.mark.parametrize("method", ["set", "wait", "get", "check"])
def test_rank_0_ends_while_rank_1_reads_the_store(method, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3" if method == "check" else "2")  # rank 2 never comes: `wait` times out
    with pytest.raises(UserError, match="rank 1 cannot start, rank 0 is gone"):
        through_store(EndsBefore(method), "first", {}, timedelta(seconds=1))
