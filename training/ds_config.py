"""The DeepSpeed configuration: a user's file, completed by the flags, with nothing left at "auto".

    config, precision, notes = resolve(read_ds_file(find_ds_file("ds_zero2_no_offload.json")), micro_batch_size=1, …)

The training loop hands DeepSpeed its own optimizer and scheduler, so the configuration has neither.
"""

import copy
import json
import os
from pathlib import Path

import torch
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.utils import logger
from pydantic import ValidationError

from data.records import unique_keys
from errors import UserError
from training import launch

DS_DIR = Path(__file__).resolve().parent.parent / "ds_configs"
QUOTED = 80  # characters of a value that a message may echo
QUOTED_REASON = 300  # and of what DeepSpeed says of it
FLAG_OF_KEY = {
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "train_batch_size": "--per_device_train_batch_size × --gradient_accumulation_steps × ranks",
}
FLAGS_OF_SECTION = {
    "optimizer": "AdamW with --learning_rate and --weight_decay",
    "scheduler": "--lr_scheduler_type, --warmup_ratio and --learning_rate",
}
DEFAULT_BUCKET = 500_000_000  # values, DeepSpeed's own
SUB_GROUP = 100_000_000  # values that ZeRO-3's optimiser takes at a time; DeepSpeed's own are ten times as many
# ZeRO-3 sizes at "auto": what transformers makes of them, which files written for it rely on.
SIZES_OF_HIDDEN = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


def find_ds_file(name: str | Path) -> Path:
    """A path as given, else the file of that name in ds_configs/ beside the code.

    Raises:
        UserError: neither exists.
    """
    for path in (Path(name), DS_DIR / name):
        if os.path.isfile(path):  # Path.is_file raises on a name that is too long
            return path
    shipped = ", ".join(sorted(path.name for path in DS_DIR.glob("*.json")))
    raise UserError(f"--ds_file {name} does not exist: give a path, or one of {shipped}.")


