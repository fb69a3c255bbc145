"""A job: a detached process that waits for its devices, runs one command and records how it ended. Needs no torch.

    with locked(directory) as descriptor:
        begin(directory, {"kind": "train", "command": […], "environment": {}, "devices": ["0"], "queue": True,
                          "root": "/data"}, descriptor)          # python -m runs.job DIRECTORY, in a session of its own
    stop(directory)

DIRECTORY/job.json has these facts (queue: whether the job waits for its devices) and queued (time); then the job's
identity (processes.py), started, log_start (byte of train.log), ended, exit_code, canceled. SIGTERM, and a stop.json
before the command runs, cancel a job; SIGTERM is passed to all processes of the command, whose end the job awaits.
"""

import contextlib
import fcntl
import json
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
from processes import identity, send, session_begun_by, session_of
from runs.errors import Conflict
from runs.log import LOG_FILE
from runs.places import REPOSITORY
from runs.reading import number
from runs.states import Run, find

JOBS = ".webui/jobs"  # below the root: directories of jobs that are no runs


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Keep others from starting, moving or deleting a run; yields the lock's descriptor, which a job keeps.

    Raises:
        Conflict: somebody has the lock, or a process of the run lives.
    """
    descriptor = os.open(directory / ".job.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        has_lock = False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_lock = True
        refuse_live(directory, has_lock)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_live(directory: Path, has_lock: bool = True) -> None:
    """Raise Conflict where a process of the run lives, or may live on another host."""
    run = Run.at(directory)
    if run.is_live or not has_lock:
        raise Conflict(f"{directory.name} is running: stop it first.", code="live")
    if run.host:
        raise Conflict(f"{directory.name} runs on {run.host}: stop it there, or delete its process.json and job.json.")


def begin(directory: Path, job: dict[str, Any], descriptor: int) -> None:
    """Start a job in a directory that is locked. It gets its facts by a pipe: others may be able to write job.json."""
    facts = {**job, "queued": time.time()}
    write_json(directory / "job.json", facts)
    with open(directory / LOG_FILE, "ab", opener=open_log) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runs.job", str(directory)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=log,
            stderr=log, start_new_session=True, pass_fds=[descriptor],
            env={name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE},
        )  # fmt: skip
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps(facts).encode())
    threading.Thread(target=process.wait, daemon=True).start()  # else it stays as a zombie


def open_log(path: str, flags: int) -> int:
    """Open a log that is no link, which may lead out of the root, and no pipe that nobody reads."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def stop(directory: Path) -> None:
    """Let a run save a state and end; before its first step, end it. Cancel it in the queue."""
    ask_to_stop(directory)
    run = Run.at(directory)
    if not send(run.process, signal.SIGTERM):
        send(run.job, signal.SIGTERM)


def ask_to_stop(directory: Path) -> None:
    """Record that the page asked for it; a full disk must not keep a run from being stopped."""
    with contextlib.suppress(OSError):
        write_json(directory / "stop.json", {"time": time.time()})


def kill(directory: Path) -> None:
    """End all processes of a run on this host, without a state."""
    ask_to_stop(directory)
    run = Run.at(directory)
    members = run.process.get("members")
    if "started" not in run.job:
        send(run.job, signal.SIGTERM)
    for _ in range(20):  # a process may start others in between
        left = session_begun_by(run.job) if "started" in run.job else []
        left += [facts for facts in members if isinstance(facts, dict)] if isinstance(members, list) else []
        if not any([send(facts, signal.SIGKILL) for facts in left]):
            return
        time.sleep(0.05)


class Job:
    """The job of this process."""

    def __init__(self, directory: Path, facts: dict[str, Any]):
        self.directory, self.facts = directory, facts
        self.canceled = False
        signal.signal(signal.SIGTERM, self.cancel)
        self.record(**identity())

    def record(self, **facts: object) -> None:
        """Add facts to job.json."""
        self.facts |= facts
        write_json(self.directory / "job.json", self.facts)

    def cancel(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Pass SIGTERM to all processes of the command, and do not start it if there are none."""
        self.canceled = True
        for facts in session_of(os.getpid()):
            send(facts, signal.SIGTERM)

    def is_canceled(self) -> bool:
        """Whether there was a signal, or a request before this process could receive one."""
        return self.canceled or Run.at(self.directory).is_stopping

    def must_wait(self) -> bool:
        """Whether a run that was queued before, or runs already, has one of the job's devices."""
        root, mine = Path(self.facts["root"]), (self.facts["queued"], str(self.directory))
        for other in map(Run.at, [*find(root), *root.glob(f"{JOBS}/*")] if self.facts["queue"] else []):
            if other.directory != self.directory and other.is_live and other.devices & set(self.facts["devices"]):
                turn = (number(other.job, "queued"), str(other.directory))
                if "started" in other.job or other.rank_lives or turn < mine:
                    return True
        return False

    def run(self) -> None:
        """Wait, run the command, and record how it ended."""
        while not self.is_canceled() and self.must_wait():
            time.sleep(1)
        if self.is_canceled():
            self.record(canceled=True, ended=time.time())
            return
        self.record(started=time.time(), log_start=(self.directory / LOG_FILE).stat().st_size)
        code = self.execute(with_free_port(self.facts["command"]))
        self.record(exit_code=code, canceled=self.canceled, ended=time.time())

    def execute(self, command: list[str]) -> int:
        """Run a command to the end of all of its processes; returns its exit code."""
        given = self.facts["environment"]
        print("$", *(f"{name}={value}" for name, value in given.items()), shlex.join(command), flush=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **given}
        child = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL)
        if self.is_canceled():  # just before
            self.cancel()
        code = child.wait()
        while session_of(os.getpid()):  # ranks whose launcher was killed save a state
            time.sleep(0.2)
        return code


def with_free_port(command: list[str]) -> list[str]:
    """The command, with a free --master_port in place of one that is in use."""
    i = command.index("--master_port") + 1 if "--master_port" in command else 0
    for port in (command[i], "0") if i else ():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(port)))
            return [*command[:i], str(probe.getsockname()[1]), *command[i + 1 :]]
    return command


if __name__ == "__main__":
    Job(Path(sys.argv[1]), json.load(sys.stdin)).run()
