"""Run every code path that depends on the device once, on tiny models, and compare losses that must be equal.

python benchmarks/smoke.py --work_dir /tmp/smoke                    # one GPU: about 60 cases, 12 at a time
python benchmarks/smoke.py --work_dir /tmp/smoke --parallel 2       # a CPU: the cases that need no GPU, in float32
python benchmarks/smoke.py --work_dir /tmp/smoke --only resume      # the cases whose name contains a text

Trains the golden bases of tests/fixtures for 8 steps per case: methods × ZeRO stage × offload × precision, attention
kernels, activation checkpointing, packing, cached features, LoRA variants, evaluation, torch.compile, Ctrl-C, and
SIGKILL with a resume. Prints a line per case (exit code, seconds, first and last loss), then a line per pair of cases
that must agree. Exit code 1 if a case fails or a pair differs by more than its tolerance.
"""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks import runs  # noqa: E402
from benchmarks.command import benchmark, output_flag, size_flag, work_dir_flag  # noqa: E402
from benchmarks.pairs import report  # noqa: E402
from benchmarks.runs import GOLDEN  # noqa: E402
from errors import UserError, run_program  # noqa: E402
from evaluation.report import read_history  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402

STEPS, RESUMED_FROM, INTERRUPTED_AT = 8, 4, 20
PATIENCE = 180  # seconds for one process
# Nats per token. In half precision 8 steps differ by rounding alone; a wrong path differs by far more.
TOLERANCE = {"half": 0.05, "float32": 1e-3}
CPU = {"device": "cpu", "pin_memory": True}
# A threshold of 10 values partitions every tensor of a tiny model: ZeRO-3 gathers as it does for 6B parameters.
STAGE3 = {"stage": 3, "stage3_param_persistence_threshold": 10, "reduce_bucket_size": 100_000}
ZERO = {
    "z1": {"stage": 1},
    "z2": {"stage": 2, "overlap_comm": False},
    "z2-overlap": {"stage": 2, "overlap_comm": True},
    "z2-offload": {"stage": 2, "offload_optimizer": CPU},
    "z3": STAGE3,
    "z3-offload": {**STAGE3, "offload_optimizer": CPU, "offload_param": CPU},
}
FP16, FP16_STATIC = {"fp16": {"enabled": True}}, {"fp16": {"enabled": True, "loss_scale": 128}}


@dataclass(frozen=True)
class Case:
    """One run of train.py.

    zero: a key of ZERO. flags: of train.py, in addition to those of all cases. ds: further sections of the DeepSpeed
    file. like: name of the case with the same losses. then: what happens to the run: "" nothing, "interrupt" Ctrl-C,
    "kill" SIGKILL once the state of step RESUMED_FROM exists, and the same command again. needs_gpu: the path does not
    exist on a CPU.
    """

    name: str
    mode: str
    train_type: str
    zero: str = "z2"
    flags: dict = field(default_factory=dict)
    ds: dict = field(default_factory=dict)
    like: str = ""
    then: str = ""
    needs_gpu: bool = False


