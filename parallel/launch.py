"""The launcher's variables: the rank of a process, the number of ranks, and the address where they connect.

`adopt()` translates the variables of SLURM and MPI launchers to those of torch.distributed: RANK, LOCAL_RANK,
WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Imports neither torch nor DeepSpeed.

Sources: srun(1) "OUTPUT ENVIRONMENT VARIABLES"; mpirun(1) of Open MPI; Hydra's and MVAPICH2's user guides;
deepspeed/launcher/multinode_runner.py and launcher_helper.py for what each `deepspeed --launcher` exports.
"""

import os
import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from errors import UserError

RANK_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # of torchrun, of DeepSpeed's launcher
PORTS = range(15000, 25000)  # below Linux's ports of outgoing connections
# launcher: its variables for rank, number of ranks, and the same two on this machine
MPI = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                 "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MVAPICH2": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
                 "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}  # fmt: skip
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
JOBS = ("SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid", "PMI_JOBID")


@dataclass(frozen=True)
class Launch:
    """A process of a run with `world_size` ranks, `local_world_size` of them on its machine.

    master_addr, master_port: where the ranks connect; None if the launcher does not set them.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str | None = None
    master_port: int | None = None


def adopt(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set torch.distributed's variables from those of the launcher; leave them unset for a single process.

    Raises:
        UserError: a launcher announces several ranks, and a variable to connect to them is missing.
    """
    process = read(environ)
    if process is None:
        for name in (*RANK_NAMES, *LOCAL_SIZES):  # such as a leftover WORLD_SIZE of 1
            environ.pop(name, None)
        return
    environ.update(
        {
            "RANK": str(process.rank),
            "WORLD_SIZE": str(process.world_size),
            "LOCAL_RANK": str(process.local_rank),
            "LOCAL_WORLD_SIZE": str(process.local_world_size),
            "LOCAL_SIZE": str(process.local_world_size),
        }
    )
    if process.master_addr is None or process.master_port is None:
        raise UserError(
            f"the launcher announces {process.world_size} ranks on several machines, but not rank 0's address: set "
            "MASTER_ADDR and MASTER_PORT everywhere (mpirun -x, MPICH -genv), or use torchrun."
        )
    environ.update({"MASTER_ADDR": process.master_addr, "MASTER_PORT": str(process.master_port)})


def read(environ: Mapping[str, str]) -> Launch | None:
    """The launch that an environment describes; None for a single process.

    A launcher that sets RANK (torchrun, DeepSpeed's) takes precedence over the scheduler or MPI that started it.

    Raises:
        UserError: variables of a run of several ranks are missing, or contradict one another.
    """
    process = read_torch(environ) if environ.get("RANK") else read_scheduler(environ)
    if process is None:
        refuse_leftovers(environ)
        return None
    if process.master_port is not None and not 0 < process.master_port < 2**16:
        raise UserError(f"MASTER_PORT={process.master_port} is not a port: give one from 1 to 65535.")
    if (
        not 0 <= process.rank < process.world_size
        or not 0 <= process.local_rank < process.local_world_size <= process.world_size
    ):
        raise UserError(
            f"the launcher's numbers contradict one another (rank {process.rank} of {process.world_size}, local rank "
            f"{process.local_rank} of {process.local_world_size}): start with deepspeed, torchrun, srun or mpirun, or "
            f"unset {', '.join(name for name in (*RANK_NAMES, *LOCAL_SIZES) if name in environ)}."
        )
    return process


