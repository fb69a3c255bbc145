"""Run by test_watchdog.py on two real ranks: something happens to one of them in the middle of some steps.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/watched_ranks.py SCENARIO
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parallel.network import Peer, this_machine
from parallel.watchdog import Watchdog

TIMEOUT = 3.0  # seconds


def main(scenario: str) -> None:
    """One of two ranks: some steps with a collective in each; at step 3 something happens to one of them."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pids: list = [None, None]
    dist.all_gather_object(pids, os.getpid())
    watchdog = Watchdog(
        TIMEOUT, [Peer(number, number, "here", this_machine(), "127.0.0.1", "cpu", pids[number]) for number in (0, 1)]
    )
    failure, late = scenario.split("-")
    for step in range(1, 7):
        watchdog.at(f"step {step}: reading data")
        if step == 3 and rank == int(late):
            print("here", flush=True)
            if failure == "stop":
                time.sleep(TIMEOUT / 4)  # the other rank receives its last position
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep({"sleep": 600, "slow": TIMEOUT / 2, "stop": 0, "pause": 0, "inside": 0}[failure])
            if failure == "pause":  # stopped for longer than the timeout, with everyone else
                time.sleep(0.1)
        watchdog.at(f"step {step}: loss of all ranks")
        if step == 3 and failure == "inside" and rank == int(late):
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
    watchdog.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
