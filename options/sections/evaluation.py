"""Evaluation during a run, the best checkpoint and early stopping."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from scores import SCORES


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation during a run, the best checkpoint and early stopping."""

    TITLE: ClassVar[str] = "evaluation"

    dev_path: str | None = flag(
        None,
        help="Path to records to evaluate on; they are not trained on.",
        zh="用于评测的数据的路径，不参与训练。",
        metavar="FILE",
        several=True,
        elsewhere="dev_file eval_data_path eval_dataset eval_file eval_path val_data val_file val_path "
        "valid_file validation_data validation_file validation_path",
    )
    eval_step: int | None = flag(
        None,
        help="Number of steps between two evaluations; there is always one at the end of an epoch.",
        zh="每隔多少步评测一次；每个 epoch 结束时总会评测。",
        at_least=1,
        needs="dev_path",
        elsewhere="eval_interval eval_steps evaluation_steps validation_steps",
    )
    eval_metric: str = flag(
        "dev_loss",
        help="Metric that selects the best checkpoint: the loss on --dev_path, or a score of generated answers.",
        zh="用哪个指标挑选最佳检查点：--dev_path 上的 loss，或生成答案的得分。",
        choices=("dev_loss", *SCORES),
        needs="dev_path",
        elsewhere="metric metric_for_best_model metrics",
    )
    eval_samples: int = flag(
        64,
        help="Number of records of --dev_path and of --probe_path to answer if --eval_metric is a score.",
        zh="--eval_metric 是得分时，从 --dev_path 和 --probe_path 各抽多少条来回答。",
        at_least=1,
        needs="dev_path",
        elsewhere="max_eval_samples num_eval_samples",
    )
    early_stopping_patience: int | None = flag(
        None,
        help="Number of evaluations in a row without improvement after which the run stops.",
        zh="连续多少次评测没有变好就停止。",
        at_least=1,
        needs="dev_path",
        elsewhere="early_stop early_stopping patience",
    )
    task_key: str | None = flag(
        None,
        help="Key of a record that names its task (instruction is possible, too): adds a score for each task.",
        zh="记录里标明任务的键（也可以是 instruction）：每个任务另给一个得分。",
        metavar="KEY",
        needs="dev_path",
    )
    probe_path: str | None = flag(
        None,
        help="Path to records of other tasks, evaluated before training and together with --dev_path: measures "
        "forgetting.",
        zh="其他任务的数据的路径，训练前和每次评测时各测一遍，用来衡量遗忘。",
        metavar="FILE",
        several=True,
        needs="dev_path",
    )
