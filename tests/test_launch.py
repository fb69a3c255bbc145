"""parallel/launch.py: each launcher's variables are read or refused in a sentence; one directory has one run."""

import itertools
import re

import pytest

from errors import UserError
from options.train import parse_train
from parallel.launch import Launch, adopt, expand_hosts, port_of_job, read
from tests import launch as programs


def variables(**values):
    """Environment variables, as strings."""
    return {name: str(value) for name, value in values.items()}


WHERE = {"MASTER_ADDR": "a", "MASTER_PORT": "29520"}
TORCHRUN = variables(RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, LOCAL_WORLD_SIZE=2, **WHERE)
DEEPSPEED = variables(RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, LOCAL_SIZE=2, **WHERE)
BATCH = variables(SLURM_JOB_ID=77, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NODEID=0, SLURM_NTASKS=4,
                  SLURM_JOB_NODELIST="n[01-02]", SLURM_TASKS_PER_NODE="2(x2)")  # fmt: skip
STEP = {**BATCH, **variables(SLURM_PROCID=3, SLURM_LOCALID=1, SLURM_NODEID=1, SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=4,
                             SLURM_STEP_NODELIST="n[01-02]", SLURM_STEP_TASKS_PER_NODE="2(x2)")}  # fmt: skip
OPEN_MPI = variables(OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=1,
                     OMPI_COMM_WORLD_LOCAL_SIZE=2, PMIX_NAMESPACE="prterun-1")  # fmt: skip
ELSEWHERE = {**OPEN_MPI, **variables(OMPI_COMM_WORLD_LOCAL_RANK=0, OMPI_COMM_WORLD_LOCAL_SIZE=1)}
MPICH = variables(PMI_RANK=1, PMI_SIZE=2, MPI_LOCALRANKID=1, MPI_LOCALNRANKS=2)
MVAPICH = variables(MV2_COMM_WORLD_RANK=1, MV2_COMM_WORLD_SIZE=2, MV2_COMM_WORLD_LOCAL_RANK=1,
                    MV2_COMM_WORLD_LOCAL_SIZE=2)  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, Launch(3, 4, 1, 2, "a", 29520)),
        (DEEPSPEED, Launch(3, 4, 1, 2, "a", 29520)),
        ({**STEP, **TORCHRUN, "RANK": "2", "LOCAL_RANK": "0"}, Launch(2, 4, 0, 2, "a", 29520)),  # srun torchrun …
        (STEP, Launch(3, 4, 1, 2, "n01", port_of_job(STEP))),
        ({**STEP, "MASTER_ADDR": "b", "MASTER_PORT": "500"}, Launch(3, 4, 1, 2, "b", 500)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "1,3"}, Launch(3, 4, 1, 3, "n01", port_of_job(STEP))),
        (OPEN_MPI, Launch(1, 2, 1, 2, "127.0.0.1", port_of_job(OPEN_MPI))),
        (MPICH, Launch(1, 2, 1, 2, "127.0.0.1", port_of_job(MPICH))),
        (MVAPICH, Launch(1, 2, 1, 2, "127.0.0.1", port_of_job(MVAPICH))),
        # mpirun in a SLURM job starts one daemon per node by srun, and leaves its own node out
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n02", **ELSEWHERE},
         Launch(1, 2, 0, 1, "n01", port_of_job(STEP))),
        (ELSEWHERE, Launch(1, 2, 0, 1, None, port_of_job(OPEN_MPI))),
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, Launch(3, 4, 1, 2, "n01", port_of_job(STEP))),  # srun --mpi=pmi2
        ({}, None),
        (BATCH, None),  # in a batch script, or srun -n 1
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, None),
        ({"RANK": "", "WORLD_SIZE": ""}, None),
    ],
)  # fmt: skip
def test_what_a_launcher_says(environ, expected):
    assert read(environ) == expected


def test_the_variables_of_torch_are_set_or_gone():
    environ = dict(STEP)
    adopt(environ)
    wanted = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    assert environ == {**STEP, **wanted, "MASTER_ADDR": "n01", "MASTER_PORT": str(port_of_job(STEP))}
    adopt(environ)  # what it set stands
    alone = {**BATCH, "WORLD_SIZE": "1", "MASTER_PORT": "1"}
    adopt(alone)
    assert alone == BATCH


def test_every_half_of_the_variables_is_a_sentence():
    """All subsets of torch's variables with values of a run of four: all of them, none that says so, or a sentence."""
    for size in range(len(TORCHRUN) + 1):
        for names in itertools.combinations(TORCHRUN, size):
            environ = {name: TORCHRUN[name] for name in names}
            if size == len(TORCHRUN):
                assert read(environ)
            elif set(names) <= {"MASTER_ADDR", "MASTER_PORT"}:
                assert read(environ) is None
            else:
                with pytest.raises(UserError, match=r"^(RANK=3|(LOCAL_)?WORLD_SIZE=|LOCAL_RANK=1).* set .*unset"):
                    read(environ)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**TORCHRUN, "RANK": "4"}, "contradict one another .rank 4 of 4"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "local rank 2 of 2"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "local rank 1 of 8"),
        ({**TORCHRUN, "RANK": "one"}, "RANK=one in the environment is not a whole number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({**STEP, "SLURM_PROCID": ""}, "SLURM announces 4 ranks, but SLURM_PROCID is not set"),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "MPICH announces 4 ranks, but MPI_LOCALRANKID and MPI_LOCALN"),
        ({**STEP, "SLURM_NODEID": "2"}, "SLURM_NODEID=2 has no part"),
    ],
)  # fmt: skip
def test_what_is_refused(environ, words):
    with pytest.raises(UserError, match=words):
        read(environ)


