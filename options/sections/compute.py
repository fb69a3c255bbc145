"""DeepSpeed, precision, and options that trade memory for time."""

from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from options.values import layer_count

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class ComputeOptions:
    """DeepSpeed, precision, and options that trade memory for time."""

    TITLE: ClassVar[str] = "compute"

    ds_file: str = flag(
        "ds_zero2_no_offload.json",
        help="DeepSpeed configuration: a path, or the name of a file in ds_configs/.",
        zh="DeepSpeed 配置：路径，或 ds_configs/ 里的文件名。",
        metavar="FILE",
        elsewhere="deepspeed_config_file deepspeed_file ds_config ds_config_file ds_config_path",
        by_value={"ds_zero2_offload.json": "cpu_offload offload offload_optimizer"},
    )
    precision: str = flag(
        "auto",
        help="Precision of weights and gradients. auto: fp32 on a CPU; on a GPU what the DeepSpeed file enables, else "
        "bf16 where the GPU has it, else fp16.",
        zh="权重和梯度的数值精度。auto：CPU 上为 fp32；GPU 上以 DeepSpeed 文件为准，文件未指定时优先 bf16，"
        "GPU 不支持则用 fp16。",
        choices=PRECISIONS,
        elsewhere="compute_dtype dtype mixed_precision torch_dtype",
        by_value={"bf16": "bf16 pure_bf16", "fp16": "fp16 half pure_fp16", "fp32": "fp32"},
    )
    gradient_checkpointing: bool = flag(
        False,
        help="Recompute activations during backward: saves memory, costs time.",
        zh="反向时重算激活：省显存，多花时间。",
        elsewhere="activation_checkpointing checkpoint_activations gradient_checkpoint use_gradient_checkpointing",
    )
    checkpoint_layers: int | str = flag(
        "auto",
        help="With --gradient_checkpointing: number of layers to recompute; auto: as few as fit into memory.",
        zh="配合 --gradient_checkpointing：重算几层；auto：能放进显存的最少层数。",
        parse=layer_count,
        metavar="auto|N",
        needs="gradient_checkpointing",
    )
    share_prompts: bool = flag(
        True,
        help="Compute the prompt prefix shared within a micro-batch only once (no effect with glm).",
        zh="同一个 micro-batch 里各提示词相同的开头只算一次（对 glm 不起作用）。",
    )
    cache_frozen_features: bool = flag(
        False,
        help="With freeze: run the frozen layers once per record, keep their output on disk, and train the upper "
        "layers on it.",
        zh="用于 freeze：冻结层对每条数据只算一次，输出存盘，之后只训练上面的层。",
        needs="train_type=freeze",
    )
    attn_implementation: str = flag(
        "auto",
        help="Attention within the samples of a row: sdpa, one by one; varlen, all in one flash-attention "
        "kernel (GPU, bf16 or fp16); auto: varlen where possible.",
        zh="同一行里各条样本的注意力：sdpa 逐条计算；varlen 用 flash attention 一次算完（需要 GPU，bf16 或 fp16）；"
        "auto：能用 varlen 就用。",
        choices=("auto", "sdpa", "varlen"),
        elsewhere="attn_impl flash_attention flash_attn use_flash_attention use_flash_attn",
    )
    torch_compile: bool = flag(
        False,
        help="Compile the layers: fewer kernels and less memory, after a slow start (not with ZeRO-3).",
        zh="编译各层：kernel 更少、显存更省，但启动较慢（不能与 ZeRO-3 同用）。",
        elsewhere="compile use_compile",
    )
    dataloader_num_workers: int | None = flag(
        None,
        help="Number of background threads per rank that prepare batches (default: 1 with a GPU, else 0).",
        zh="每个进程用几个后台线程准备批次（默认：有 GPU 时 1，否则 0）。",
        at_least=0,
        at_most=64,
        elsewhere="num_workers",
    )
    local_rank: int = flag(
        -1,
        help="Set by the deepspeed launcher.",
        zh="由 deepspeed 启动器设置。",
        synonyms=("local-rank",),  # of torch.distributed.launch
        ignored=True,
    )
