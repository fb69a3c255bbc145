"""Two hosts that share no directory, started in each way that scripts/recipes/multi_machine_*.sh show.

Not among them are ssh, because DeepSpeed's launcher needs pdsh and sshd for it, and srun: the processes of a SLURM job
start without it, with its variables. tests/test_recipes.py reads both recipes.
"""

import shutil
import time

import pytest

from checkpoints.resume import state_directories
from tests import launch, two_hosts
from tests.two_hosts import ADDRESSES, PORT

REASON = two_hosts.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]
RECIPES = launch.REPOSITORY / "scripts" / "recipes"
STEPS = 6


@pytest.fixture
def hosts(tmp_path):
    with two_hosts.two_hosts(tmp_path) as both:
        yield both


def flags(directory, **changes):
    """Flags that make a recipe a short run of the tiny base, with all output in a directory."""
    options = launch.train_options("glm2", "lora", directory / "output", num_train_epochs=1)
    options |= {"ds_file": "ds_zero2_no_offload.json", "max_steps": STEPS, "save_state_step": 1, "seed": 1234}
    options |= {"weight_decay": 0, "lr_scheduler_type": "constant", "lora_dropout": 0.1, "timeout_minutes": 2}
    return launch.flags({**options, **changes})


def run(name, hosts, directory, **changes):
    """Run a recipe on both hosts to its end; the output of the first."""
    words = ["bash", RECIPES / f"multi_machine_{name}.sh", *flags(hosts[0].local, **changes)]
    (directory / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    variables = {"MASTER_PORT": PORT, "HOSTFILE": str(directory / "hostfile"), "NNODES": "2", "RANKS_PER_NODE": "1"}
    variables["MASTER_ADDR"] = ADDRESSES[0]
    processes = [host.start(words, NODE_RANK=str(host.number), **variables) for host in hosts]
    outputs = two_hosts.finish(processes, 300)
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    return outputs[0]


def states(host):
    """Names of the host's resume states, newest first."""
    return [path.name for path in state_directories(host.directory / "output" / "state")]


def test_each_way_to_start_and_resume(hosts, tmp_path):
    """DeepSpeed's launcher, then torchrun, then SLURM continue one run; its losses are those of two ranks on one host.

    The host of rank 0 writes the states. torchrun finds them there and copies the newest; SLURM is
    given that copy, which only the other host has.
    """
    launch.fork(["train.py", *flags(tmp_path / "one")], 2)
    expected = launch.losses(tmp_path / "one" / "output")
    assert len(expected) == STEPS

    said = run("no_ssh", hosts, tmp_path, max_steps=2)
    assert "(2 ranks" in said
    output = hosts[0].directory / "output"
    assert launch.losses(output) == expected[:2] and (output / "epoch-1-step-2").is_dir()
    assert [states(host) for host in hosts] == [["step-2", "step-1"], []]
    assert list((hosts[1].directory / "cache").iterdir()) and not list((hosts[1].directory / "output").iterdir())

    said = run("torchrun", hosts, tmp_path, max_steps=4)
    assert "step-2 of node1 to node2" in said and "after step 2" in said
    assert launch.losses(output) == expected[:4]
    assert [states(host) for host in hosts] == [["step-4", "step-3"], ["step-2"]]

    shutil.rmtree(output / "state")
    state = hosts[1].local / "output" / "state" / "step-2"
    words = ["train.py", *flags(hosts[0].local, resume_from_checkpoint=state)]
    ended = [task.finish(300) for task in two_hosts.srun(hosts, words)]
    assert [task.returncode for task in ended] == [0, 0], ended
    said = ended[0].stdout
    assert "step-2 of node2 to node1" in said and "after step 2" in said
    rows = launch.metrics(output)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[4:]] == expected[2:]


def test_hosts_that_differ_say_so(hosts, tmp_path):
    """Another flag, other records, and a mistake on one host alone: one sentence, the same on both."""
    records = (launch.GOLDEN / "samples.jsonl").read_text().splitlines()
    for host in hosts:
        (host.directory / "records.jsonl").write_text("\n".join(records[host.number :]))
    cases = {
        "--seed is 1 on rank 0 (node1), 2 on rank 1 (node2)": [{"seed": 1}, {"seed": 2}],
        "the content of --train_path is": [{"train_path": hosts[0].local / "records.jsonl"}] * 2,
        "on node2: --train_path /nowhere does not exist": [{}, {"train_path": "/nowhere"}],
    }
    runs = [start_forks(hosts, 29600 + number, *changes) for number, changes in enumerate(cases.values())]
    for sentence, both in zip(cases, runs, strict=True):
        ended = [run.finish(200) for run in both]
        errors = [sentences(run.stderr) for run in ended]
        assert errors[0] == errors[1] and len(errors[0]) == 1 and sentence in errors[0][0], ended
        assert [run.returncode for run in ended] == [2, 2]


def start_forks(hosts, port, *changes):
    """Start train.py on both hosts with the variables of torch.distributed, without a launcher."""
    of_all = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "node1"}
    return [
        host.start_fork(
            ["train.py", *flags(host.local, **changes[host.number % len(changes)])],
            RANK=str(host.number),
            MASTER_PORT=str(port),
            **of_all,
        )
        for host in hosts
    ]


def sentences(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture
def endless(hosts):
    """Both processes of a run without an end, once it has done three steps."""
    changes = {"max_steps": 10**6, "num_train_epochs": 10**6, "save_state_step": 10**6, "timeout_minutes": 0.2}
    runs = start_forks(hosts, PORT, changes)
    launch.wait_for_step(hosts[0].directory / "output", 3, runs[0].has_ended)
    return runs


def test_a_host_vanishes(endless, hosts):
    """Its link goes down: each host names the rank of the other, soon after --timeout_minutes."""
    time.sleep(3)  # every rank has heard of the other
    two_hosts.link_down(hosts[1])
    began = time.time()
    ended = [run.finish(120) for run in endless]
    assert time.time() - began < 12 + 60
    for host, run in zip(hosts, ended, strict=True):
        (sentence,) = sentences(run.stderr)
        other = hosts[1 - host.number]
        assert f"waited 0.2 minutes for rank {other.number}: " in sentence, run
        assert f"on {two_hosts.NAMES[other.number]}) has sent no report for" in sentence, run
        assert run.returncode == 1


def test_a_rank_of_the_other_host_is_killed(endless):
    endless[1].processes[0].kill()
    began = time.time()
    run = endless[0].finish(60)
    assert run.returncode == 1 and time.time() - began < 30
    (sentence,) = sentences(run.stderr)
    assert "rank 0 cannot continue, a rank on another machine is gone" in sentence and "Traceback" not in run.stderr
