"""The samples of an optimizer step, and the number of steps."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag


@dataclass(frozen=True)
class StepOptions:
    """The samples of an optimizer step, and the number of steps."""

    TITLE: ClassVar[str] = "steps"

    per_device_train_batch_size: int = flag(
        16,
        help="Number of samples per rank in a micro-batch.",
        zh="每个进程一个 micro-batch 的样本数。",
        at_least=1,
        elsewhere="batch_size micro_batch_size per_device_batch_size per_gpu_train_batch_size "
        "train_batch_size train_micro_batch_size_per_gpu",
    )
    gradient_accumulation_steps: int = flag(
        1,
        help="Number of micro-batches in an optimizer step.",
        zh="每个优化步累积的 micro-batch 数。",
        at_least=1,
        elsewhere="accumulate_grad_batches accumulation_steps grad_accum_steps gradient_accumulation",
    )
    num_train_epochs: float = flag(
        1,
        help="Number of training epochs; a fraction ends within an epoch, at a whole step (rounded up).",
        zh="训练轮数（epoch）；小数表示在某一轮中途结束，优化步数向上取整。",
        above=0,
        below=2**31,
        elsewhere="epoch epochs max_epochs n_epochs num_epoch num_epochs train_epochs",
    )
    max_steps: int | None = flag(
        None,
        help="Number of optimizer steps; takes precedence over --num_train_epochs.",
        zh="总优化步数；优先于 --num_train_epochs。",
        at_least=1,
        elsewhere="max_iters max_train_steps num_train_steps total_steps train_iters train_steps",
    )
    packing: bool = flag(
        False,
        help="Fill rows of --max_len with several samples each, without attention between them; "
        "--per_device_train_batch_size then counts rows.",
        zh="把多条样本装进同一个 --max_len 长的行，彼此不可见；此时 --per_device_train_batch_size 数的是行。",
        elsewhere="neat_packing pack sample_packing",
    )
    seed: int = flag(
        1234,
        help="Seed of the order of samples, dropout and new weights.",
        zh="样本顺序、dropout 和新参数的随机种子。",
        at_least=0,
        below=2**32,
        elsewhere="data_seed random_seed",
    )
