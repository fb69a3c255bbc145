"""Start the programs that benchmarks measure, each in its own processes, and report why one failed."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?(?:error: (.+)|([A-Za-z_][\w.]*(?:Error|Exception): .+))$", re.MULTILINE)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flags(options: dict) -> list[str]:
    """{"mode": "glm", "is_skip": True} -> ["--mode", "glm", "--is_skip"]."""
    words = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in options.items())
    return [word for pair in words for word in pair]


def deepspeed(program: str, options: dict, num_gpus: int = 1) -> list[str]:
    """The command that starts a program on so many GPUs, or CPU ranks, of this machine."""
    return ["deepspeed", "--num_gpus", str(num_gpus), "--master_port", str(free_port()), program, *flags(options)]


def torchrun(num_ranks: int, *words: str) -> list[str]:
    """The command that starts a program on so many ranks, without DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    return [*launcher, *words]


def output_of(command: list[str], **changes: str) -> str:
    """What a command prints, run from the repository; ends this program with its output where it fails.

    Args:
        changes: environment variables.
    """
    ran = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **changes}, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{(ran.stdout + ran.stderr)[-3000:]}")
    return ran.stdout


def start(command: list[str], log: Path, **changes: str) -> subprocess.Popen:
    """Start a command from the repository in a session of its own; its output is appended to a file."""
    with log.open("a", encoding="utf-8") as output:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **changes},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def signal_all(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to every process of a session that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def finish(process: subprocess.Popen, seconds: float | None = None) -> int | None:
    """The exit code, None if it takes longer; whatever is left of the session is killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        signal_all(process)
        process.wait()


def exit_on_sigterm() -> None:
    """Let SIGTERM end this program as an exception does, so that it ends what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def wait_for(
    condition: Callable[[], object], has_ended: Callable[[], bool], seconds: float, every: float = 0.02
) -> bool:
    """Wait until a condition holds; False where the run has ended before, or it takes longer."""
    give_up = time.monotonic() + seconds
    while not condition():
        if has_ended() or time.monotonic() > give_up:
            return False
        time.sleep(every)
    return True


def run(command: list[str], log: Path, minutes: float) -> str | None:
    """Run a command from the repository; its output goes to a file. Returns what went wrong, in a sentence."""
    log.unlink(missing_ok=True)
    code = finish(start(command, log), 60 * minutes)
    if code is None:
        return f"stopped after {minutes:g} minutes (--row_minutes), see {log}"
    return None if code == 0 else f"{sentence_of(log.read_text(errors='replace'), code)} (see {log})"


def sentence_of(text: str, code: int | str) -> str:
    """What the output of a failed command says of why."""
    errors = ERROR.findall(text)
    if errors:  # one of ours says most; else the first that was raised
        ours = [sentence for sentence, _ in errors if sentence]
        return ours[-1] if ours else errors[0][1]
    killed = (
        "the system may have killed it for lack of memory; " if re.search(r"return code = -9|SIGKILL", text) else ""
    )
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{killed}exit code {code}: {lines[-1] if lines else 'no output'}"
