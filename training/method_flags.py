"""Flags that exclude one another, or do not go with a ZeRO stage: told before a weight is read."""

import argparse

from errors import UserError
from methods.start import METHODS_WITH_A_START

OF_VARIANT = {"loraplus_lr_ratio": "loraplus", "adalora_target_r": "adalora"}
# variant -> (ZeRO stages at which it does not work, why)
STAGES = {
    "dora": ((3,), "it needs whole weights in the forward pass"),
    "adalora": ((3,), "it needs whole weights and gradients by name"),
}


def check_method_flags(options: argparse.Namespace, stage: int) -> None:
    """Raise UserError for flags of method and kernels that contradict one another, all problems at once.

    Args:
        stage: of ZeRO, from the DeepSpeed file.
    """
    problems = check_start_flag(options) + check_compile(options, stage)
    if options.train_type == "lora":
        problems += check_lora(options, stage)
    if options.train_type == "freeze" and {"freeze_module_name", "freeze_last_n"} <= options.explicit:
        problems.append(
            f"--freeze_last_n {options.freeze_last_n} stands beside --freeze_module_name "
            f"{','.join(options.freeze_module_name)}: give one of them."
        )
    if options.cache_frozen_features and options.train_type != "freeze":
        problems.append(
            f"--cache_frozen_features does not go with --train_type {options.train_type}: it is for freeze alone, "
            "leave it out."
        )
    if problems:
        raise UserError("\n".join(problems))


def check_lora(options: argparse.Namespace, stage: int) -> list[str]:
    """What does not go with --lora_variant."""
    values, variant = vars(options), options.lora_variant
    problems = [
        f"--{flag} {values[flag]} needs --lora_variant {needed}, which is {variant}: give both or neither."
        for flag, needed in OF_VARIANT.items()
        if flag in options.explicit and variant != needed
    ]
    stages, reason = STAGES.get(variant, ((), ""))
    if stage in stages:
        problems.append(
            f"--lora_variant {variant} does not work at ZeRO stage {stage} of --ds_file {options.ds_file} ({reason}): "
            "take a file with stage 2."
        )
    if variant == "adalora" and options.adalora_target_r >= options.lora_dim:
        problems.append(
            f"--adalora_target_r {options.adalora_target_r} is not below --lora_dim {options.lora_dim}: AdaLoRA starts "
            "with the latter and ends with the former."
        )
    if variant == "pissa" and options.quantization_bit:
        problems.append(
            f"--lora_variant pissa changes the base, which --quantization_bit {options.quantization_bit} rounds: give "
            "one of them."
        )
    return problems


def check_start_flag(options: argparse.Namespace) -> list[str]:
    """What does not go with --init_adapter."""
    if options.init_adapter is None:
        return []
    start, methods = f"--init_adapter {options.init_adapter}", " or ".join(METHODS_WITH_A_START)
    if options.train_type not in METHODS_WITH_A_START:
        return [f"{start} does not go with --train_type {options.train_type}: it is for {methods}."]
    if options.train_type == "lora" and options.lora_variant in ("pissa", "adalora"):
        return [
            f"{start} does not go with --lora_variant {options.lora_variant}, which makes its own start: give one of "
            "them."
        ]
    return []


def check_compile(options: argparse.Namespace, stage: int) -> list[str]:
    """What does not go with --torch_compile."""
    problems = []
    if options.torch_compile and stage == 3:
        problems.append(
            f"--torch_compile does not go with ZeRO stage 3 of --ds_file {options.ds_file}, which gathers weights "
            "between a layer's operations: take a file with stage 2, or leave the flag out."
        )
    if options.torch_compile and options.quantization_bit:
        problems.append(
            f"--torch_compile does not go with --quantization_bit {options.quantization_bit}, whose products it cannot "
            "look into: leave one of them out."
        )
    return problems
