"""Our programs without their four seconds of imports: forked from a process that has imported them.

A forked process runs the program's file as a launcher's child does, as `__main__`, with arguments, environment, working
directory and output of its own; only imports are inherited, and what Python does at its end is left out. `python -m
tests.forks ADDRESS` is the process forked from. It listens at a Unix socket: a line of JSON for each run to start is
answered with process ids, one for each run to wait for with its exit code.
"""

import contextlib
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
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
servers: list[subprocess.Popen | psutil.Process] = []  # that this process has started, and that stay
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
def connection() -> TextIO:
    """To the process forked from. The workers of a test run share one: whoever needs it first starts it.

    It ends with the process that started it, at the end of its stdin; whoever is connected keeps a copy of it.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}-{time.time_ns()}")
    address = Path(tempfile.gettempdir(), f"forks-{run}")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(address.with_suffix(".started"), os.O_CREAT | os.O_EXCL))
        servers.append(start_server(address))
    give_up = time.monotonic() + 60
    while not address.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(address))
    return client.makefile("rw")


def start_server(address: Path) -> subprocess.Popen:
    """Without GPUs: a process that has asked for them cannot be forked, and tests with ranks want none."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forks", address],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
    )


def ask(**question) -> list:
    """What the process forked from answers."""
    print(json.dumps(question), file=connection(), flush=True)
    return json.loads(connection().readline())


def kill_all() -> None:
    """Kill every run that nobody has waited for."""
    if connection.cache_info().currsize:
        ask(kill=True)


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

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        for process in self.processes:
            process.kill()

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
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(open(1, "wb", closefd=False), encoding=encoding)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = io.TextIOWrapper(
            open(2, "wb", closefd=False),  # noqa: SIM115
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
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


def serve(client: socket.socket) -> None:
    """Fork a process for each environment of each run that a client asks for, until it is gone."""
    forked, processes = multiprocessing.get_context("fork").Process, {}
    stream = client.makefile("rw")
    for line in iter(stream.readline, ""):
        question = json.loads(line)
        if "start" in question:
            words, environments = question.pop("start"), question.pop("environments")
            started = [forked(target=become, args=(words, one), kwargs=question) for one in environments]
            for process in started:
                process.start()
                processes[process.pid] = process
            answer = [process.pid for process in started]
        elif "wait" in question:
            answer = [wait([processes.pop(pid) for pid in question["wait"]], question["timeout"])]
        else:
            answer = []
            end(processes)
        print(json.dumps(answer), file=stream, flush=True)
    end(processes)


def end(processes: dict[int, multiprocessing.Process]) -> None:
    """Kill those that run, with all that they started."""
    for process in [process for process in processes.values() if process.is_alive()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.join()
    processes.clear()


def main(address: str) -> None:
    """Fork a server for each client."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    warm_up()
    gc.freeze()  # or the first collection of every process copies all of it
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        multiprocessing.get_context("fork").Process(target=serve, args=listening.accept()[:1]).start()
    for path in (Path(address), Path(address).with_suffix(".started")):
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
