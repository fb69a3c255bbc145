"""Copy the newest resume state to machines that lack it, if machines do not share a directory.

Rank 0 writes the states, so its machine has them. Every rank reads a state from its own machine, so machines that lack
it receive it at the start, in blocks, into their own --output_dir.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoints.position import ResumeState
from checkpoints.space import space_problem
from errors import UserError
from files import remove_whole, whole_directory
from parallel import launch, network, ranks

BLOCK = 64 * 2**20  # bytes per message
ROUND = 16  # blocks between two synchronizations of all ranks


def find_keepers(output_dir: Path) -> list[int]:
    """For every rank, the rank that writes for it: the lowest that sees the same directory; collective.

    Raises:
        UserError: a machine cannot write to the directory.
    """
    if not network.several_machines(ranks.peers()):
        return [0] * ranks.world_size()
    leads = launch.local_rank() == 0
    mark = output_dir / f".rank-{ranks.rank()}-{secrets.token_hex(8)}"

    def leave_mark() -> None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise UserError(
                f"--output_dir {output_dir} cannot be written ({error.strerror}): choose another."
            ) from None

    ranks.work_first(leave_mark, leads)
    marks = ranks.gathered(mark.name if leads else None)
    seen = [rank for rank, name in enumerate(marks) if name and (output_dir / name).exists()] if leads else []
    everyone = ranks.gathered(min(seen, default=ranks.rank()))
    if leads:
        mark.unlink(missing_ok=True)
    return [everyone[network.leader_of(ranks.peers(), rank)] for rank in range(ranks.world_size())]


def holders_of_newest(state: ResumeState | None) -> list[int]:
    """The ranks that have the newest state of all, lowest first; collective.

    Args:
        state: the newest state that this rank can read.

    Raises:
        UserError: two machines have different states of the same step.
    """
    records = ranks.gathered(state and state.record)
    newest = max((record["step"] for record in records if record), default=None)
    holders = [rank for rank, record in enumerate(records) if record and record["step"] == newest]
    different = [rank for rank in holders if records[rank] != records[holders[0]]]
    if different:
        hosts = [ranks.peers()[rank].host for rank in (holders[0], different[0])]
        raise UserError(
            f"{hosts[0]} and {hosts[1]} have different resume states of step {newest}: delete the one of another run, "
            "or name one with --resume_from_checkpoint."
        )
    return holders


def distribute_state(
    state: ResumeState | None, holders: list[int], states: Path, keepers: list[int], at: Callable[[str], None]
) -> ResumeState:
    """Copy the holders' state to machines that lack it; returns the state that this rank can load; collective.

    Args:
        state: this rank's newest state; used if it is one of the `holders`.
        states: the directory for copies.
        keepers: see `find_keepers`.
        at: see `Watchdog.at`.

    Raises:
        UserError: a disk is too full, or a file cannot be read or written.
    """
    sender = holders[0]
    record = ranks.gathered(state and state.record)[sender]
    lacking = [rank for rank in range(ranks.world_size()) if rank not in holders]
    target = states / f"step-{record['step']}"
    receivers = sorted({keepers[rank] for rank in lacking})
    if receivers:
        hosts = [ranks.peers()[rank].host for rank in receivers]
        ranks.say(f"copying the resume state {target.name} of {ranks.peers()[sender].host} to {', '.join(hosts)}")
        copy_files(state.directory if state and ranks.rank() == sender else None, target, sender, receivers, at)
    directory = state.directory if state and ranks.rank() in holders else target
    return ResumeState(directory, record)


def copy_files(source: Path | None, target: Path, sender: int, receivers: list[int], at: Callable[[str], None]) -> None:
    """Copy the files of a directory to receivers, atomically on each; collective.

    Args:
        source: the directory on the sender. target: its path on the receivers.
    """
    rank, receives = ranks.rank(), ranks.rank() in receivers
    own_files = sorted((path.name, path.stat().st_size) for path in source.iterdir()) if source else []
    files = ranks.gathered(own_files)[sender]
    ranks.work_first(lambda: check_target(target, sum(size for _, size in files)), receives)
    members = sorted({sender, *receivers})
    group = dist.new_group(members, backend="gloo", timeout=ranks.timeout())
    problem, done, total = None, 0, sum(size for _, size in files)
    with whole_directory(target) if receives else contextlib.nullcontext() as temporary:
        for number, (name, start, size) in enumerate(blocks(files)):
            if number % ROUND == 0:  # ranks that neither send nor receive count the same steps
                at(f"copying the resume state: {done / 2**30:.1f} of {total / 2**30:.1f} GiB")
                dist.barrier(ranks.cpu_group())
            done += size
            if rank not in members:
                continue
            block = torch.zeros(size, dtype=torch.uint8)
            try:
                if source:
                    read_block(source / name, start, block)
                dist.broadcast(block, src=sender, group=group)
                if temporary and not problem:
                    with (temporary / name).open("ab") as file:
                        file.write(block.numpy().data)
            except OSError as error:
                problem = f"{error.filename or target} cannot be copied ({error.strerror}): free some space or copy it."
        ranks.fail_together(problem)
    dist.barrier(ranks.cpu_group())


def read_block(path: Path, start: int, block: torch.Tensor) -> None:
    """Fill a block of bytes from a position in a file.

    Raises:
        OSError: it cannot be read, or is too short.
    """
    with path.open("rb") as file:
        file.seek(start)
        if file.readinto(block.numpy().data) != len(block):
            raise OSError(0, "it was truncated meanwhile", str(path))


def check_target(target: Path, size: int) -> None:
    """Raise UserError unless a copy of that size fits on the disk of `target`."""
    problem = space_problem(target.parent, size, "the copy of the resume state")
    if problem:
        raise UserError(problem)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written ({error.strerror}): choose another --output_dir.") from None


def blocks(files: list[tuple[str, int]]) -> Iterator[tuple[str, int, int]]:
    """(file, offset, bytes) of all blocks."""
    for name, size in files:
        for start in range(0, size, BLOCK):
            yield name, start, min(BLOCK, size - start)


def remove_beyond(states: list[Path], keep: int) -> None:
    """Delete the oldest states; `states` are newest first."""
    for old in states[keep:]:
        remove_whole(old)
