"""LoRA: W x + (alpha / r) B A x, with trained A and B and frozen W (https://arxiv.org/abs/2106.09685), through peft.

--lora_variant changes how A and B are initialized, scaled or trained:

dora      W' = m (W + s B A) / |W + s B A|, with a trained length m of every row (https://arxiv.org/abs/2402.09353)
rslora    alpha / sqrt(r) instead of alpha / r (https://arxiv.org/abs/2312.03732)
loraplus  B trains at a multiple of the rate (https://arxiv.org/abs/2402.12354)
pissa     initialized with the largest singular vectors of W (https://arxiv.org/abs/2404.02948), see methods/pissa.py
adalora   B E A; ranks are allocated by importance (https://arxiv.org/abs/2303.10512), see methods/adalora.py

A checkpoint is a plain peft adapter directory: peft.PeftModel.from_pretrained loads it, too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from errors import UserError
from flags import flag
from methods.method import STATE_BYTES, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from methods.adapter import Adapter
    from methods.hooks import Hooks
    from methods.method import Tensors
    from methods.start import StartValues
    from methods.tensors import Fold
    from parameters import Parameter

# variant -> (ZeRO stages at which it does not work, why)
STAGES = {
    "dora": ((3,), "it needs whole weights in the forward pass"),
    "adalora": ((3,), "it needs whole weights and gradients by name"),
}
ON_QUANTIZED = ("lora", "rslora", "loraplus")  # variants that do not read the base's weights
NOT_QUANTIZED = (
    *("word_embeddings", "final_layernorm", "input_layernorm", "post_attention_layernorm", "lm_head", "output_layer"),
)
IMPORTANCE_BYTES = 8  # in a resume state, per value of AdaLoRA's matrices


@dataclass(frozen=True)
class Lora(Method):
    """Size, target modules and variant of the matrices."""

    TITLE: ClassVar[str] = "lora"

    lora_dim: int = flag(
        8,
        help="Rank of the LoRA matrices.",
        zh="LoRA 矩阵的秩。",
        at_least=1,
        elsewhere="lora_attention_dim lora_r lora_rank r rank",
    )
    lora_alpha: int = flag(
        30,
        help="LoRA scale: the update is scaled by alpha / dim.",
        zh="LoRA 缩放：增量乘以 alpha / dim。",
        above=0,
        elsewhere="alpha lora_scale lora_scaling",
    )
    lora_dropout: float = flag(
        0.1,
        help="Dropout on the input of the LoRA matrices.",
        zh="LoRA 矩阵输入上的 dropout。",
        at_least=0,
        below=1,
        elsewhere="lora_dropout_p",
    )
    lora_module_name: tuple[str, ...] = flag(
        ("query_key_value",),
        help="Names of linear modules to add LoRA matrices to, separated by commas; all-linear: all but the output "
        "layer.",
        zh="加 LoRA 矩阵的线性层名，用逗号分隔；all-linear：输出层以外的全部。",
        elsewhere="lora_modules lora_target lora_target_module lora_target_modules lora_trainable target_modules",
    )
    lora_variant: str = flag(
        "lora",
        help="How the LoRA matrices are initialized, scaled and trained; docs/methods.md compares the variants.",
        zh="LoRA 矩阵怎样初始化、缩放和训练，各变体的比较见 docs/methods.zh-CN.md。",
        choices=("lora", "dora", "rslora", "loraplus", "pissa", "adalora"),
        elsewhere="init_lora_weights",
        by_value={"dora": "use_dora", "rslora": "use_rslora", "pissa": "pissa_init"},
    )
    loraplus_lr_ratio: float = flag(
        16.0,
        help="With --lora_variant loraplus: factor on the learning rate of the B matrices.",
        zh="配合 --lora_variant loraplus：B 矩阵的学习率是多少倍。",
        above=0,
        needs="lora_variant=loraplus",
        elsewhere="lora_plus_lr_ratio lorap_lr_ratio",
    )
    adalora_target_r: int = flag(
        4,
        help="With --lora_variant adalora: average rank at the end; --lora_dim is the rank at the start.",
        zh="配合 --lora_variant adalora：结束时的平均秩；--lora_dim 是开始时的秩。",
        at_least=1,
        needs="lora_variant=adalora",
        elsewhere="target_r",
    )
    modules_to_save: tuple[str, ...] | None = flag(
        None,
        help="Names of modules to train in full beside the LoRA matrices, such as word_embeddings, separated by "
        "commas.",
        zh="与 LoRA 矩阵一起完整训练的模块名，例如 word_embeddings，用逗号分隔。",
        elsewhere="additional_target lora_modules_to_save",
    )

    def conflicts(self, stage: int, ds_file: str) -> list[str]:
        """One sentence for each conflict of --lora_variant with a ZeRO stage."""
        variant, problems = self.lora_variant, []
        stages, reason = STAGES.get(variant, ((), ""))
        if stage in stages:
            problems.append(
                f"--lora_variant {variant} does not work at ZeRO stage {stage} of --ds_file {ds_file} ({reason}): "
                "take a file with stage 2."
            )
        if variant == "adalora" and self.adalora_target_r >= self.lora_dim:
            problems.append(
                f"--adalora_target_r {self.adalora_target_r} is not below --lora_dim {self.lora_dim}: AdaLoRA starts "
                "with the latter and ends with the former."
            )
        return problems

    def quantized_conflicts(self, quantizer: str) -> list[str]:
        """Conflicts of variants that read the base's weights, and of whole modules that are quantized."""
        problems = []
        if self.lora_variant not in ON_QUANTIZED:
            problems.append(
                f"--lora_variant {self.lora_variant} does not work on quantized weights ({quantizer}): use "
                f"{', '.join(ON_QUANTIZED)}."
            )
        quantized = [name for name in self.modules_to_save or () if name.rsplit(".", 1)[-1] not in NOT_QUANTIZED]
        if quantized:
            problems.append(
                f"--modules_to_save {quantized[0]} would train quantized weights ({quantizer}): use "
                f"{', '.join(NOT_QUANTIZED)}."
            )
        return problems

    def start_conflict(self) -> str:
        """PiSSA and AdaLoRA compute their own initial values."""
        if self.lora_variant not in ("pissa", "adalora"):
            return ""
        return f"cannot be combined with --lora_variant {self.lora_variant}, which has its own start: give one of them"

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError for a name without a matching layer, or a rank that is too high."""
        from methods.targets import target_layers, whole_modules

        targets = target_layers(model, self.lora_module_name)
        inside = [
            f"{module} has LoRA matrices in {target}"
            for module in whole_modules(model, self.modules_to_save)
            for target in targets
            if f"{target}.".startswith(f"{module}.")
        ]
        if inside:
            raise UserError(f"--modules_to_save: {inside[0]}, it cannot be trained both ways: leave one of them out.")
        smallest = min(min(model.get_submodule(target).weight.shape) for target in targets)
        if self.lora_variant == "pissa" and self.lora_dim > smallest:
            raise UserError(
                f"--lora_dim {self.lora_dim} is more than PiSSA's {smallest} singular vectors: use at most {smallest}."
            )

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Wrap the model with newly initialized adapters; only these and `modules_to_save` are trained.

        The latter are trained in place: peft would train a copy, which doubles the memory and unties tied weights.
        """
        import peft

        from methods import adalora, pissa
        from methods.targets import target_modules, whole_modules

        whole = whole_modules(model, self.modules_to_save)
        settings = {
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": target_modules(model, self.lora_module_name),
            "bias": "none",
            "task_type": "CAUSAL_LM",
        }
        if self.lora_variant == "adalora":
            config = adalora.make_config(self.lora_dim, self.adalora_target_r, settings)
        else:
            config = peft.LoraConfig(
                r=self.lora_dim,
                use_dora=self.lora_variant == "dora",
                use_rslora=self.lora_variant == "rslora",
                **settings,
            )
        model = peft.get_peft_model(model, config)
        if self.lora_variant == "pissa":
            pissa.start(model)
        elif self.lora_variant == "adalora":
            adalora.freeze_scales(model)
        for name in whole:
            model.get_base_model().get_submodule(name).requires_grad_(True)
        return model

    def read_start(
        self, directory: Path, parameters: list[Parameter], model_class: type, config: object
    ) -> StartValues:
        """Read an adapter; it must have these sizes and layers."""
        from methods.start import read_adapter_start

        return read_adapter_start(
            directory, parameters, model_class, config, variant=self.lora_variant, lora_dim=self.lora_dim,
            lora_alpha=self.lora_alpha,
        )  # fmt: skip

    def save(self, directory: Path, model: PreTrainedModel, tensors: Tensors) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which apply to the original base."""
        import peft
        from safetensors.torch import save_file

        from methods import adalora, pissa
        from methods.adapter import PREFIX
        from methods.adapter_config import WEIGHT_FILES
        from methods.tensors import saved_name, tied_names

        adapters, whole = {}, {}
        for name, tensor in tensors:
            if ".lora_" in name:
                adapters[saved_name(name)] = tensor
            else:
                whole[name] = tensor
        config = copy.deepcopy(model.peft_config["default"])
        if config.peft_type == peft.PeftType.ADALORA:
            adapters, config.rank_pattern = adalora.without_zero_ranks(adapters, bool(config.rank_pattern))
        elif pissa.was_started(model):
            adapters = pissa.as_update(model, adapters)
            config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        if whole:
            base = model.get_base_model()
            copies = {
                PREFIX + target: whole[PREFIX + source].clone()
                for target, source in tied_names(base).items()
                if PREFIX + source in whole
            }
            whole |= copies
            config.modules_to_save = sorted({name.removeprefix(PREFIX).rpartition(".")[0] for name in whole})
        config.inference_mode = True
        base_path = model.get_base_model().name_or_path
        config.base_model_name_or_path = str(Path(base_path).resolve()) if base_path else ""  # from any directory
        config.save_pretrained(directory)
        files = {name: tensor.contiguous() for name, tensor in {**adapters, **whole}.items()}
        save_file(files, directory / WEIGHT_FILES[0])

    def read(self, directory: Path) -> Adapter:
        """Read the adapter of a directory (peft 0.3 to today)."""
        from methods.adapter import read_adapter

        return read_adapter(directory)

    def fits(self, model: PreTrainedModel, saved: Adapter) -> None:
        """Raise UserError unless an adapter matches the model, which is on the meta device and gets wrapped."""
        from methods.apply import check_fit

        check_fit(model, saved)

    def load(self, model: PreTrainedModel, saved: Adapter) -> PreTrainedModel:
        """Wrap the model with an adapter that `fits` has checked."""
        from methods.apply import load

        return load(model, saved)

    def fold(self, saved: Adapter) -> Fold:
        """The update of every adapted weight, in float32, and the fully trained tensors."""
        from methods.tensors import Fold

        return Fold(change=saved.change, names=frozenset(saved.names()))

    def rate_factors(self) -> dict[str, float]:
        """LoRA+ trains B at a multiple of the learning rate."""
        return {".lora_B.": self.loraplus_lr_ratio} if self.lora_variant == "loraplus" else {}

    def hooks(self, engine, model: PreTrainedModel, total_steps: int, world_size: int) -> Hooks:
        """AdaLoRA allocates its ranks around the steps."""
        if self.lora_variant != "adalora":
            return super().hooks(engine, model, total_steps, world_size)
        from methods import adalora

        return adalora.make_hooks(engine, model, total_steps, world_size)

    @property
    def drops_inputs(self) -> bool:
        """Whether the matrices' inputs have dropout."""
        return self.lora_dropout > 0

    def save_bytes(self, trained: int, value_bytes: int) -> tuple[int, int]:
        """Maximum bytes; PiSSA also saves its initial values, AdaLoRA importances, and tied modules are saved twice."""
        saved_twice = self.lora_variant == "pissa" or self.modules_to_save
        importance = IMPORTANCE_BYTES if self.lora_variant == "adalora" else 0
        return trained * value_bytes * (2 if saved_twice else 1), trained * (STATE_BYTES + importance)
