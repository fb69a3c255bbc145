"""AdamW and its learning-rate schedule."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW and its learning-rate schedule."""

    TITLE: ClassVar[str] = "optimizer"

    learning_rate: float = flag(
        1e-3,
        help="Peak learning rate, reached after the warm-up.",
        zh="最高学习率，预热结束时达到。",
        above=0,
        elsewhere="lr",
    )
    weight_decay: float = flag(
        0.1,
        help="Decoupled weight decay of AdamW.",
        zh="AdamW 的解耦权重衰减。",
        at_least=0,
        elsewhere="wd",
    )
    warmup_ratio: float = flag(
        0.1,
        help="Fraction of steps used for linear warm-up.",
        zh="线性预热占总步数的比例。",
        at_least=0,
        at_most=1,
        elsewhere="warmup_proportion",
    )
    warmup_steps: float | None = flag(
        None,
        help="Number of warm-up steps; takes precedence over --warmup_ratio. Below 1: a fraction of all steps.",
        zh="预热步数，优先于 --warmup_ratio；小于 1 时表示占总步数的比例。",
        at_least=0,
        below=2**31,
        elsewhere="lr_warmup_steps num_warmup_steps warmup_iters warmup_step",
    )
    lr_scheduler_type: str = flag(
        "cosine",
        help="Learning-rate schedule after the warm-up, as in transformers; constant has the warm-up, too.",
        zh="预热之后的学习率调度，与 transformers 相同；constant 也有预热。",
        choices=SCHEDULES,
        elsewhere="lr_decay_style lr_schedule lr_scheduler scheduler scheduler_type",
    )
    max_grad_norm: float = flag(
        1.0,
        help="Maximum L2 norm of the gradient; 0 disables clipping.",
        zh="梯度 L2 范数的裁剪上限；0 表示不裁剪。",
        at_least=0,
        elsewhere="clip_grad clip_grad_norm grad_clip gradient_clipping",
    )
