"""Check peft's adapter_config.json, from version 0.3 to today: which keys and values are supported."""

import re
from pathlib import Path

from errors import UserError
from files import read_json
from texts import quote, shown

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
KINDS = ("LORA", "ADALORA")
# Keys that describe only initialization and training, which do not matter for existing tensors.
IRRELEVANT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("megatron_core", "qalora_group_size", "r", "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1"),
    *("beta2", "orth_reg_weight", "total_step", "lora_dropout"),
}
# Other initializations change the base: peft repeats this whenever it loads such an adapter.
INITIALIZATIONS = (None, True, False, "gaussian", "eva")
# peft matches these expressions with every module's name. Nested repetition takes exponential time, and N repetitions
# in sequence take time of the order of length ** N.
NESTED_REPETITION = re.compile(r"\)[*+{]")
REPETITION = re.compile(r"[*+{]")
MOST_REPETITIONS = 5
LONGEST_PATTERN = 1000


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a value of a JSON file is a number from `low` to `high`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_names(value: object) -> bool:
    """Whether a value of a JSON file is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_indices(value: object) -> bool:
    """Whether a value of a JSON file is a list of distinct token ids."""
    return (
        isinstance(value, list) and all(type(index) is int and index >= 0 for index in value) and no_duplicates(value)
    )


def no_duplicates(values: list) -> bool:
    """Whether all values are distinct."""
    return len(set(values)) == len(values)


def is_pattern(value: object) -> bool:
    """Whether a value is a regular expression that peft can match in a short time."""
    if not isinstance(value, str) or len(value) > LONGEST_PATTERN or NESTED_REPETITION.search(value):
        return False
    if len(REPETITION.findall(value)) > MOST_REPETITIONS:
        return False
    try:
        module_pattern(value)
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def is_patterns(value: object, low: float, high: float) -> bool:
    """Whether a value is an object from regular expressions to numbers from `low` to `high`."""
    return isinstance(value, dict) and all(
        is_pattern(key) and is_number(number, low, high) for key, number in value.items()
    )


def module_pattern(key: str) -> re.Pattern:
    """How peft matches a key of rank_pattern or alpha_pattern with a module's name."""
    return re.compile(rf"(.*\.)?({key})$")


def first_match(patterns: dict | None, module: str, default: float) -> float:
    """The value of the first key that matches a module's name, as in peft."""
    return next((value for key, value in (patterns or {}).items() if module_pattern(key).match(module)), default)


def supported_values(config: dict) -> dict[str, bool]:
    """Key -> whether its value is supported, for every supported key."""
    rank = "init_r" if config["peft_type"] == "ADALORA" else "r"
    targets, excluded, layers = (config.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern"))
    whole, tokens, chosen = (
        config.get(key) for key in ("modules_to_save", "trainable_token_indices", "layers_to_transform")
    )
    flags = ("use_dora", "use_rslora", "lora_bias", "ensure_weight_tying")
    start = config.get("init_lora_weights")
    return {
        **{flag: config.get(flag) in (None, True, False) for flag in flags},
        rank: type(config.get(rank)) is int and is_number(config[rank], 1, 10**6),
        "lora_alpha": is_number(config.get("lora_alpha"), -1e9, 1e9),
        "lora_dropout": is_number(config.get("lora_dropout", 0), 0, 1),
        "target_modules": bool(targets) and (is_names(targets) or is_pattern(targets)),
        "exclude_modules": not excluded or is_names(excluded) or is_pattern(excluded),
        "layers_to_transform": chosen is None or type(chosen) is int or is_indices(chosen),
        "layers_pattern": not layers or is_pattern(layers) or (is_names(layers) and all(map(is_pattern, layers))),
        "modules_to_save": whole is None or (is_names(whole) and all(map(is_pattern, whole))),
        "trainable_token_indices": tokens is None
        or is_indices(tokens)
        or (isinstance(tokens, dict) and all(map(is_indices, tokens.values()))),
        "alpha_pattern": not config.get("alpha_pattern") or is_patterns(config["alpha_pattern"], -1e9, 1e9),
        "rank_pattern": not config.get("rank_pattern")
        or config["peft_type"] == "ADALORA"  # the remaining ranks of a layer; peft reads it
        or is_patterns(config["rank_pattern"], 1, 10**6),
        "bias": config.get("bias", "none") in ("none", "all", "lora_only"),
        "init_lora_weights": isinstance(start, str | bool | None) and start in INITIALIZATIONS,
    }


def check_config(directory: Path) -> dict:
    """Read adapter_config.json.

    Raises:
        UserError: it is missing or broken, or has an unsupported key or value.
    """
    path = directory / CONFIG_FILE
    config = read_json(path, "give the directory of a finished checkpoint")
    if config.get("peft_type") not in KINDS:
        raise UserError(f"{path} does not describe a LoRA adapter: give the directory of a LoRA checkpoint.")
    supported = supported_values(config)
    supported |= {key: not value for key, value in config.items() if key not in supported and key not in IRRELEVANT}
    unsupported = [f"{key} {quote(config.get(key))}" for key, is_supported in supported.items() if not is_supported]
    if unsupported:
        raise UserError(f"{path} has {unsupported[0]}, which cannot be applied here: use another checkpoint.")
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{directory} holds neither {' nor '.join(WEIGHT_FILES)}: the checkpoint is incomplete.")
    return config


def other_base(config: dict, directory: Path, base_path: Path, base_config: dict) -> str | None:
    """A warning if an adapter names another base than the given one; None if it names no base, or this one.

    Paths and hub names differ between machines, so only their last part is compared, ignoring case.

    Args:
        config: see `check_config`. directory: the adapter's.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    given = base_names(str(base_path.resolve())) | base_names(str(base_config.get("_name_or_path") or ""))
    if base_names(named) & given:
        return None
    return (
        f"warning: the adapter in {directory} was trained on {shown(named)}, the base is {base_path}: answers are "
        "right only if both have the same weights."
    )


def base_names(text: str) -> set[str]:
    """The identifying part of a base's path or hub name; in the hub's cache that of models--OWNER--NAME."""
    parts = [part.lower() for part in re.split(r"[/\\]+", text) if part]
    return {*parts[-1:], *(part.rsplit("--", 1)[-1] for part in parts if part.startswith("models--"))}