def read_ds_file(path: Path) -> dict:
    """The object that a DeepSpeed file holds.

    Raises:
        UserError: it cannot be read, is not JSON (with file:line), or is not an object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except OSError as error:
        raise UserError(f"--ds_file {path} cannot be read ({error.strerror}): give another file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--ds_file {path} is not UTF-8 text: save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}): mend the --ds_file.") from error
    except (ValueError, RecursionError) as error:  # a key that is there twice, thousands of digits or brackets
        raise UserError(f"--ds_file {path} cannot be read as JSON ({error}): mend the file.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}:1: the --ds_file must hold a JSON object, not {quote(config)}.")
    return config


def quote(value: object) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= QUOTED else text[:QUOTED] + "…"


def resolve(
    file_config: dict,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    world_size: int,
    precision: str,
    explicit: frozenset[str],
    max_grad_norm: float,
    device_type: str,
    bf16_supported: bool,
    hidden_size: int | None = None,
) -> tuple[dict, str, list[str]]:
    """Complete a DeepSpeed file by the flags. Pure: file_config stays as it is.

    Args:
        precision: --precision, "auto" or a choice.
        explicit: names of the flags that the user gave.
        max_grad_norm: --max_grad_norm; 0 is off.
        device_type: "cpu" or "cuda".
        hidden_size: of the model, for the ZeRO-3 sizes at "auto"; None leaves these to DeepSpeed's defaults.

    Returns:
        The configuration, the precision ("bf16", "fp16" or "fp32"), and sentences to print once: what of the file
        gives way to a flag.

    Raises:
        UserError: the file contradicts itself, a flag or the device.
    """
    try:
        config = copy.deepcopy(file_config)
    except RecursionError:
        raise UserError("--ds_file is nested too deeply: mend the file.") from None
    for key in ("zero_optimization", "fp16", "bf16"):
        if not isinstance(config.get(key, {}), dict):
            raise UserError(f"--ds_file: {key} {quote(config[key])} must be an object: mend the file.")
    notes = []
    batch_sizes = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "train_batch_size": micro_batch_size * gradient_accumulation_steps * world_size,
    }
    for key, value in batch_sizes.items():
        if config.get(key, "auto") not in ("auto", value):
            notes.append(f"--ds_file: {key} {quote(config[key])} gives way to {FLAG_OF_KEY[key]} = {value}.")
    for section, flags in FLAGS_OF_SECTION.items():
        if section in config:
            notes.append(f"--ds_file: the {section} section gives way to {flags}.")
            del config[section]

    precision, precision_notes = choose_precision(config, precision, device_type, bf16_supported)
    section = config.get(precision, {})
    for key in ("fp16", "bf16"):
        config.pop(key, None)
    if precision != "fp32":
        config[precision] = {**section, "enabled": True}
    notes += precision_notes

    config["gradient_clipping"], clipping_notes = choose_clipping(config, max_grad_norm, explicit)
    notes += clipping_notes
    notes += settle_zero(config.setdefault("zero_optimization", {"stage": 0}), hidden_size)
    config.update(batch_sizes)
    config["steps_per_print"] = 10**9  # the training loop prints
    if config.get("wall_clock_breakdown", "auto") == "auto":
        config["wall_clock_breakdown"] = False
    # DeepSpeed would otherwise refuse torch's AdamW, which is fused on a CPU too and needs no compiler, under offload.
    config["zero_force_ds_cpu_optimizer"] = False
    for path in drop_autos(config):
        notes.append(f'--ds_file: {path} "auto" is left to DeepSpeed\'s default.')
    check_with_deepspeed(config)
    return config, precision, notes


def check_with_deepspeed(config: dict) -> None:
    """Raise UserError for what DeepSpeed would refuse once the weights are loaded."""
    error = refusal(config)
    if error is None:
        return
    of_one = (key for key in config if refusal({name: config[name] for name in config if name != key}) is None)
    culprit = next(of_one, None)
    where = f"its {culprit} {quote(config[culprit])}" if culprit else "it"
    reason = ""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))} {quote(first['input'])}: {first['msg']}"
    elif isinstance(error, DeepSpeedConfigError | ValueError):  # the others are about its own code
        reason = str(error)
    reason = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())[:QUOTED_REASON]
    raise UserError(f"--ds_file: DeepSpeed refuses {where}{f' ({reason})' if reason else ''}: mend the file.")


def refusal(config: dict) -> Exception | None:
    """What DeepSpeed raises on a configuration."""
    alone = {**copy.deepcopy(config), "train_batch_size": 1, "gradient_accumulation_steps": 1}
    alone["train_micro_batch_size_per_gpu"] = 1
    level = logger.level
    logger.setLevel("ERROR")  # it will warn again when it starts
    try:
        DeepSpeedConfig(alone)
    # Sections that it does not describe to pydantic are read without a check, and fail in any of these ways.
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        return error
    finally:
        logger.setLevel(level)
    return None


def choose_precision(config: dict, precision: str, device_type: str, bf16_supported: bool) -> tuple[str, list[str]]:
    """The precision of the run, from --precision, what the file enables ("auto" is no choice), and the device."""
    enabled = []
    for key in ("bf16", "fp16"):
        switch = config.get(key, {}).get("enabled", False)
        if not isinstance(switch, bool) and switch != "auto":  # DeepSpeed would take 1 or "yes" for true
            raise UserError(f"--ds_file: {key}.enabled {quote(switch)} must be true or false.")
        if switch is True:
            enabled.append(key)
    if len(enabled) == 2:
        raise UserError("--ds_file enables both bf16 and fp16: leave one of them.")
    of_file = enabled[0] if enabled else None
    if precision != "auto":
        if of_file not in (None, precision):
            raise UserError(
                f"--precision {precision} contradicts the --ds_file, which enables {of_file}: "
                f"leave out --precision, or switch {of_file} off in the file."
            )
        if precision == "fp16" and device_type == "cpu":
            raise UserError("--precision fp16 does not run on a CPU: use --precision fp32, or leave the flag out.")
        if precision == "bf16" and device_type == "cuda" and not bf16_supported:
            raise UserError("--precision bf16: this GPU has no bf16: use --precision fp16, or leave the flag out.")
        if precision == "bf16" and device_type == "cpu":
            return precision, ["--precision bf16 on a CPU is about 12 times slower than fp32."]
        return precision, []
    if device_type == "cpu":
        return "fp32", [f"--ds_file: {of_file} gives way to fp32: there is no GPU."] if of_file else []
    if of_file == "bf16" and not bf16_supported:
        raise UserError("--ds_file enables bf16, which this GPU does not have: enable fp16 in the file instead.")
    return of_file or ("bf16" if bf16_supported else "fp16"), []


def choose_clipping(config: dict, max_grad_norm: float, explicit: frozenset[str]) -> tuple[float, list[str]]:
    """The gradient's largest L2 norm: the file's, else the flag's; an explicit flag must not contradict the file."""
    of_file = config.get("gradient_clipping", "auto")
    if of_file == "auto":
        return max_grad_norm, []
    if isinstance(of_file, bool) or not isinstance(of_file, int | float) or not 0 <= of_file < float("inf"):
        raise UserError(f"--ds_file: gradient_clipping {quote(of_file)} must be a number of at least 0.")
    if of_file == max_grad_norm:
        return of_file, []
    if "max_grad_norm" in explicit:
        raise UserError(
            f"--max_grad_norm {max_grad_norm} contradicts the --ds_file, whose gradient_clipping is {of_file}: "
            "leave out one of them."
        )
    return of_file, [f"--ds_file: gradients are clipped at its gradient_clipping {of_file}."]


