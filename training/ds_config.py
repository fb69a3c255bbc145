"""The DeepSpeed configuration: a user's file, completed by the flags, with nothing left at "auto".

    config, precision, notes = resolve(read_ds_file(find_ds_file("ds_zero2_no_offload.json")), micro_batch_size=1, …)

The training loop hands DeepSpeed its own optimizer and scheduler, so the configuration has neither.
"""

import copy
import json
from pathlib import Path

from errors import UserError

DS_DIR = Path(__file__).resolve().parent.parent / "ds_configs"
FLAG_OF_KEY = {
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "train_batch_size": "--per_device_train_batch_size × --gradient_accumulation_steps × ranks",
}
FLAGS_OF_SECTION = {
    "optimizer": "AdamW with --learning_rate and --weight_decay",
    "scheduler": "--lr_scheduler_type, --warmup_ratio and --learning_rate",
}
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
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.name for path in DS_DIR.glob("*.json")))
    raise UserError(f"--ds_file {name} does not exist: give a path, or one of {shipped}.")


def read_ds_file(path: Path) -> dict:
    """The object that a DeepSpeed file holds.

    Raises:
        UserError: it cannot be read, is not JSON (with file:line), or is not an object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--ds_file {path} cannot be read ({error.strerror}): give another file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--ds_file {path} is not UTF-8 text: save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}): mend the --ds_file.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}:1: the --ds_file must hold a JSON object, not {type(config).__name__}.")
    return config


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
    config = copy.deepcopy(file_config)
    for key in ("zero_optimization", "fp16", "bf16"):
        if not isinstance(config.get(key, {}), dict):
            raise UserError(f"--ds_file: {key} must be an object, not {json.dumps(config[key])}.")
    notes = []
    batch_sizes = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "train_batch_size": micro_batch_size * gradient_accumulation_steps * world_size,
    }
    for key, value in batch_sizes.items():
        if config.get(key, "auto") not in ("auto", value):
            notes.append(f"--ds_file: {key} {config[key]} gives way to {FLAG_OF_KEY[key]} = {value}.")
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
    return config, precision, notes


def choose_precision(config: dict, precision: str, device_type: str, bf16_supported: bool) -> tuple[str, list[str]]:
    """The precision of the run, from --precision, what the file enables ("auto" is no choice), and the device."""
    enabled = []
    for key in ("bf16", "fp16"):
        switch = config.get(key, {}).get("enabled", False)
        if switch not in (True, False, "auto"):
            raise UserError(f"--ds_file: {key}.enabled {json.dumps(switch)} must be true or false.")
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
        raise UserError(f"--ds_file: gradient_clipping {json.dumps(of_file)} must be a number of at least 0.")
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
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise UserError(f"--ds_file: zero_optimization.stage {json.dumps(stage)} must be 0, 1, 2 or 3.")
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        section = zero.get(key)
        if section is None:
            zero.pop(key, None)
            continue
        if not isinstance(section, dict):
            raise UserError(f"--ds_file: zero_optimization.{key} must be an object, not {json.dumps(section)}.")
        device = section.get("device", "none")
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
