"""Kill a two-rank run at random moments; check that it ends exactly as an undisturbed run does.

python benchmarks/kill_proof.py --work_dir /tmp/kill_proof --kills 20 --mode glm3 --train_type lora
python benchmarks/kill_proof.py --work_dir /tmp/kill_proof --kills 6 --train_type all --ds_file ds_zero3_offload.json

Trains the tiny base of tests/fixtures (LoRA with dropout) on two CPU ranks, a resume state after every step: once
undisturbed, once with SIGKILL to all of its processes at random moments, the same command again after each. The moments
are spread over the whole run; every second one waits for a state or checkpoint that is being written. Then every step's
loss and every tensor of the last checkpoint are compared to the last bit. Exit code 1 if anything differs. Prints JSON
last.
A start takes 15 to 25 s, so 20 kills take 6 to 10 minutes on two cores; with --launcher fork, one minute.
"""

import contextlib
import json
import math
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks import runs  # noqa: E402
from benchmarks.command import benchmark, mode_flag, seed_flag, size_flag, work_dir_flag  # noqa: E402
from checkpoints.write import step_of  # noqa: E402
from errors import run_program  # noqa: E402
from evaluation.report import read_history  # noqa: E402
from flags import flag  # noqa: E402
from methods import METHODS  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402
from tests import launch  # noqa: E402

if TYPE_CHECKING:
    import torch

SAVING = ("state/.step-*.tmp", ".epoch-*-step-*.tmp")  # there while a state or a checkpoint is written
PATIENCE = 180  # seconds until a run has got somewhere
STEPS_PER_EPOCH = 3  # 5 samples, 2 ranks


@dataclass(frozen=True)
class KillOptions:
    """Which run is killed, and how often."""

    TITLE: ClassVar[str] = "kills"

    work_dir: str = work_dir_flag("Path to a directory, which is emptied first.", "工作目录，开始前会被清空。")
    kills: int = size_flag(20, "Number of kills.", "杀掉几次。")
    steps_per_kill: int = size_flag(6, "Number of optimizer steps per kill.", "每次杀掉对应几个优化步。")
    seed: int = seed_flag(0)
    launcher: str = flag(
        "deepspeed",
        help="What starts the two ranks; fork: a process that has imported everything, in a second instead of 20.",
        zh="用什么启动两个 rank；fork：由已导入全部模块的进程启动，只需 1 秒而不是 20 秒。",
        choices=("deepspeed", "fork"),
    )
    mode: str = mode_flag("glm3")
    train_type: str = flag("lora", help="Method of the run.", zh="训练方法。", choices=tuple(METHODS))
    ds_file: str = flag(
        "ds_zero2_no_offload.json", help="DeepSpeed file of the run.", zh="DeepSpeed 配置文件。", metavar="FILE"
    )


PROGRAM = benchmark(__file__, __doc__, KillOptions)