def all_cases() -> list[Case]:
    """Every case; the slowest first."""
    cases = [Case("glm3-compile", "glm3", "lora", flags={"torch_compile": True}, like="glm3-lora", needs_gpu=True)]
    for mode in ("glm", "glm3"):
        cases += [Case(f"{mode}-{method}", mode, method) for method in ("lora", "ptuning", "freeze", "all")]
        of_all = {
            "sdpa": {"flags": {"attn_implementation": "sdpa"}, "needs_gpu": True},
            "fp32": {"flags": {"precision": "fp32"}, "needs_gpu": True},
            "checkpoint": {"flags": {"gradient_checkpointing": True, "checkpoint_layers": 4}},
            **{zero: {"zero": zero} for zero in ZERO if zero != "z2"},
        }
        cases += [Case(f"{mode}-all-{name}", mode, "all", like=f"{mode}-all", **more) for name, more in of_all.items()]
        embedding = {"prefix_layers": "embedding", "prefix_projection": "False"}
        cases += [
            Case(f"{mode}-packing", mode, "all", flags={"packing": True}),
            Case(f"{mode}-ptuning-embedding", mode, "ptuning", flags=embedding),
        ]
    accumulated = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}
    for zero in ("z2", "z2-offload", "z3-offload"):
        cases.append(Case(f"glm3-accumulation-{zero}", "glm3", "all", zero, accumulated, like="glm3-all"))
    for variant in ("adalora", "dora", "pissa", "rslora", "loraplus"):
        cases.append(Case(f"glm3-{variant}", "glm3", "lora", flags={"lora_variant": variant}))
    cases.append(Case("glm3-adalora-offload", "glm3", "lora", "z2-offload", {"lora_variant": "adalora"}))
    cases.append(Case("glm3-lora-z3", "glm3", "lora", "z3", like="glm3-lora"))
    for zero in ("z1", "z2", "z3"):
        cases.append(Case(f"glm3-fp16-{zero}", "glm3", "all", zero, ds=FP16, like="glm3-all", needs_gpu=True))
    cases.append(Case("glm3-fp16-static", "glm3", "all", ds=FP16_STATIC, like="glm3-all", needs_gpu=True))
    cases.append(Case("glm3-fp16-lora", "glm3", "lora", ds=FP16, like="glm3-lora", needs_gpu=True))
    features = {"cache_frozen_features": True}
    cases.append(Case("glm3-features", "glm3", "freeze", flags=features, like="glm3-freeze"))
    scored = {"dev_path": GOLDEN / "samples.jsonl", "eval_metric": "exact_match", "eval_samples": 8, "eval_step": 4}
    cases += [Case(f"glm3-evaluation-{zero}", "glm3", "all", zero, scored, like="glm3-all") for zero in ("z2", "z3")]
    for workers in (0, 2):
        flags = {"dataloader_num_workers": workers}
        cases.append(Case(f"glm3-workers-{workers}", "glm3", "all", flags=flags, like="glm3-all"))
    endless = {"max_steps": 100_000, "num_train_epochs": 100_000}
    cases.append(Case("glm3-interrupt", "glm3", "lora", flags=endless, then="interrupt"))
    states = {"save_state_step": RESUMED_FROM}
    for zero in ("z2", "z2-offload", "z3", "z3-offload"):
        like = "glm3-all" if zero == "z2" else f"glm3-all-{zero}"
        cases.append(Case(f"glm3-resume-{zero}", "glm3", "all", zero, states, like=like, then="kill"))
    resumed = {"flags": states, "ds": FP16, "then": "kill", "needs_gpu": True}
    cases.append(Case("glm3-resume-fp16", "glm3", "all", like="glm3-fp16-z2", **resumed))
    return cases


def chosen(text: str, on_gpu: bool) -> list[Case]:
    """The cases whose name contains a text and those that they are compared with, without what this device lacks."""
    cases = [case for case in all_cases() if on_gpu or not case.needs_gpu]
    wanted = {case.name for case in cases if text in case.name}
    wanted |= {case.like for case in cases if case.name in wanted}
    return [case for case in cases if case.name in wanted]


def command(case: Case, work_dir: Path) -> list[str]:
    """The command of a case; its DeepSpeed file is written."""
    file = work_dir / f"{case.name}.ds.json"
    file.write_text(json.dumps({"zero_optimization": ZERO[case.zero], **case.ds}))
    given = {
        "mode": case.mode, "train_type": case.train_type, "model_name_or_path": GOLDEN / case.mode / "base",
        "train_path": GOLDEN / "samples.jsonl", "max_len": 256, "max_src_len": 160, "per_device_train_batch_size": 4,
        "num_train_epochs": 50, "max_steps": STEPS, "learning_rate": 1e-3, "warmup_ratio": 0, "lora_dropout": 0,
        "show_loss_step": 1, "freeze_module_name": "layers.3.", "pre_seq_len": 4, "seed": 7, "ds_file": file,
        "output_dir": work_dir / case.name, "data_cache_dir": work_dir / "cache", **case.flags,
    }  # fmt: skip
    if case.then == "interrupt":  # the signal goes through the launcher, as from a terminal
        return runs.deepspeed("train.py", given)
    return [sys.executable, "train.py", *runs.flags(given)]


