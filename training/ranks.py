"""The ranks of a run: started once, asked everywhere."""

import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import transformers

from errors import UserError


def start_ranks(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the other ranks: nccl on GPUs, gloo on CPUs.

    Args:
        timeout: how long a collective waits for a rank before it fails.

    Started by `deepspeed` or `torchrun`; alone (`python train.py`) it is a single rank.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        deepspeed.init_distributed("nccl", timeout=timeout)
    else:
        # gloo does the same work as this op, which would first be compiled for a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo", timeout=timeout)
    quiet_libraries()


def stop_ranks() -> None:
    """Wait for all ranks and part: a process that ends with its connections open may crash on the way out."""
    dist.barrier()
    dist.destroy_process_group()


def quiet_libraries() -> None:
    """Warnings of libraries about each other are not for the user; ranks other than 0 show no bars and no warnings."""
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
    if not is_main() or not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size()


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return dist.get_rank() == 0


def launched_rank() -> int:
    """The rank that the launcher gave, before and after `start_ranks`; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """The number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ["LOCAL_RANK"])


def local_world_size() -> int:
    """How many processes train together on this machine."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ["LOCAL_WORLD_SIZE"])


def fail_together(problem: str | None) -> None:
    """Raise UserError on every rank if one of them has a problem. Every rank calls it, most of them with None."""
    problems: list[str | None] = [None] * world_size()
    dist.all_gather_object(problems, problem)
    for one in problems:
        if one is not None:
            raise UserError(one)


def work_first(work: Callable[[], object], mine: bool) -> None:
    """Let some ranks do some work while the others wait; if one fails, all do, for the same reason.

    Args:
        mine: whether this rank works.

    Raises:
        UserError: on every rank, what `work` raised on one.
    """
    problem = None
    if mine:
        try:
            work()
        except UserError as error:
            problem = str(error)
    fail_together(problem)


def say(*lines: str) -> None:
    """Print on rank 0 alone."""
    if lines and is_main():
        print(*lines, sep="\n", flush=True)


def sum_over_ranks(value: torch.Tensor) -> float:
    """The sum of a scalar tensor over all ranks."""
    total = value.detach().double() if value.device.type == "cpu" else value.detach().float()
    dist.all_reduce(total)
    return total.item()


def smallest(number: int) -> int:
    """The smallest of the ranks' whole numbers."""
    numbers: list[int] = [0] * world_size()
    dist.all_gather_object(numbers, number)
    return min(numbers)


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
