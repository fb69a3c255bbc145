"""Run the entry points as a user does: real processes, real `deepspeed` where the launcher matters."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import runs
from benchmarks.runs import flags, free_port
from tests import forks

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
MODES = ("glm", "glm2", "glm3")
PERSISTENCE_THRESHOLD = 10  # values of a parameter that every rank keeps whole under ZeRO-3


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, without rank variables; the interpreter's scripts come first."""
    of_ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    of_launchers = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_")
    kept = {
        name: value for name, value in os.environ.items() if name not in of_ranks and not name.startswith(of_launchers)
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **changes}


def start(
    command: list[str],
    timeout: float = 300,
    cwd: Path = REPOSITORY,
    encoding: str = "utf-8",
    stdout: int = subprocess.PIPE,
    **changes: str,
) -> subprocess.CompletedProcess:
    """Run a command, from the repository root by default; output as text. `changes` are environment variables."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**changes),
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding=encoding,
        timeout=timeout,
    )


def train_options(mode: str, train_type: str, output_dir: Path, **changes) -> dict:
    """A few quick steps on the tiny golden base, nothing random but the seed; ZeRO-3 as in `partitioned`."""
    if "zero3" in Path(changes.get("ds_file", "")).name:
        changes["ds_file"] = partitioned(output_dir.parent, Path(changes["ds_file"]).name)
    return {
        "train_path": GOLDEN / "samples.jsonl",
        "model_name_or_path": GOLDEN / mode / "base",
        "mode": mode,
        "train_type": train_type,
        "max_len": 256,
        "max_src_len": 160,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0,
        "lora_dropout": 0,
        "show_loss_step": 1,
        "freeze_module_name": "layers.3.",
        "pre_seq_len": 4,
        "output_dir": output_dir,
        "data_cache_dir": output_dir.parent / "cache",
        **changes,
    }


def partitioned(directory: Path, name: str = "ds_zero3_no_offload.json") -> Path:
    """A copy in `directory` of a shipped DeepSpeed file for ZeRO-3, which partitions all but tiny parameters.

    By DeepSpeed's own threshold, 100,000 values, no parameter of a test's model would be gathered from other ranks.
    """
    config = json.loads((REPOSITORY / "ds_configs" / name.removeprefix("partitioned-")).read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENCE_THRESHOLD
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"partitioned-{name.removeprefix('partitioned-')}"
    path.write_text(json.dumps(config))
    return path


def start_fork(
    words: list[str], num_ranks: int = 0, cwd: Path = REPOSITORY, is_read: bool = True, **changes: str
) -> forks.Run:
    """Start one of our programs with its flags, alone (0) or on that many CPU ranks.

    The launcher is not there and nothing is imported again (tests/forks.py), which saves most of the time of a start.
    """
    environments = [changes]
    if num_ranks:
        of_all = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        of_all["LOCAL_WORLD_SIZE"] = of_all["WORLD_SIZE"]
        environments = [{**changes, **of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
    return start_each(words, environments, cwd=cwd, is_read=is_read)


def start_each(words: list[str], changes: list[dict[str, str]], **keywords) -> forks.Run:
    """As `start_fork`, a process for each of several environments; the keywords are those of `forks.Run`."""
    return forks.Run(words, [environment(CUDA_VISIBLE_DEVICES="", **one) for one in changes], **keywords)


def fork(words: list[str], num_ranks: int = 0, timeout: float = 300, **keywords) -> subprocess.CompletedProcess:
    """As `start_fork`, to its end, as `start` runs a command."""
    return start_fork(words, num_ranks, **keywords).finish(timeout)


def start_launched(program: str, options: dict, **changes: str) -> subprocess.Popen:
    """Start a program on two ranks under `deepspeed`, in a session of its own; output as one text."""
    return subprocess.Popen(
        runs.deepspeed(program, options, num_gpus=2),
        cwd=REPOSITORY,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], has_ended: Callable[[], bool], seconds: float = 200) -> None:
    """Wait until a condition holds; fails where the run has ended before, or it takes longer."""
    assert runs.wait_for(condition, has_ended, seconds), "the run did not get that far"


def wait_for_step(output_dir: Path, step: int, has_ended: Callable[[], bool]) -> None:
    """Wait until a run has logged that many steps."""
    wait_for(lambda: (output_dir / "metrics.jsonl").exists() and len(metrics(output_dir)) >= step, has_ended)


def train(options: dict, num_ranks: int = 0, **keywords) -> subprocess.CompletedProcess:
    """train.py on that many CPU ranks, or by itself (0), forked; fails loudly."""
    result = fork(["train.py", *flags(options)], num_ranks, **keywords)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def metrics(output_dir: Path) -> list[dict]:
    """The objects of metrics.jsonl."""
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def losses(output_dir: Path) -> list[float]:
    """The logged losses, in order."""
    return [line["loss"] for line in metrics(output_dir)]


def newest_checkpoint(output_dir: Path) -> Path:
    """The checkpoint of the highest step."""
    return max(output_dir.glob("epoch-*-step-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