def start(case: Case, work_dir: Path) -> subprocess.Popen:
    """Start the run; its output is appended to NAME.log."""
    return runs.start(command(case, work_dir), work_dir / f"{case.name}.log", OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")


def signal_when(process: subprocess.Popen, ready: Callable[[], bool], number: int) -> None:
    """Send a signal to all processes of a run as soon as `ready`, or when the run takes too long."""
    runs.wait_for(ready, lambda: process.poll() is not None, PATIENCE)
    if process.poll() is None:
        runs.signal_all(process, number)


def finish(process: subprocess.Popen) -> int | str:
    """The exit code of a run, or "timeout"."""
    code = runs.finish(process, PATIENCE)
    return "timeout" if code is None else code


def sentence(log: Path, code: int | str) -> str:
    """Why a run failed, in a line."""
    return runs.sentence_of(log.read_text(errors="replace"), code)[:220]


def run(case: Case, work_dir: Path) -> dict:
    """What a case did: exit code, seconds, losses by step, and what went wrong ("" if nothing)."""
    begun, output = time.monotonic(), work_dir / case.name
    log = work_dir / f"{case.name}.log"
    process = start(case, work_dir)
    if case.then == "interrupt":
        signal_when(process, lambda: f"step {INTERRUPTED_AT}/" in log.read_text(errors="replace"), signal.SIGINT)
        code = finish(process)
        kept = list((output / "state").glob("step-*"))
        problem = "" if kept else f"exit code {code}, and no resume state was kept"
    else:
        if case.then == "kill":
            state = output / "state" / f"step-{RESUMED_FROM}" / "state.json"
            signal_when(process, state.exists, signal.SIGKILL)
            process.wait()
            process = start(case, work_dir)
        code = finish(process)
        problem = "" if code == 0 else sentence(log, code)
    path = output / "metrics.jsonl"
    losses = {row["step"]: row["loss"] for row in read_history(path)}
    if not problem and not case.then and sorted(losses) != list(range(1, STEPS + 1)):
        problem = f"losses of steps {sorted(losses)} only"
    return {"name": case.name, "code": code, "seconds": time.monotonic() - begun, "losses": losses, "problem": problem}


def compare(case: Case, results: dict[str, dict], tolerance: float) -> dict | None:
    """The largest difference between the losses of a case and those of the case that it must agree with.

    None where one of the two did not run.
    """
    losses, expected = (results.get(name, {}).get("losses") for name in (case.name, case.like))
    if not losses or not expected:
        return None
    steps = sorted(losses.keys() & expected.keys())
    differences = [abs(losses[step] - expected[step]) for step in steps]
    agrees = len(steps) == STEPS and all(difference <= tolerance for difference in differences)  # NaN compares false
    largest = max(differences, key=lambda difference: (math.isnan(difference), difference), default=math.nan)
    return {"name": case.name, "like": case.like, "difference": largest, "steps": len(steps), "agrees": agrees}


def line_of(result: dict) -> str:
    """A result in a line."""
    losses = [result["losses"][step] for step in sorted(result["losses"])]
    shown = f"{losses[0]:.4f} … {losses[-1]:.4f}" if losses else "no loss"
    wrong = f" | {result['problem']}" if result["problem"] else ""
    return f"{result['name']:28s} exit code {result['code']} {result['seconds']:6.1f} s  {shown}{wrong}"


@dataclass(frozen=True)
class SmokeOptions:
    """Which cases run, where and how many at a time."""

    TITLE: ClassVar[str] = "cases"

    work_dir: str = work_dir_flag(
        "Path to a directory of outputs and logs, which must not exist.", "存放输出和日志的目录，必须尚不存在。"
    )
    parallel: int = size_flag(12, "Number of runs at the same time.", "同时运行几个。")
    only: str = flag("", help="Text that the names of the cases must contain.", zh="只运行名称含有这段文字的用例。")
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, SmokeOptions)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases and compare; exits with 1 if one fails or a pair differs."""
    options = section(SmokeOptions, read_command_line(PROGRAM, argv))
    import torch

    work_dir, on_gpu = Path(options.work_dir).resolve(), torch.cuda.is_available()
    cases = chosen(options.only, on_gpu)
    if not cases:
        raise UserError(f"--only {options.only} is in the name of no case that this device can run: give another text.")
    try:
        work_dir.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--work_dir {work_dir} cannot be made ({error.strerror}): give a new directory.") from None
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{device}, torch {torch.__version__}: {len(cases)} cases, {options.parallel} at a time", flush=True)
    results = {}
    with ThreadPoolExecutor(options.parallel) as pool:
        for result in pool.map(lambda case: run(case, work_dir), cases):
            results[result["name"]] = result
            print(line_of(result), flush=True)
    tolerance = TOLERANCE["half" if on_gpu else "float32"]
    pairs = [pair for case in cases if case.like and (pair := compare(case, results, tolerance))]
    print(f"largest difference of a loss, in nats per token (tolerance {tolerance})")
    for pair in pairs:
        wrong = "" if pair["agrees"] else "  DIFFERS"
        print(f"{pair['name']:28s} from {pair['like']:20s} {pair['difference']:.5f} over {pair['steps']} steps{wrong}")
    failed = [result["name"] for result in results.values() if result["problem"]]
    differ = [pair["name"] for pair in pairs if not pair["agrees"]]
    print(
        f"{len(cases) - len(failed)} of {len(cases)} cases ran, {len(pairs) - len(differ)} of {len(pairs)} pairs agree"
    )
    report({"benchmark": "smoke", "device": device, "results": list(results.values()), "pairs": pairs}, options.output)
    if failed or differ:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
