"""The files that a run writes, and when."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag


@dataclass(frozen=True)
class OutputOptions:
    """The files that a run writes, and when."""

    TITLE: ClassVar[str] = "output"

    output_dir: str = flag(
        "",
        help="Directory for checkpoints, metrics.jsonl, run.yaml, TensorBoard files and the loss curve.",
        zh="检查点、metrics.jsonl、run.yaml、TensorBoard 文件和 loss 曲线的目录。",
        metavar="DIR",
        elsewhere="checkpoint_path output output_path save_dir save_path",
    )
    report_to: tuple[str, ...] = flag(
        ("tensorboard",),
        help="Trackers that receive the metrics, separated by commas: tensorboard, wandb, swanlab, mlflow; or none.",
        zh="接收指标的实验跟踪工具，用逗号分隔：tensorboard、wandb、swanlab、mlflow；none 表示都不用。",
        elsewhere="log_with logger logging_backend tracker trackers",
        by_value={"wandb": "use_wandb wandb", "swanlab": "use_swanlab", "tensorboard": "use_tensorboard"},
    )
    show_loss_step: int = flag(
        10,
        help="Number of steps between two lines of metrics.",
        zh="每隔多少步记录一次指标。",
        at_least=1,
        elsewhere="log_every log_interval log_steps logging_step logging_steps print_freq",
    )
    save_model_step: int | None = flag(
        None,
        help="Number of steps between two checkpoints; there is always one at the end of an epoch.",
        zh="每隔多少步保存一个检查点；每个 epoch 结束时总会保存。",
        at_least=1,
        elsewhere="checkpoint_interval checkpointing_steps save_every save_freq save_interval save_step save_steps",
    )
    save_state_step: int | None = flag(
        None,
        help="Number of steps between two resume states (default: one with each checkpoint).",
        zh="每隔多少步保存一份续训状态（默认随每个检查点各存一份）。",
        at_least=1,
    )
    save_total_limit: int | None = flag(
        None,
        help="Number of most recent checkpoints to keep (default: all).",
        zh="只保留最近的多少个检查点（默认全部）。",
        at_least=1,
        elsewhere="keep_last max_checkpoints max_to_keep",
    )
    resume_from_checkpoint: str = flag(
        "auto",
        help="Directory of a resume state; auto: the newest one in output_dir, if any; none: start from step 0 and "
        "replace existing files. With auto, checkpoints without a state are an error.",
        zh="auto：output_dir 里有状态就从最新的一份续训（有检查点却没有状态则报错）；"
        "none：从第 0 步开始并覆盖已有内容；也可以给一份状态的目录。",
        metavar="auto|none|DIR",
        elsewhere="load_checkpoint resume resume_from resume_path resume_training",
        by_value={"none": "overwrite_output_dir"},
    )
