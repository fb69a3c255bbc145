"""Our programs without their four seconds of imports: forked from a process that has imported them.

A forked process runs the program's file as a launcher's child does, as `__main__`, with arguments, environment, working
directory and output of its own; only imports are inherited, and what Python does at its end is left out. `python -m
tests.forks` is the process forked from: it reads a run as a line of JSON, and writes a line with its exit code once all
of its ranks have ended.
"""

import functools
import gc
import importlib
import io
import json
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import time
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


def run(words: list[str], cwd: Path, environments: list[dict[str, str]], output: Path, timeout: float) -> int:
    """Run a program, once in each environment, all at the same time.

    Args:
        output: the directory in which `stdout` and `stderr` appear.

    Returns:
        The exit code of the first that fails, as `subprocess` has it; the others are ended then, as by a launcher.

    Raises:
        TimeoutError: they did not end in that many seconds.
    """
    asked = {"words": words, "cwd": str(cwd), "environments": environments, "output": str(output), "timeout": timeout}
    process = server()
    print(json.dumps(asked), file=process.stdin, flush=True)
    code = json.loads(process.stdout.readline())
    if code is None:
        raise TimeoutError(f"{' '.join(words)} did not end in {timeout} seconds")
    return code


def ranks() -> list[psutil.Process]:
    """The processes of the run that another thread waits for."""
    return psutil.Process(server().pid).children()


def become(words: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    """Run a program in this process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = list(words)
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")


def wait(processes: list[multiprocessing.Process], timeout: float) -> int | None:
    """The exit code of the first process that fails, 0 where none does, None where they take too long."""
    alive, result, give_up = set(processes), 0, time.monotonic() + timeout
    while alive and time.monotonic() < give_up:
        multiprocessing.connection.wait([one.sentinel for one in alive], timeout=1)
        for one in [one for one in alive if one.exitcode is not None]:
            alive.remove(one)
            if one.exitcode and not result:
                result = one.exitcode
                for other in alive:
                    other.terminate()
    for one in alive:
        one.kill()
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
    forked = multiprocessing.get_context("fork").Process
    for line in sys.stdin:
        asked = json.loads(line)
        of_all = asked["words"], asked["cwd"]
        processes = [forked(target=become, args=(*of_all, one, asked["output"])) for one in asked["environments"]]
        for one in processes:
            one.start()
        print(json.dumps(wait(processes, asked["timeout"])), flush=True)


if __name__ == "__main__":
    main()
