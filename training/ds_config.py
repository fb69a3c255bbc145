"""The DeepSpeed configuration: a user's file, completed by the flags, with nothing left at "auto".

    config, precision, notes = resolve(read_ds_file(find_ds_file("ds_zero2_no_offload.json")), micro_batch_size=1, …)

The training loop passes its own optimizer and scheduler to DeepSpeed, so the configuration has neither.
"""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.utils import logger
from pydantic import ValidationError

from errors import UserError
from files import read_json
from modes.loading import gpus_have_bf16
from options.train import TrainOptions
from parallel import launch
from texts import one_line, quote
from training.ds_keys import sort_keys
from training.precision import settle_precision

DS_DIR = Path(__file__).resolve().parent.parent / "ds_configs"
FLAG_OF_KEY = {
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "train_batch_size": "--per_device_train_batch_size × --gradient_accumulation_steps × ranks",
}
FLAGS_OF_SECTION = {
    "optimizer": "AdamW with --learning_rate and --weight_decay",
    "scheduler": "--lr_scheduler_type, --warmup_ratio, --warmup_steps and --learning_rate",
}
DEFAULT_BUCKET = 500_000_000  # values; DeepSpeed's default
SUB_GROUP = 100_000_000  # values per update of ZeRO-3's optimizer; DeepSpeed's default is ten times as many
# ZeRO-3 sizes for "auto", as in transformers: files written for it rely on them.
SIZES_OF_HIDDEN = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


@dataclass(frozen=True)
class DeepSpeedSetup:
    """DeepSpeed's complete configuration, and the precision: "bf16", "fp16" or "fp32"."""

    config: dict
    precision: str

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return self.config["zero_optimization"]["stage"]


def find_ds_file(name: str | Path) -> Path:
    """The path as given, else the file of that name in the repository's ds_configs/.

    Raises:
        UserError: neither exists.
    """
    for path in (Path(name), DS_DIR / name):
        if os.path.isfile(path):  # Path.is_file raises on a name that is too long
            return path
    shipped = ", ".join(sorted(path.name for path in DS_DIR.glob("*.json")))
    raise UserError(f"--ds_file {name} does not exist: give a path, or one of {shipped}.")


def read_ds_file(path: Path) -> dict:
    """The JSON object in a DeepSpeed file.

    Raises:
        UserError: it cannot be read, is not JSON (with file:line), or is not an object.
    """
    return read_json(path, "correct the file or give another one", flag="--ds_file", by_hand=True)


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
    """Complete a DeepSpeed file by the flags. `file_config` is not changed.

    Args:
        precision: --precision, "auto" or a choice.
        explicit: names of the flags on the command line.
        max_grad_norm: --max_grad_norm; 0 disables clipping.
        device_type: "cpu" or "cuda".
        bf16_supported: whether the GPUs compute in bf16; see `modes.loading.gpus_have_bf16`.
        hidden_size: of the model, for the ZeRO-3 sizes at "auto"; None uses DeepSpeed's defaults.

    Returns:
        The configuration, the precision ("bf16", "fp16" or "fp32"), and notes to print once: which keys of the file
        are overridden or have no effect.

    Raises:
        UserError: the file contradicts itself, a flag or the device, or needs an unsupported feature; all problems,
            one sentence per line.
    """
    try:
        config = copy.deepcopy(file_config)
    except RecursionError:
        raise UserError("--ds_file is nested too deeply: correct the file, it must hold fewer levels.") from None
    notes, problems = sort_keys(config)
    for key in ("zero_optimization", "fp16", "bf16"):
        if not isinstance(config.get(key, {}), dict):
            problems.append(f"--ds_file: {key} {quote(config.pop(key))} must be an object.")
    batch_sizes = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "train_batch_size": micro_batch_size * gradient_accumulation_steps * world_size,
    }
    override(config, batch_sizes, notes)
    precision = settle_precision(config, precision, device_type, bf16_supported, notes, problems)
    config["gradient_clipping"] = choose_clipping(config, max_grad_norm, explicit, notes, problems)
    settle_zero(config.setdefault("zero_optimization", {}), hidden_size, world_size, notes, problems)
    if precision == "bf16" and config["zero_optimization"].get("stage") == 1:
        settle_accumulation(config, problems)
    for path in drop_autos(config):
        notes.append(f'--ds_file: {path} "auto" is left to DeepSpeed\'s default.')
    problems = problems or check_with_deepspeed(config)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return config, precision, notes