def settle_zero(zero: dict, hidden_size: int | None) -> list[str]:
    """Settle stage and offload of the zero_optimization section in place; returns notes."""
    notes = []
    stage = zero.setdefault("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):  # neither true nor 2.0
        raise UserError(f"--ds_file: zero_optimization.stage {quote(stage)} must be 0, 1, 2 or 3.")
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        section = zero.get(key)
        if section is None:
            zero.pop(key, None)
            continue
        if not isinstance(section, dict):
            raise UserError(f"--ds_file: zero_optimization.{key} {quote(section)} must be an object: mend the file.")
        device = section.get("device", "none")
        if device not in ("none", "cpu", "nvme", "auto"):
            raise UserError(f"--ds_file: zero_optimization.{key}.device {quote(device)} must be cpu, nvme or none.")
        if device == "nvme" and not isinstance(section.get("nvme_path"), str):
            raise UserError(f"--ds_file: zero_optimization.{key} on nvme needs an nvme_path: name a directory there.")
        if device in ("none", "auto"):
            del zero[key]
            if device == "auto":
                notes.append(f'--ds_file: zero_optimization.{key} on "auto" means no offload.')
        elif stage < least:
            del zero[key]
            notes.append(f"--ds_file: zero_optimization.{key} needs stage {least}; at stage {stage} it is left out.")
    for key, size in SIZES_OF_HIDDEN.items():
        if zero.get(key) == "auto" and stage == 3 and hidden_size is not None:
            zero[key] = size(hidden_size)
    return notes


def drop_autos(section: dict | list, path: str = "") -> list[str]:
    """Remove every "auto" left at any depth, in place; returns the paths of what was removed."""
    dropped = []
    items = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in reversed(list(items)):  # from the end: a deletion moves no item that is still to come
        here = f"{path}.{key}" if path else str(key)
        if value == "auto":
            del section[key]
            dropped.append(here)
        elif isinstance(value, dict | list):
            dropped += drop_autos(value, here)
    return dropped


def fit_buckets(config: dict, trained: int) -> dict:
    """A resolved configuration whose gradient bucket is no larger than all gradients: DeepSpeed allocates it in full.

    And with the size of ZeRO-3's sub-groups, where the file has none: one is copied to float32 after the other.

    Args:
        trained: values that are trained.
    """
    zero = config["zero_optimization"]
    size = min(int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)), max(trained, 1))
    sub_group = {"sub_group_size": SUB_GROUP} if zero["stage"] == 3 else {}
    return {**config, "zero_optimization": {**sub_group, **zero, "reduce_bucket_size": size}}


def resolve_for_run(options, hidden_size: int) -> tuple[dict, str, list[str]]:
    """What `resolve` makes of the command line; for GPUs also where --gpu_memory asks.

    Args:
        options: of train.py. hidden_size: of the base.
    """
    has_gpu = torch.cuda.is_available()
    on_gpu = has_gpu or options.gpu_memory is not None
    return resolve(
        read_ds_file(find_ds_file(options.ds_file)),
        micro_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        world_size=launch.world_size(),
        precision=options.precision,
        explicit=options.explicit,
        max_grad_norm=options.max_grad_norm,
        device_type="cuda" if on_gpu else "cpu",
        bf16_supported=on_gpu and (not has_gpu or torch.cuda.is_bf16_supported()),
        hidden_size=hidden_size,
    )
