"""The ranks of a run: connecting them, and collectives on CPUs."""

import json
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import transformers

from errors import UserError
from parallel import launch, network
from texts import counted, one_line

CONNECT = timedelta(minutes=2)  # to open the connections between ranks that have exchanged addresses
_peers: list[network.Peer] = []  # all ranks, in order
_timeouts: list[timedelta] = []  # of all groups
_cpu_groups: list[dist.ProcessGroup | None] = []  # the gloo group of all ranks


def start_ranks(start_timeout: timedelta = timedelta(minutes=30)) -> None:
    """Connect to the other ranks: nccl on GPUs, gloo on CPUs.

    The launcher is `deepspeed`, `torchrun`, srun or mpirun (parallel/launch.py); without one there is a single rank.

    Args:
        start_timeout: time to wait for the other ranks. The timeout of collectives is twice as long, so that the
            watchdog, which names the late rank, ends the run first.

    Raises:
        UserError: a rank does not start, cannot be reached, or has no GPU of its own.
    """
    if dist.is_initialized():  # `main` was called before in this process
        return
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    choose_gpu()
    store = open_store(start_timeout)
    _peers[:] = meet(store, start_timeout)
    interface = network.choose_interface(_peers, launch.rank())
    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # gloo does the same without this op, whose compilation takes a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    is_distributed = launch.world_size() > 1
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=launch.rank(),
            world_size=launch.world_size(),
            timeout=min(start_timeout, CONNECT),
            device_id=torch.device("cuda", launch.local_rank()) if on_gpu and is_distributed else None,
        )
        _cpu_groups[:] = [
            dist.new_group(backend="gloo", timeout=min(start_timeout, CONNECT)) if on_gpu else dist.group.WORLD
        ]
        for group, device in ((cpu_group(), "cpu"), (dist.group.WORLD, _peers[launch.rank()].device)):
            dist.all_reduce(torch.ones(1, device=device), group=group)
    except RuntimeError as error:
        raise UserError(unconnected(error, interface)) from None
    # otherwise DeepSpeed creates a second group of all ranks, with another timeout and, on GPUs, more memory
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD
    _timeouts[:] = [2 * start_timeout + timedelta(minutes=1)]
    deepspeed.init_distributed(dist.get_backend(), timeout=timeout())
    set_timeouts()
    quiet_libraries()


def choose_gpu() -> None:
    """Make this rank's GPU the current one.

    Raises:
        UserError: there is no GPU for this rank.
    """
    if torch.cuda.is_available():
        check_gpu(launch.local_rank(), torch.cuda.device_count())
        torch.cuda.set_device(launch.local_rank())


def check_gpu(local_rank: int, count: int) -> None:
    """Raise UserError unless there is a GPU for this local rank among `count`."""
    if local_rank >= count:
        raise UserError(
            f"rank {launch.rank()} has local rank {local_rank} on {socket.gethostname()}, which has "
            f"{counted(count, 'visible GPU')}: start one rank per GPU, each with all GPUs visible (srun: "
            "--gpus-per-node, not --gpus-per-task)."
        )


def open_store(start_timeout: timedelta) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT through which ranks find each other.

    Raises:
        UserError: the name is unknown on this machine, the port is in use, or nothing answers.
    """
    host, port, here = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), socket.gethostname()
    try:
        network.resolve(host)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR={host} is unknown on {here} ({error.strerror}): give the address of the machine of rank 0."
        ) from None
    # torchrun opens it itself, and keeps it between its restarts
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = launch.rank() == 0 and not by_launcher
    try:
        store = dist.TCPStore(
            host, port, launch.world_size(), is_master, timeout=start_timeout, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError as error:
        if is_master:
            problem = f"cannot listen on port {port} of {here} ({one_line(error)}): give another --master_port"
        else:
            problem = (
                f"on {here} cannot reach rank 0 at {host} port {port}: check that it was started, and that no firewall "
                "blocks the port"
            )
        raise UserError(f"rank {launch.rank()} {problem}.") from None
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def meet(store: dist.Store, start_timeout: timedelta) -> list[network.Peer]:
    """Exchange host, address and device of all ranks, in rank order; every rank must call it.

    Raises:
        UserError: a rank does not start, or only some ranks have a GPU.
    """
    rank = launch.rank()
    towards_master = network.route_to(os.environ["MASTER_ADDR"])
    me = {
        "rank": rank,
        "local_rank": launch.local_rank(),
        "host": socket.gethostname(),
        "machine": network.this_machine(),
        "address": towards_master,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "pid": os.getpid(),
    }
    everyone = [network.Peer(**fields) for fields in through_store(store, "first", me, start_timeout)]
    if network.several_machines(everyone):
        other_addresses = [peer.address for peer in everyone if peer.machine != me["machine"]]
        address = network.own_address(towards_master, other_addresses)
    else:
        address = "127.0.0.1"
    with_addresses = through_store(store, "second", {**me, "address": address}, start_timeout)
    everyone = [network.Peer(**fields) for fields in with_addresses]
    without_gpu = [peer for peer in everyone if peer.device == "cpu"]
    if 0 < len(without_gpu) < len(everyone):
        raise UserError(
            f"rank {without_gpu[0].rank} on {without_gpu[0].host} has no visible GPU, other ranks do: correct its "
            "driver or CUDA_VISIBLE_DEVICES."
        )
    return everyone


def through_store(store: dist.Store, name: str, value: dict, start_timeout: timedelta) -> list[dict]:
    """Every rank's value, in rank order.

    Raises:
        UserError: a rank does not start, or rank 0, which has the store, has ended.
    """
    keys = [f"{name}-{rank}" for rank in range(launch.world_size())]
    try:
        store.set(keys[launch.rank()], json.dumps(value))
        try:
            store.wait(keys, start_timeout)
        except dist.DistStoreError:
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            raise UserError(
                f"the ranks have waited {start_timeout.total_seconds() / 60:g} minutes for rank "
                f"{' and '.join(missing)} to start: check its machine, and start all machines within --timeout_minutes."
            ) from None
        return [json.loads(store.get(key)) for key in keys]
    except dist.DistNetworkError:  # from any of these calls
        raise UserError(f"rank {launch.rank()} cannot start, rank 0 is gone: see its own message.") from None


def unconnected(error: RuntimeError, interface: str | None) -> str:
    """The error about ranks that have exchanged addresses and cannot connect."""
    me = _peers[launch.rank()]
    where = f"{interface} ({me.address})" if interface else me.address
    return (
        f"rank {me.rank} on {me.host} cannot connect over {where} ({one_line(error)}): set GLOO_SOCKET_IFNAME and "
        "NCCL_SOCKET_IFNAME to the interface that reaches the other machines, and open all ports."
    )


def set_timeouts() -> None:
    """Set the run's timeout on every process group that exists."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout(), group)


