"""Our programs without their four seconds of imports: forked from a process that has imported them.

A forked process runs the program's file as a launcher's child does, as `__main__`, with arguments, environment, working
directory and output of its own; only imports are inherited, and what Python does at its end is left out. `python -m
tests.forks` is the process forked from: it reads a line of JSON for each run to start, and writes the process ids;
reads one for each run to wait for, and writes the exit codes.
"""

import ctypes
import functools
import gc
import importlib
import io
import json
import math
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = ("train", "predict", "merge_lora")
LATER = (  # what they, or DeepSpeed as it makes an engine, import on the way
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.muon.original_muon",
    "encodings.idna",
    "encodings.utf_8_sig",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "methods.adalora",
    "methods.pissa",
    "peft.utils.transformers_weight_conversion",
    "rouge_score.rouge_scorer",
    "torch._subclasses.schema_check_mode",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
    "transformers.optimization",
)


@functools.cache
def server() -> subprocess.Popen:
    """The process forked from, started by the first who asks; it ends when this process does, at the end of its stdin.

    Without GPUs: a process that has asked for them cannot be forked, and tests with ranks want none.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forks"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(**question) -> list:
    """What the process forked from answers."""
    process = server()
    print(json.dumps(question), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


@dataclass
class Run:
    """The processes of a program, one for each environment, which all write to the same two files.

    host: the process whose network, host name and mounts they have (tests/two_hosts.py).
    is_read: False gives them a standard output that nobody reads.
    """

    words: Sequence[str]
    environments: Sequence[dict[str, str]]
    cwd: Path = REPOSITORY
    host: int | None = None
    is_read: bool = True
    directory: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)
    processes: list[psutil.Process] = field(init=False)

    def __post_init__(self):
        place = {"cwd": str(self.cwd), "output": self.directory.name, "host": self.host, "is_read": self.is_read}
        pids = ask(start=[str(word) for word in self.words], environments=list(self.environments), **place)
        self.processes = [psutil.Process(pid) for pid in pids]

    def has_ended(self) -> bool:
        """Whether one of its processes has."""
        return any(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in self.processes)

    def finish(self, timeout: float) -> subprocess.CompletedProcess:
        """Its end; where one of its processes fails, the others are ended, as by a launcher.

        Returns:
            The exit code of the first that failed, as `subprocess` has it, and the output of all.

        Raises:
            TimeoutError: they did not end in that many seconds, and were killed.
        """
        (code,) = ask(wait=[process.pid for process in self.processes], timeout=timeout)
        encoding = self.environments[0].get("PYTHONIOENCODING", "utf-8")
        texts = [Path(self.directory.name, name).read_text(encoding) for name in ("stdout", "stderr")]
        self.directory.cleanup()
        if code is None:
            raise TimeoutError(f"{' '.join(map(str, self.words))} did not end in {timeout} seconds:\n{texts[1]}")
        return subprocess.CompletedProcess(self.words, code, *texts)


def enter(host: int) -> None:
    """Join the network, host name and mounts of a process, as `nsenter` does (`os.setns` is new in Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("net", "uts", "mnt"):
        descriptor = os.open(f"/proc/{host}/ns/{name}", os.O_RDONLY)
        if libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"cannot join the {name} namespace of process {host}")
        os.close(descriptor)


def become(words: list[str], environment: dict[str, str], cwd: str, output: str, host: int | None, is_read: bool):
    """Run a program in this process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if not is_read:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
        os.close(writer)
    if host:
        enter(host)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING")
    if encoding:  # as Python's own start does
        sys.stdout.reconfigure(encoding=encoding)
        sys.stderr.reconfigure(encoding=encoding)
    os.chdir(cwd)
    sys.argv = list(words)
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")


def wait(processes: list[multiprocessing.Process], timeout: float) -> int | None:
    """The exit code of the first process that fails, 0 where none does, None where they take too long.

    The others are ended a second later, as by DeepSpeed's launcher.
    """
    alive, result, give_up, end_others = set(processes), 0, time.monotonic() + timeout, math.inf
    while alive and time.monotonic() < give_up:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=0.2)
        for process in [process for process in alive if process.exitcode is not None]:
            alive.remove(process)
            if process.exitcode and not result:
                result, end_others = process.exitcode, time.monotonic() + 1
        if time.monotonic() > end_others:
            end_others = math.inf
            for process in alive:
                process.terminate()
    for process in alive:
        process.kill()
    return None if alive else result


def warm_up() -> None:
    """Import and cache here what every process would import and cache for itself."""
    for name in (*PROGRAMS, *LATER):
        importlib.import_module(name)
    from deepspeed import ops
    from matplotlib.figure import Figure
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from modes import MODES

    assert [mode.model_class for mode in MODES.values()]  # imports their folders
    assert ops.__compatible_ops__  # compiles small programs to find out
    get_checkpoint_conversion_mapping("")  # of peft's models: hundreds of regular expressions
    Figure().savefig(io.BytesIO())


def main() -> None:
    """Fork a process for each environment of each run."""
    warm_up()
    gc.freeze()  # or the first collection of every process copies all of it
    forked, processes = multiprocessing.get_context("fork").Process, {}
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            words, environments = question.pop("start"), question.pop("environments")
            started = [forked(target=become, args=(words, one), kwargs=question) for one in environments]
            for process in started:
                process.start()
                processes[process.pid] = process
            answer = [process.pid for process in started]
        else:
            answer = [wait([processes.pop(pid) for pid in question["wait"]], question["timeout"])]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
