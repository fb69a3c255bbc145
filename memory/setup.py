"""The settings of a run that determine its memory."""

from dataclasses import dataclass

from memory.pinned import LIMIT_MB, rounded_up_to

VALUE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch.

    tokens, samples: its numbers, without padding and without shared prompts (--share_prompts).
    supervised: supervised positions.
    squares: the samples' squared lengths, summed. answers: their lengths times their supervised positions, summed.
    """

    tokens: int
    samples: int
    supervised: int
    squares: int
    answers: int


@dataclass(frozen=True)
class Setup:
    """The settings of a run that determine its memory.

    recomputed: number of blocks with activation checkpointing, the lowest ones that backward reaches.
    reduce_bucket_size, prefetch_bucket_size, max_live_parameters, persistence_threshold, sub_group_size: values, as in
        the DeepSpeed file.
    pin_memory: of offloaded tensors.
    rounded_up_to: bytes; torch rounds smaller pinned blocks up to a power of two. train.py sets the default.
    on_gpu: False for a run on CPUs; `gpu` in an estimate is then their memory.
    """

    precision: str
    stage: int
    ranks: int
    batch: Batch
    recomputed: int = 0
    accumulation: int = 1
    lora_dropout: bool = True
    offload_optimizer: bool = False
    offload_param: bool = False
    pin_memory: bool = True
    rounded_up_to: int = LIMIT_MB * 2**20
    reduce_bucket_size: int = 5 * 10**8
    overlap_comm: bool = True
    prefetch_bucket_size: int = 5 * 10**7
    max_live_parameters: int = 10**9
    persistence_threshold: int = 10**5
    sub_group_size: int = 10**8
    on_gpu: bool = True

    @property
    def gathers(self) -> bool:
        """Whether weights are gathered, or copied from RAM, before they are used."""
        return self.stage == 3 and (self.ranks > 1 or (self.offload_param and self.on_gpu))

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight, an activation or a gradient."""
        return VALUE_BYTES[self.precision]


def read_setup(
    ds_config: dict,
    *,
    precision: str,
    ranks: int,
    batch: Batch,
    accumulation: int = 1,
    lora_dropout: bool = True,
    recomputed: int = 0,
    on_gpu: bool = True,
) -> Setup:
    """A Setup with the values of a resolved DeepSpeed configuration, or DeepSpeed's defaults."""
    zero = ds_config["zero_optimization"]
    stage = zero["stage"]
    optimizer, param = zero.get("offload_optimizer"), zero.get("offload_param")
    return Setup(
        precision=precision,
        stage=stage,
        ranks=ranks,
        batch=batch,
        recomputed=recomputed,
        accumulation=accumulation,
        lora_dropout=lora_dropout,
        offload_optimizer=optimizer is not None,
        offload_param=param is not None,
        pin_memory=bool((optimizer or param or {}).get("pin_memory", False)),
        rounded_up_to=rounded_up_to(),
        overlap_comm=bool(zero.get("overlap_comm", stage == 3)),
        reduce_bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
        prefetch_bucket_size=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        max_live_parameters=int(zero.get("stage3_max_live_parameters", 1e9)),
        persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        sub_group_size=int(zero.get("sub_group_size", 1e9)),
        on_gpu=on_gpu,
    )