def read_torch(environ: Mapping[str, str]) -> Launch:
    """The launch that RANK and its companions describe."""
    local_size = next((name for name in LOCAL_SIZES if environ.get(name)), LOCAL_SIZES[0])
    missing = [name for name in (*RANK_NAMES, local_size) if not environ.get(name)]
    if missing:
        raise UserError(
            f"RANK={environ['RANK']} is set in the environment, {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not: unset RANK to train alone, or start with deepspeed, torchrun "
            "or srun."
        )
    rank, world_size, local_rank = (number(environ, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    size, port = number(environ, local_size), number(environ, "MASTER_PORT")
    return Launch(rank, world_size, local_rank, size, environ["MASTER_ADDR"], port)


def read_scheduler(environ: Mapping[str, str]) -> Launch | None:
    """The launch that MPI or SLURM describe; None where neither started more than one process."""
    partial = []
    for name, names in (*MPI.items(), ("SLURM", SLURM)):
        given = [variable for variable in names if environ.get(variable)]
        if names[1] not in given or number(environ, names[1]) < 2:
            continue  # SLURM sets a step's number of tasks only under srun, not in a batch script
        if len(given) < len(names):
            partial.append(f"{name} announces {environ[names[1]]} ranks, but {missing_of(names, given)} not set")
            continue
        rank, size, local_rank = (number(environ, variable) for variable in names[:3])
        local_size = tasks_on_node(environ) if name == "SLURM" else number(environ, names[3])
        # mpirun excludes its own node from the SLURM step that starts the others
        hosts = environ.get(f"SLURM_{'STEP' if name == 'SLURM' else 'JOB'}_NODELIST")
        first = expand_hosts(hosts)[0] if hosts else None  # has rank 0 unless --distribution says otherwise
        address = environ.get("MASTER_ADDR") or ("127.0.0.1" if local_size == size else first)
        port = number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else port_of_job(environ)
        return Launch(rank, size, local_rank, local_size, address, port)
    if partial:
        raise UserError(f"{partial[0]}: start with deepspeed, torchrun, srun or mpirun.")
    return None


def missing_of(names: tuple[str, ...], given: list[str]) -> str:
    """The missing variables, and their verb."""
    missing = [name for name in names if name not in given]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"


def refuse_leftovers(environ: Mapping[str, str]) -> None:
    """Raise UserError if a variable announces several processes without a launcher."""
    for name in ("WORLD_SIZE", *LOCAL_SIZES, "LOCAL_RANK"):
        value = environ.get(name)
        if value and number(environ, name) > (name != "LOCAL_RANK"):
            raise UserError(
                f"{name}={value} is set in the environment, RANK is not: unset {name} to train alone, or start with "
                "deepspeed, torchrun, srun or mpirun."
            )


def number(environ: Mapping[str, str], name: str) -> int:
    """A variable as a whole number.

    Raises:
        UserError: it is not a whole number.
    """
    if not re.fullmatch(r"\d{1,9}", environ[name], re.ASCII):
        raise UserError(f"{name}={environ[name]} in the environment is not a whole number: unset it, or correct it.")
    return int(environ[name])


def tasks_on_node(environ: Mapping[str, str]) -> int:
    """This node's tasks, of SLURM_STEP_TASKS_PER_NODE such as 4(x2),3: two nodes with four tasks and one with three."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"]):
        counts += [int(count)] * int(times or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    if node >= len(counts):
        raise UserError(
            f"SLURM_NODEID={node} has no part in SLURM_STEP_TASKS_PER_NODE={environ['SLURM_STEP_TASKS_PER_NODE']}: "
            "start with srun, or with torchrun."
        )
    return counts[node]


def expand_hosts(text: str) -> list[str]:
    """Host names of SLURM's list syntax: "a[01-03,7]-ib,b" -> a01-ib, a02-ib, a03-ib, a7-ib, b."""
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        expanded = [""]
        for plain, ranges in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", part):
            numbers = [digits for span in ranges.split(",") for digits in expand_range(span)] if ranges else [""]
            expanded = [head + plain + digits for head in expanded for digits in numbers]
        hosts += expanded
    return hosts


def expand_range(text: str) -> list[str]:
    """Numbers of "08-11" with their leading zeros."""
    first, _, last = text.partition("-")
    if not (first + last).isdecimal():
        raise UserError(f"[{text}] in SLURM's list of nodes is not a range of numbers: set MASTER_ADDR.")
    return [str(value).zfill(len(first)) for value in range(int(first), int(last or first) + 1)]


def port_of_job(environ: Mapping[str, str]) -> int:
    """A port that all ranks of a job, or of a step of it, compute alike."""
    job = next((environ[name] for name in JOBS if environ.get(name)), "")
    return PORTS[zlib.crc32(f"{job}.{environ.get('SLURM_STEP_ID', '')}".encode()) % len(PORTS)]


def rank() -> int:
    """The rank from the launcher, before and after `start_ranks`; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1"))


def on_several_machines() -> bool:
    """Whether the launcher started ranks on other machines, too."""
    return world_size() > local_world_size()
