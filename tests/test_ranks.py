"""parallel/ranks.py: a rank that waits for the others ends in a sentence if the store ends, at whatever moment."""

import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from errors import UserError
from parallel.ranks import through_store
from tests.launch import free_port

OF_RANK_0 = """
import sys
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), 2, True, wait_for_workers=False)
store.set("first-0", "{}")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def rank_0():
    """The process of rank 0, which has the store, and its port."""
    port = free_port()
    command = [sys.executable, "-c", OF_RANK_0, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        yield process, port
        process.kill()


class EndsBefore:
    """The store of rank 1, whose rank 0 is killed just before a method is called."""

    def __init__(self, method, process, store):
        self.method, self.process, self.store = method, process, store

    def __getattr__(self, method):
        if method == self.method:
            self.process.kill()
            self.process.wait()
        return getattr(self.store, method)


@pytest.mark.parametrize("method", ["set", "wait", "get", "check"])
def test_rank_0_ends_while_rank_1_reads_the_store(method, rank_0, monkeypatch):
    process, port = rank_0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3" if method == "check" else "2")  # rank 2 never comes: `wait` times out
    store = dist.TCPStore("127.0.0.1", port, 2, False, timeout=timedelta(seconds=60), wait_for_workers=False)
    with pytest.raises(UserError, match="rank 1 cannot start, rank 0 is gone"):
        through_store(EndsBefore(method, process, store), "first", {}, timedelta(seconds=1))
