"""Checks before a run, and conditions that end it."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag


@dataclass(frozen=True)
class SafetyOptions:
    """Checks before a run, and conditions that end it."""

    TITLE: ClassVar[str] = "safety"

    dry_run: bool = flag(
        False,
        help="Check all records, show lengths, steps and the memory needed, then exit; reads no weights.",
        zh="检查全部数据，显示长度、步数和所需显存后退出；不读权重。",
    )
    gpu_memory: float | None = flag(
        None,
        help="With --dry_run: GPU memory in GiB; suggests flags that fit. Memory is then estimated for GPUs.",
        zh="配合 --dry_run：单卡显存（GiB），给出放得下的参数；此时按 GPU 估算。",
        above=0,
        needs="dry_run",
    )
    on_nonfinite: str = flag(
        "stop",
        help="After a step whose loss or gradient is NaN or Inf (it is never applied): stop, or skip the step.",
        zh="loss 或梯度出现 NaN/Inf 时，该步不更新参数；之后停止，还是跳过该步。",
        choices=("stop", "skip"),
        elsewhere="logging_nan_inf_filter",
    )
    timeout_minutes: float = flag(
        30.0,
        help="Time limit in minutes for ranks that wait for another one; the run then stops and names it.",
        zh="各进程等待某个进程的时限（分钟）；超时则停止，并指出等的是谁。",
        above=0,
        elsewhere="ddp_timeout",
    )