class Launched:
    """A run under `deepspeed`; its output is added to a file."""

    def __init__(self, run: dict, log: Path):
        self.process = runs.start(runs.deepspeed("train.py", run, num_gpus=2), log, OMP_NUM_THREADS="1")

    def has_ended(self) -> bool:
        """Whether the launcher has."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        runs.signal_all(self.process)

    def finish(self) -> int | None:
        """Its exit code, at its end."""
        return runs.finish(self.process)


class Forked:
    """The same without the launcher and the imports (tests/forks.py)."""

    def __init__(self, run: dict, log: Path):
        self.run, self.log = launch.start_fork(["train.py", *runs.flags(run)], num_ranks=2), log

    def has_ended(self) -> bool:
        """Whether a rank has."""
        return self.run.has_ended()

    def kill(self) -> None:
        """As of `Launched`."""
        self.run.kill()

    def finish(self) -> int | None:
        """As of `Launched`."""
        result = self.run.finish(math.inf)
        with self.log.open("a", encoding="utf-8") as output:
            output.write(result.stdout + result.stderr)
        return result.returncode


def start(run: dict, launcher: str, log: Path) -> Launched | Forked:
    """Start the run with its flags on two ranks."""
    return {"deepspeed": Launched, "fork": Forked}[launcher](run, log)


def last_step(output_dir: Path) -> int:
    """The newest step in metrics.jsonl; 0 where there is none."""
    path = output_dir / "metrics.jsonl"
    rows = read_history(path)
    return rows[-1]["step"] if rows else 0


def being_saved(output_dir: Path) -> set[tuple[str, int]]:
    """Name and time of each state and checkpoint that is being written, or was when the run was killed."""
    names_and_times = set()
    for path in (path for pattern in SAVING for path in output_dir.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # finished in the meantime
            names_and_times.add((path.name, path.stat().st_mtime_ns))
    return names_and_times


def kill_at(output_dir: Path, process: Launched | Forked, step: int, inside_save: bool, delay: float) -> dict:
    """SIGKILL to all processes of a run, at that step or its first one if that is later.

    Returns the last step done and what was cut short in the middle.

    Raises:
        RuntimeError: the run ends before, or does not get that far in three minutes.
    """
    before, left = last_step(output_dir), being_saved(output_dir)

    def is_far() -> bool:
        return last_step(output_dir) >= max(before + 1, step)

    def is_saving() -> bool:
        return bool(being_saved(output_dir) - left)

    try:
        reached = runs.wait_for(is_far, process.has_ended, PATIENCE, every=0.01)
        if inside_save:
            reached = reached and runs.wait_for(is_saving, process.has_ended, PATIENCE, every=0.0002)
        else:
            time.sleep(delay)
    finally:
        process.kill()
    code = process.finish()
    if not reached:
        raise RuntimeError(f"the run did not get that far (exit code {code}): see its log")
    if code != -signal.SIGKILL:
        raise RuntimeError("the run had ended before it was killed: raise --steps_per_kill")
    return {"step": last_step(output_dir), "cut": sorted(name for name, _ in being_saved(output_dir) - left)}


def weights(output_dir: Path) -> "dict[str, torch.Tensor]":
    """Every tensor of the last checkpoint."""
    from safetensors.torch import load_file

    newest = max(output_dir.glob("epoch-*-step-*"), key=step_of)
    return {name: tensor for file in newest.glob("*.safetensors") for name, tensor in load_file(file).items()}


def differences(alone: Path, killed: Path, steps: int) -> list[str]:
    """What differs between two runs, in words."""
    import torch

    undisturbed, resumed = (
        {row["step"]: row["loss"] for row in read_history(run / "metrics.jsonl")} for run in (alone, killed)
    )
    different = [
        f"loss of step {step}"
        for step in range(1, steps + 1)
        if undisturbed.get(step) != resumed.get(step) or step not in undisturbed
    ]
    undisturbed, resumed = weights(alone), weights(killed)
    different += [f"tensor {name} in one run only" for name in sorted(undisturbed.keys() ^ resumed.keys())]
    different += [
        f"tensor {name}"
        for name in undisturbed.keys() & resumed.keys()
        if not torch.equal(undisturbed[name], resumed[name])
    ]
    return different


def train_options(options: KillOptions, output_dir: Path, steps: int) -> dict:
    """Flags of the run."""
    changes = {
        "num_train_epochs": steps // STEPS_PER_EPOCH,
        "learning_rate": 1e-3,
        "lora_dropout": 0.1,
        "save_state_step": 1,
        "save_total_limit": 3,
        "ds_file": options.ds_file,
    }
    return launch.train_options(options.mode, options.train_type, output_dir, **changes)


def kill_again_and_again(options: KillOptions, run: dict, steps: int, log: Path) -> list[dict]:
    """Kill a run at a moment in each part of it, all of them well before its end; what `kill_at` says of each.

    Args:
        run: its flags.
    """
    moments, generator = [], random.Random(options.seed)
    for i in range(options.kills):
        step = 1 + int((i + generator.random()) * (steps - 12) / options.kills)
        process = start(run, options.launcher, log)
        moment = kill_at(run["output_dir"], process, step, inside_save=i % 2 == 0, delay=generator.random() * 0.3)
        moments.append(moment)
        moment_of_kill = f"inside the save of {', '.join(moment['cut'])}" if moment["cut"] else "between saves"
        print(f"kill {i + 1}: after step {moment['step']}, {moment_of_kill}", flush=True)
    return moments


def describe(result: dict) -> str:
    """The result in a sentence."""
    differences = result["differences"]
    return (
        f"{result['kills']} kills, {result['inside_a_save']} of them inside a save, "
        f"{len(result['resumed_after_steps'])} resumes in {result['seconds']} s: "
        + (
            f"DIFFERENT: {'; '.join(differences)}"
            if differences
            else f"all {result['steps']} losses and all weights are those of the run left alone"
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; exits with 1 if anything differs."""
    options = section(KillOptions, read_command_line(PROGRAM, argv))
    work_dir = Path(options.work_dir)
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    alone, killed, log = (work_dir / name for name in ("alone/output", "killed/output", "log.txt"))
    steps = 12 + -(-options.kills * options.steps_per_kill // STEPS_PER_EPOCH) * STEPS_PER_EPOCH
    print(f"{steps} steps left alone", flush=True)
    started = time.monotonic()
    code = start(train_options(options, alone, steps), options.launcher, log).finish()
    if code:
        sys.exit(f"the run that was left alone failed with exit code {code}: see {log}")
    print(f"  {time.monotonic() - started:.0f} s", flush=True)

    run = train_options(options, killed, steps)
    moments = kill_again_and_again(options, run, steps, log)
    code = start(run, options.launcher, log).finish()
    text = log.read_text(encoding="utf-8")
    result = {
        "mode": options.mode,
        "train_type": options.train_type,
        "ds_file": options.ds_file,
        "steps": steps,
        "kills": len(moments),
        "inside_a_save": sum(bool(moment["cut"]) for moment in moments),
        "resumed_after_steps": [int(step) for step in re.findall(r"resumed from .*, after step (\d+)", text)],
        "states_passed_over": text.count("Trying the one before it."),
        "checkpoints_left": sorted(path.name for path in killed.glob("epoch-*-step-*")),
        "left_behind": sorted(being_saved(killed)),
        "seconds": round(time.monotonic() - started),
        "differences": differences(alone, killed, steps) if code == 0 else [f"exit code {code} of the last start"],
    }
    print(describe(result))
    print(json.dumps(result))
    if result["differences"]:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
