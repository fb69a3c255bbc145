"""A job: a detached process that waits for its devices, runs one command and records how it ended. Needs no torch.

    begin(directory, job)             # python -m web.job DIRECTORY, in a session of its own

DIRECTORY/job.json: kind ("train" or "merge"), command, environment, devices, queue (whether it waits), queued (time),
root; then the job's identity (processes.py), started, log_start (byte of train.log), ended, exit_code, canceled.
SIGTERM cancels a job that waits; otherwise it goes to the processes of the command, whose end the job awaits.
"""

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from files import write_json
from options.webui import PASSWORD_VARIABLE
from processes import identity, send, session_of
from serving.errors import ApiError
from web.paths import REPOSITORY
from web.states import Run, find, number, read

JOBS = ".jobs"  # directory of merges below the root
LOG_FILE = "train.log"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Keep others from starting, moving or deleting a run; the lock's descriptor, which a job keeps while it lives.

    Raises:
        ApiError: 409, somebody has the lock, or a process of the run lives.
    """
    descriptor = os.open(directory / ".job.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ApiError(409, f"{directory.name} is running: stop it first.", code="live") from None
        refuse_live(directory)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_live(directory: Path) -> None:
    """Raise ApiError where a process of the run lives, or may live on another host."""
    run = Run.at(directory)
    if run.state == "unknown" and run.is_live:
        host = run.job.get("host") or run.process.get("host")
        raise ApiError(409, f"{directory.name} runs on {host}: stop it there, or delete its process.json and job.json.")
    if run.is_live:
        raise ApiError(409, f"{directory.name} is running: stop it first.", code="live")


def begin(directory: Path, job: dict[str, Any], descriptor: int) -> None:
    """Start a job, whose directory is locked."""
    write_json(directory / "job.json", {**job, "queued": time.time()})
    with (directory / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "web.job", str(directory)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[descriptor],
            env={name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE},
        )
    threading.Thread(target=process.wait, daemon=True).start()  # else it stays as a zombie


def stop(directory: Path) -> None:
    """Let a run save a state and end; before its first step, end it. Cancel it in the queue."""
    run = Run.at(directory)
    write_json(directory / "stop.json", {"time": time.time()})
    if not send(run.process, signal.SIGTERM):
        send(run.job, signal.SIGTERM)


def kill(directory: Path) -> None:
    """End all processes of a run, on this host, without a state."""
    run = Run.at(directory)
    write_json(directory / "stop.json", {"time": time.time()})
    if run.state == "queued" or not run.job.get("started"):
        send(run.job, signal.SIGTERM)
    members = run.process.get("members")
    for _ in range(20):  # a process may start others in between
        left = session_of(run.job["pid"]) if run.job.get("started") else []
        left += [facts for facts in members or [] if isinstance(facts, dict)]
        if not any([send(facts, signal.SIGKILL) for facts in left]):
            return
        time.sleep(0.05)


class Job:
    """The job of this process."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.facts = read(directory / "job.json")
        self.canceled = False
        signal.signal(signal.SIGTERM, self.cancel)
        self.record(**identity())

    def record(self, **facts: object) -> None:
        """Add facts to job.json."""
        self.facts |= facts
        write_json(self.directory / "job.json", self.facts)

    def cancel(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM."""
        self.canceled = True
        self.end_command()

    def end_command(self) -> None:
        """Send SIGTERM to all processes of the command."""
        for facts in session_of(os.getpid()):
            send(facts, signal.SIGTERM)

    def run(self) -> None:
        """Wait, run the command, and record how it ended."""
        while not self.canceled and self.must_wait():
            time.sleep(1)
        if self.canceled:
            self.record(canceled=True, ended=time.time())
            return
        log_start = (self.directory / LOG_FILE).stat().st_size
        self.record(started=time.time(), log_start=log_start)
        code = self.execute()
        self.record(exit_code=code, canceled=self.canceled, ended=time.time())

    def must_wait(self) -> bool:
        """Whether a run that was queued before, or runs already, has one of the job's devices."""
        root, mine = Path(self.facts["root"]), (self.facts["queued"], str(self.directory))
        directories = [*find(root), *root.glob(f"{JOBS}/*")] if self.facts["queue"] else []
        for other in map(Run.at, directories):
            if other.directory == self.directory or not other.devices & set(self.facts["devices"]):
                continue
            turn = (number(other.job, "queued"), str(other.directory))
            if (other.job_lives or other.rank_lives) and (other.state != "queued" or turn < mine):
                return True
        return False

    def execute(self) -> int:
        """Run the command to the end of all of its processes; returns its exit code."""
        command = with_free_port(self.facts["command"])
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {"PATH": path, "PYTHONUNBUFFERED": "1", **self.facts["environment"]}
        print("$", *(f"{name}={value}" for name, value in self.facts["environment"].items()), shlex.join(command),
              flush=True)  # fmt: skip
        try:
            child = subprocess.Popen(
                command, cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            print(f"error: {command[0]} cannot be started ({error.strerror}): install requirements again.", flush=True)
            return 127
        if self.canceled:  # just before
            self.end_command()
        code = child.wait()
        while session_of(os.getpid()):  # ranks whose launcher was killed save a state
            time.sleep(0.2)
        return code


def with_free_port(command: list[str]) -> list[str]:
    """The command, with a free --master_port in place of one that is in use."""
    if "--master_port" not in command:
        return command
    i = command.index("--master_port") + 1
    for port in (int(command[i]), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return [*command[:i], str(probe.getsockname()[1]), *command[i + 1 :]]
    return command


if __name__ == "__main__":
    Job(Path(sys.argv[1])).run()
