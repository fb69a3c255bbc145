"""What differs between --train_type values: one module each, all with the same names.

OPTIONS                         the flags that configure it; they reach the functions below as keywords
configure(config, **options)    before the model exists: what it needs in the model's config
check(model, **options)         before weights are loaded: UserError if the options do not fit the model (on meta)
prepare(model, **options)       after the weights are loaded: marks what is trained, returns the (wrapped) model
save(directory, model, tensors) writes what was trained; `tensors` yields (name, tensor) on the CPU
fits(model, directory)          before weights are loaded: UserError if a checkpoint is none of the model's (on meta)
load(model, directory)          puts a checkpoint into a model loaded from its base, returns the (wrapped) model
fold(directory, **options)      a `Fold`: how merging changes the base, tensor by tensor

To add a method, write one module and one line here.
"""

import logging

# peft imports bitsandbytes where it is installed, which misses an optional kernel on some CPUs
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from methods import adalora, freeze, lora, ptuning  # noqa: E402
from methods import all as all_parameters  # noqa: E402
from methods.hooks import Hooks  # noqa: E402

# What a checkpoint's record says about its method: option -> types.
OPTION_TYPES = {
    "freeze_module_name": (list,),
    "pre_seq_len": (int,),
    "prefix_projection": (bool,),
    "prefix_layers": (str,),
    "lora_dim": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "lora_module_name": (list,),
    "freeze_last_n": (int, type(None)),
    "lora_variant": (str,),
    "loraplus_lr_ratio": (int, float),
    "adalora_target_r": (int,),
    "modules_to_save": (list, type(None)),
}
# Options that records of earlier versions lack, and what those meant.
LATER_OPTIONS = {
    "freeze_last_n": None,
    "lora_variant": "lora",
    "loraplus_lr_ratio": 16.0,
    "adalora_target_r": 4,
    "modules_to_save": None,
}
METHODS = {"freeze": freeze, "ptuning": ptuning, "lora": lora, "all": all_parameters}


def rate_factors(method_options: dict) -> dict[str, float]:
    """Part of a parameter's name -> how many times the learning rate it learns at."""
    if method_options.get("lora_variant") == "loraplus":
        return {".lora_B.": method_options["loraplus_lr_ratio"]}
    return {}


def make_hooks(method_options: dict, engine, model, total_steps: int, world_size: int) -> Hooks:
    """What the loop does for the method beside its steps."""
    if method_options.get("lora_variant") == "adalora":
        return adalora.make_hooks(engine, model, total_steps, world_size)
    return Hooks()