def override(config: dict, batch_sizes: dict[str, int], notes: list[str]) -> None:
    """Set, in place, the keys that do not depend on the file; adds a note for each key that they override."""
    for key, value in batch_sizes.items():
        if config.get(key, "auto") not in ("auto", value):
            notes.append(f"--ds_file: {key} {quote(config[key])} is overridden by {FLAG_OF_KEY[key]} = {value}.")
    for section, flags in FLAGS_OF_SECTION.items():
        if section in config:
            notes.append(f"--ds_file: the {section} section is overridden by {flags}.")
            del config[section]
    config.update(batch_sizes)
    config["steps_per_print"] = 10**9  # the training loop prints
    if config.get("wall_clock_breakdown", "auto") == "auto":
        config["wall_clock_breakdown"] = False
    # Otherwise DeepSpeed refuses torch's AdamW under offload. It is fused on CPUs, too, and needs no compiler.
    config["zero_force_ds_cpu_optimizer"] = False
    timers = config.setdefault("timers", {})
    if isinstance(timers, dict) and isinstance(timers.setdefault("throughput", {}), dict):
        timers["throughput"].setdefault("enabled", False)  # it would wait for the device twice per micro-batch


def check_with_deepspeed(config: dict) -> list[str]:
    """The keys that DeepSpeed would refuse after the weights are loaded, one sentence each."""
    error = refusal(config)
    if error is None:
        return []
    refusals = {key: refusal({key: value}) for key, value in config.items()}
    if any(refusals.values()):
        return [
            f"--ds_file: DeepSpeed refuses its {key} {quote(config[key])}{reason}: correct the file, or remove {key}."
            for key, error in refusals.items()
            if error is not None
            for reason in reasons(error)
        ]
    culprits = (key for key in config if refusal({name: config[name] for name in config if name != key}) is None)
    culprit = next(culprits, None)
    where = f"its {culprit} {quote(config[culprit])}" if culprit else "it"
    return [f"--ds_file: DeepSpeed refuses {where}{reason}: correct or remove that." for reason in reasons(error)]


def reasons(error: Exception) -> list[str]:
    """DeepSpeed's messages about a configuration, in parentheses; empty strings for those about its own code."""
    if isinstance(error, ValidationError):
        messages = [f"{'.'.join(map(str, e['loc']))} {quote(e['input'])}: {e['msg']}" for e in error.errors()]
    elif isinstance(error, DeepSpeedConfigError | ValueError):
        messages = [str(error)]
    else:
        return [""]
    return [f" ({one_line(message)})" for message in messages]


def refusal(config: dict) -> Exception | None:
    """The error that DeepSpeed raises for a configuration; None if it raises none."""
    single_rank = {**copy.deepcopy(config), "train_batch_size": 1, "gradient_accumulation_steps": 1}
    single_rank["train_micro_batch_size_per_gpu"] = 1
    level = logger.level
    logger.setLevel("ERROR")  # it will warn again when it starts
    try:
        DeepSpeedConfig(single_rank)
    # Sections that it reads without pydantic are not checked, and fail with any of these errors.
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        return error
    finally:
        logger.setLevel(level)
    return None


def choose_clipping(
    config: dict, max_grad_norm: float, explicit: frozenset[str], notes: list[str], problems: list[str]
) -> float:
    """The maximum L2 norm of the gradient: the file's, else the flag's. An explicit flag must not contradict it."""
    of_file = config.get("gradient_clipping", "auto")
    if of_file == "auto" or of_file == max_grad_norm:
        return max_grad_norm
    if isinstance(of_file, bool) or not isinstance(of_file, int | float) or not 0 <= of_file < float("inf"):
        problems.append(f"--ds_file: gradient_clipping {quote(of_file)} must be a number of at least 0.")
    elif "max_grad_norm" in explicit:
        problems.append(
            f"--max_grad_norm {max_grad_norm} contradicts the --ds_file, whose gradient_clipping is {of_file}: "
            "leave one of them out."
        )
    else:
        notes.append(f"--ds_file: gradients are clipped at its gradient_clipping {of_file}.")
        return of_file
    return max_grad_norm


