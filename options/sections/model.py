"""The base model and the method."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from methods import METHODS
from modes import GENERATIONS


@dataclass(frozen=True)
class ModelOptions:
    """The base model and the method."""

    TITLE: ClassVar[str] = "model"

    model_name_or_path: str = flag(
        "",
        help="Path to the base model: a directory with config.json, tokenizer files and weights.",
        zh="基座模型的目录，含 config.json、分词器文件和权重。",
        metavar="DIR",
        elsewhere="model model_dir model_id model_id_or_path model_name model_path base_model "
        "base_model_name_or_path base_model_path llm_path pretrained_model pretrained_model_name_or_path",
    )
    mode: str | None = flag(
        None,
        help="Generation of the base (default: recognized from its files).",
        zh="基座是哪一代（默认从基座的文件识别）。",
        choices=GENERATIONS,
        elsewhere="chatglm_version model_type model_version",
    )
    train_type: str = flag(
        "lora",
        help="What to train: some layers, a prefix, LoRA matrices, or all parameters.",
        zh="训练什么：若干层、前缀、LoRA 矩阵，或全部参数。",
        choices=tuple(METHODS),
        elsewhere="finetune_type finetuning_type method peft_type sft_type train_method tuner_type tuning_type",
        by_value={"lora": "use_lora use_peft"},
    )
    init_adapter: str | None = flag(
        None,
        help="Path to a LoRA adapter or P-Tuning prefix whose values the run starts from.",
        zh="LoRA 适配器或 P-Tuning 前缀的目录，训练从其中的值开始。",
        metavar="DIR",
        elsewhere="adapter adapter_name_or_path adapter_path checkpoint_dir lora_checkpoint lora_model_path "
        "lora_path lora_weights peft_model_path peft_path ptuning_checkpoint resume_lora_training",
    )
    quantization_bit: int | None = flag(
        None,
        help="Quantize the frozen base of lora or ptuning to this many bits while loading (needs bitsandbytes).",
        zh="加载时把 lora、ptuning 的冻结基座量化到多少位（需要 bitsandbytes）。",
        choices=(8, 4),
        elsewhere="bits quant_bits quantization_bits",
        by_value={"8": "load_in_8bit use_int8_training", "4": "load_in_4bit q_lora qlora use_qlora"},
    )
    double_quantization: bool = flag(
        False,
        help="With --quantization_bit 4: quantize the scales as well, which saves 0.37 bits per value.",
        zh="配合 --quantization_bit 4：缩放因子也量化，每个数再省 0.37 位。",
        elsewhere="bnb_4bit_use_double_quant double_quant use_double_quant",
    )