def timeout() -> timedelta:
    """The timeout of collectives."""
    return _timeouts[0]


def peers() -> list[network.Peer]:
    """All ranks, in order."""
    return _peers


def cpu_group() -> dist.ProcessGroup | None:
    """The gloo group of all ranks, whose collectives do not synchronize GPUs."""
    return _cpu_groups[0]


def leader() -> int:
    """The rank with local rank 0 on this machine."""
    return network.leader_of(_peers, launch.rank())


def on_this_machine() -> list[int]:
    """The ranks of this machine."""
    return [peer.rank for peer in _peers if network.leader_of(_peers, peer.rank) == leader()]


def stop_ranks() -> None:
    """Wait for all ranks and disconnect: a process that exits with open connections may crash."""
    dist.barrier()
    dist.destroy_process_group()


def quiet_libraries() -> None:
    """Hide the libraries' warnings about each other; ranks other than 0 show no warnings and no progress bars."""
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
    if not is_main() or not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank()


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size()


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return dist.get_rank() == 0


def gathered(value: object) -> list:
    """Every rank's value (any object that can be pickled), in rank order; collective, on CPUs."""
    values: list = [None] * world_size()
    dist.all_gather_object(values, value, group=cpu_group())
    return values


def fail_together(problem: str | None) -> None:
    """Raise UserError on every rank if one of them has a problem. Every rank calls it, usually with None."""
    names_hosts = network.several_machines(_peers)
    for peer, its_problem in zip(_peers, gathered(problem), strict=True):
        if its_problem is not None:
            raise UserError(f"on {peer.host}: {its_problem}" if names_hosts else its_problem)


def work_first(work: Callable[[], object], mine: bool) -> None:
    """Run `work` on some ranks while the others wait; if it fails on one, all raise the same error.

    Args:
        mine: whether this rank runs it.

    Raises:
        UserError: the error from one rank, on every rank.
    """
    problem = None
    if mine:
        try:
            work()
        except UserError as error:
            problem = str(error)
    fail_together(problem)


def in_step(
    tensors: Iterable[tuple[str, torch.Tensor]], at: Callable[[str], None], activity: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) pairs in step on all ranks, which iterate over the same names.

    The ranks synchronize before each tensor, so that the watchdog and the timeouts of collectives measure the time of
    one tensor and not that of the whole file.

    Args:
        at: called before each tensor with "ACTIVITY NAME".
    """
    for name, tensor in tensors:
        at(f"{activity} {name}")
        dist.barrier(group=cpu_group())
        yield name, tensor


def say(*lines: str) -> None:
    """Print on rank 0 only."""
    if lines and is_main():
        print(*lines, sep="\n", flush=True)


def sum_over_ranks(value: torch.Tensor) -> float:
    """The sum of a scalar tensor over all ranks."""
    total = value.detach().double() if value.device.type == "cpu" else value.detach().float()
    dist.all_reduce(total)
    return total.item()


def smallest(number: int) -> int:
    """The smallest of the ranks' integers."""
    return min(gathered(number))


def seed_everything(seed: int) -> None:
    """Seed every random number generator that a run uses."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