def test_mpi_on_several_machines_must_say_where_rank_0_is():
    environ = dict(ELSEWHERE)
    with pytest.raises(UserError, match="announces 2 ranks on several machines.* set MASTER_ADDR"):
        adopt(environ)
    assert environ["LOCAL_RANK"] == "0"  # so that the sentence is printed once per machine


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node7", ["node7"]),
        ("node[01-03,7]", ["node01", "node02", "node03", "node7"]),
        ("a[9-11]-ib,b,c[1]", ["a9-ib", "a10-ib", "a11-ib", "b", "c1"]),
        ("rack[1-2]n[3-4]", ["rack1n3", "rack1n4", "rack2n3", "rack2n4"]),
        ("gpu-1.example.org,gpu-2.example.org", ["gpu-1.example.org", "gpu-2.example.org"]),
    ],
)
def test_host_lists(text, hosts):
    assert expand_hosts(text) == hosts


def test_ranks_of_a_job_derive_one_port_and_jobs_different_ones():
    jobs = [{**STEP, "SLURM_JOB_ID": str(job)} for job in range(100, 120)]
    assert len({port_of_job(job) for job in jobs}) == 20
    assert port_of_job(STEP) == port_of_job({**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})


def test_the_hyphen_of_torch_distributed_launch():
    options, problems = parse_train(["--local-rank=0"])
    assert (options.compute.local_rank, problems) == (0, [])


LEFT = {"a world": {"WORLD_SIZE": "2"}, "a rank": {"RANK": "0"}, "half a step": {"OMPI_COMM_WORLD_SIZE": "2"}}


@pytest.mark.slow
@pytest.mark.parametrize("left", LEFT)
def test_a_plain_run_says_what_is_left_over(left, tmp_path):
    options = programs.train_options("glm2", "lora", tmp_path / "output", max_steps=1)
    result = programs.fork(["train.py", *programs.flags(options)], **LEFT[left])
    assert result.returncode == 2 and result.stderr.startswith("error: "), result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "output").exists()


def step_environments(port):
    """What srun sets for two tasks on one node."""
    of_all = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    of_all |= {"SLURM_STEP_NODELIST": "n01", "MASTER_PORT": port}
    return [{**of_all, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1)]


MPI_ENVIRONMENTS = {
    "srun": step_environments,
    "Open MPI": lambda port: [
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "MASTER_PORT": port}
        for rank in (0, 1)
    ],
    "MPICH": lambda port: [
        {**MPICH, "PMI_RANK": str(rank), "MPI_LOCALRANKID": str(rank), "MASTER_PORT": port} for rank in (0, 1)
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", MPI_ENVIRONMENTS)
def test_processes_of_a_scheduler_are_one_run(launcher, tmp_path):
    options = programs.train_options("glm2", "lora", tmp_path / "output", max_steps=2)
    environments = MPI_ENVIRONMENTS[launcher](str(programs.free_port()))
    result = programs.start_each(["train.py", *programs.flags(options)], environments).finish(120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "(2 ranks" in result.stdout and [row["step"] for row in programs.metrics(tmp_path / "output")] == [1, 2]


# which of two ranks start, what else is set, and what the sentence says
STARTS = {
    "rank 1 never starts": ([0], {}, r"have waited 0\.05 minutes for rank 1 to start"),
    "rank 0 never starts": ([1], {}, r"rank 1 on \S+ cannot reach rank 0 at 127\.0\.0\.1 port \d+"),
    "an unknown master": ([0, 1], {"MASTER_ADDR": "nowhere.invalid"}, r"MASTER_ADDR=nowhere\.invalid is unknown on"),
    "no such interface": ([0, 1], {"GLOO_SOCKET_IFNAME": "no0"}, r"rank \d on \S+ cannot connect over no0 \(127"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_ranks_that_cannot_meet(name, tmp_path):
    started, changes, pattern = STARTS[name]
    options = programs.train_options("glm2", "lora", tmp_path / "output", max_steps=1, timeout_minutes=0.05)
    place = {**variables(WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=programs.free_port())}
    environments = [{**place, **variables(RANK=rank, LOCAL_RANK=rank), **changes} for rank in started]
    result = programs.start_each(["train.py", *programs.flags(options)], environments).finish(120)
    assert result.returncode == 2, result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sentences and re.search(pattern, sentences[0]), result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "output").exists()