def settle_zero(zero: dict, hidden_size: int | None, world_size: int, notes: list[str], problems: list[str]) -> None:
    """Resolve stage, offload and the keys that depend on the number of ranks in zero_optimization, in place."""
    stage = zero.setdefault("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):  # neither true nor 2.0
        problems.append(f"--ds_file: zero_optimization.stage {quote(stage)} must be 1, 2 or 3.")
        return
    if stage == 0:
        # DeepSpeed 0.19 has no loss scaling there for torch's AdamW, and applies steps that are NaN.
        stage = zero["stage"] = 1
        notes.append("--ds_file: ZeRO stage 0 is overridden by stage 1, which gives the same results.")
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        settle_offload(zero, key, least, notes, problems)
    for key, size in SIZES_OF_HIDDEN.items():
        if zero.get(key) == "auto" and stage == 3 and hidden_size is not None:
            zero[key] = size(hidden_size)
    overlap = zero.get("overlap_comm", "auto")
    if world_size == 1 and overlap in (True, False, "auto", None):  # saves a bucket and one wait per step
        zero["overlap_comm"] = False
        if overlap is True:
            notes.append("--ds_file: zero_optimization.overlap_comm true is overridden by false: there is only 1 rank.")
    group = zero.get("zero_hpz_partition_size", 1)
    if type(group) is int and group > 1 and world_size % group:
        problems.append(
            f"--ds_file: zero_optimization.zero_hpz_partition_size {group} must be a divisor of the number of ranks "
            f"({world_size})."
        )


def settle_accumulation(config: dict, problems: list[str]) -> None:
    """Refuse bf16 with float32 accumulation at stage 1: DeepSpeed uses BF16_Optimizer there, which is not tested."""
    data_types = config.get("data_types")
    offload = "offload_optimizer" in config["zero_optimization"]
    if isinstance(data_types, dict) and data_types.get("grad_accum_dtype") == "fp32" and not offload:
        problems.append(
            '--ds_file: data_types.grad_accum_dtype "fp32" does not work at ZeRO stage 1 in bf16: use stage 2 or 3.'
        )


def settle_offload(zero: dict, key: str, least: int, notes: list[str], problems: list[str]) -> None:
    """Remove an offload section, in place, if the stage does not support it or it offloads nothing.

    Args:
        key: "offload_optimizer" or "offload_param". least: the lowest stage that supports it.
    """
    section = zero.get(key)
    if section is None:
        zero.pop(key, None)
        return
    if not isinstance(section, dict):
        problems.append(f"--ds_file: zero_optimization.{key} {quote(section)} must be an object.")
        return
    device = section.get("device", "none")
    if device not in ("none", "cpu", "nvme", "auto"):
        problems.append(f"--ds_file: zero_optimization.{key}.device {quote(device)} must be cpu, nvme or none.")
    elif device in ("none", "auto"):
        del zero[key]
        if device == "auto":
            notes.append(f'--ds_file: zero_optimization.{key} on "auto" means no offload.')
    elif zero["stage"] < least:
        del zero[key]
        notes.append(f"--ds_file: zero_optimization.{key} needs stage {least}; it is ignored at stage {zero['stage']}.")
    elif device == "nvme" and not isinstance(section.get("nvme_path"), str):
        problems.append(f"--ds_file: zero_optimization.{key} on nvme needs an nvme_path: set it to a directory.")
    elif device == "nvme" and not AsyncIOBuilder().is_compatible(verbose=False):
        problems.append(
            f"--ds_file: zero_optimization.{key} on nvme needs libaio with its headers (Debian: libaio-dev), which is "
            'not found: install it, or use "device": "cpu".'
        )


def drop_autos(section: dict | list, path: str = "") -> list[str]:
    """Remove every remaining "auto" at any depth, in place; returns the removed paths."""
    dropped = []
    items = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in reversed(list(items)):  # backwards, so that a deletion does not move the remaining items
        here = f"{path}.{key}" if path else str(key)
        if value == "auto":
            del section[key]
            dropped.append(here)
        elif isinstance(value, dict | list):
            dropped += drop_autos(value, here)
    return dropped


def fit_buckets(config: dict, trained: int) -> dict:
    """Limit the gradient bucket of a resolved configuration to all gradients: DeepSpeed allocates it in full.

    Also sets the size of ZeRO-3's sub-groups if the file has none: they are copied to float32 one at a time.

    Args:
        trained: number of trained values.
    """
    zero = config["zero_optimization"]
    size = min(int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)), max(trained, 1))
    sub_group = {"sub_group_size": SUB_GROUP} if zero["stage"] == 3 else {}
    return {**config, "zero_optimization": {**sub_group, **zero, "reduce_bucket_size": size}}


def resolve_for_run(options: TrainOptions, hidden_size: int | None) -> tuple[DeepSpeedSetup, list[str]]:
    """`resolve` for a run's options; returns the setup and its notes. With --gpu_memory it assumes GPUs.

    Args:
        hidden_size: of the base; None where it is unknown.
    """
    has_gpu = torch.cuda.is_available()
    on_gpu = has_gpu or options.safety.gpu_memory is not None
    # of all ranks of this machine, so that they get the same result
    devices = range(min(launch.local_world_size(), torch.cuda.device_count()))
    config, precision, notes = resolve(
        read_ds_file(find_ds_file(options.compute.ds_file)),
        micro_batch_size=options.steps.per_device_train_batch_size,
        gradient_accumulation_steps=options.steps.gradient_accumulation_steps,
        world_size=launch.world_size(),
        precision=options.compute.precision,
        explicit=options.given,
        max_grad_norm=options.optimizer.max_grad_norm,
        device_type="cuda" if on_gpu else "cpu",
        bf16_supported=on_gpu and gpus_have_bf16(devices),
        hidden_size=hidden_size,
    )
    return DeepSpeedSetup(config, precision), notes
