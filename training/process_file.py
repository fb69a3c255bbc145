"""output_dir/process.json: the processes that train there, and how the run ended. The page finds and stops runs by it.

pid, created, since_boot, host: of rank 0 (processes.py). members: the same of every rank of its machine.
devices: the GPUs of these ranks by their numbers in CUDA_VISIBLE_DEVICES, or ["cpu"]. ranks: of all machines.
cwd: directory that relative paths of run.yaml start from. start_step, total_steps: of this process, of the run.
ready: time when the file was written, just before the first step. From then on, SIGTERM leaves a resume state.
outcome: null while it runs; then "finished", "stopped" or "failed". It stays null after SIGKILL.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import psutil

from checkpoints.resume import Start
from files import write_json
from parallel import ranks
from processes import identity

PROCESS_FILE = "process.json"


class ProcessFile:
    """The file of a run that begins; rank 0 writes it, the other ranks do nothing. A full disk does not end the run."""

    def __init__(self, output_dir: Path, start: Start):
        self.path = output_dir / PROCESS_FILE
        self.facts: dict[str, Any] = {}
        if ranks.is_main():
            here = [ranks.peers()[rank] for rank in ranks.on_this_machine()]
            self.facts = {
                **identity(),
                "members": [facts for peer in here for facts in found(peer.pid)],
                "devices": devices_of([peer.local_rank for peer in here], here[0].device == "cuda"),
                "ranks": ranks.world_size(),
                "cwd": os.getcwd(),
                "start_step": start.position.step,
                "total_steps": start.total_steps,
                "ready": time.time(),
                "outcome": None,
            }
        self.write()

    def write(self, **changes: object) -> None:
        """Change facts."""
        if ranks.is_main():
            self.facts |= changes
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self.facts)


def found(pid: int) -> list[dict[str, Any]]:
    """The identity of a process; none if it has ended already."""
    try:
        return [identity(pid)]
    except psutil.NoSuchProcess:
        return []


def devices_of(local_ranks: list[int], on_gpu: bool) -> list[str]:
    """The devices of these ranks: ["2", "3"] for two ranks under CUDA_VISIBLE_DEVICES=2,3."""
    if not on_gpu:
        return ["cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return [names[rank].strip() if rank < len(names) else str(rank) for rank in local_ranks]
