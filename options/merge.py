"""The flags of merge_lora.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from modes import GENERATIONS
from options.advice import MERGE_ADVICE
from options.parser import Program, parse_and_check, section
from options.sections.compute import PRECISIONS


@dataclass(frozen=True)
class MergeOptions:
    """Checkpoint, base and output directory of a merge."""

    TITLE: ClassVar[str] = "merging"

    ori_model_dir: str = flag(
        "",
        help="Path to the base that the checkpoint was trained on.",
        zh="检查点训练时的基座。",
        required="the base",
        metavar="DIR",
        elsewhere="base base_model base_model_name_or_path base_model_path base_path model model_name "
        "model_name_or_path model_path",
    )
    model_dir: str = flag(
        "",
        help="Path to the checkpoint, or to a peft LoRA adapter.",
        zh="检查点，或 peft 的 LoRA 适配器目录。",
        required="the directory of a checkpoint",
        metavar="DIR",
        elsewhere="adapter adapter_dir adapter_model adapter_name_or_path adapter_path checkpoint checkpoint_dir "
        "checkpoint_path lora_dir lora_model lora_model_path lora_path lora_weights peft_model_path peft_path",
    )
    mode: str | None = flag(
        None,
        help="Generation of the base, if its files do not show it.",
        zh="基座是哪一代，基座文件无法判断时使用。",
        choices=GENERATIONS,
    )
    output_dir: str | None = flag(
        None,
        help="Directory to write to (default: MODEL_DIR-merged).",
        zh="写到哪个目录（默认 MODEL_DIR-merged）。",
        metavar="DIR",
        elsewhere="export_dir merged_dir output output_path save_dir save_path",
    )
    max_shard_size: str = flag(
        "2GB",
        help="Maximum size of a weight file, such as 2GB or 500MB.",
        zh="单个权重文件的最大体积，例如 2GB、500MB。",
        metavar="SIZE",
        elsewhere="export_size shard_size",
    )
    precision: str = flag(
        "auto",
        help="Precision of the merged weights. auto: that of training, so that merging loses nothing (a peft adapter "
        "from elsewhere: that of the base).",
        zh="合并后权重的精度。auto：训练时的精度，合并不损失任何东西（外来的 peft 适配器：基座的精度）。",
        choices=PRECISIONS,
        elsewhere="dtype export_dtype torch_dtype",
        by_value={"bf16": "bf16", "fp16": "fp16 half", "fp32": "fp32"},
    )
    force: bool = flag(
        False,
        help="Merge even if the base's fingerprint is not the one that the checkpoint was trained on.",
        zh="基座指纹与训练时不同也合并。",
    )

    @property
    def output(self) -> str:
        """--output_dir, or MODEL_DIR-merged."""
        return self.output_dir or f"{self.model_dir.rstrip('/')}-merged"


MERGE = Program(
    name="merge_lora.py",
    description="Fold a checkpoint of any method back into its base: a complete model directory in the official "
    "layout.",
    sections=(MergeOptions,),
    advice=MERGE_ADVICE,
)


def parse_merge(argv: Sequence[str] | None = None) -> tuple[MergeOptions, list[str]]:
    """(options, one sentence for each problem).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(MERGE, argv)
    return section(MergeOptions, given), given.problems
