"""The keys of a DeepSpeed file: accepted, ignored or refused, with reasons.

DeepSpeed 0.19 silently ignores an unknown top-level key, and fails on several known ones only after the weights are
loaded. `RULES` has every key that it reads (runtime/config.py, runtime/zero/config.py, runtime/precision_config.py);
tests/test_ds_keys.py compares the table with the installed version.
"""

import difflib
import importlib.util
from typing import NamedTuple

from texts import quote


class Rule(NamedTuple):
    """How a key is treated.

    verdict: ACCEPTED, IGNORED (removed, with a note that gives the reason) or REFUSED (an error, unless disabled).
    why: end of the sentence that starts with the key.
    harmless: values of a refused key that have no effect; empty: those that disable it.
    package: required if the key is enabled.
    """

    verdict: str
    why: str = ""
    harmless: tuple = ()
    package: str = ""


ACCEPTED, IGNORED, REFUSED = "accepted", "ignored", "refused"
KEEP = Rule(ACCEPTED)
CHECKPOINTS = Rule(IGNORED, "checkpoints and resume states are written by train.py")
NO_EXPERTS = "the models have no experts"
REMOVED = Rule(REFUSED, "is no longer part of DeepSpeed: remove it.")
AUTOCAST = Rule(REFUSED, "is not supported: remove it and use --precision.")
ONE_WAY = Rule(REFUSED, "is not supported, only data parallelism (ZeRO) is: remove it.")
QUANTIZED_ZERO = Rule(REFUSED, "is not supported, as it changes weights or gradients: remove it.")
MASTER = Rule(REFUSED, "is not supported, as the optimizer keeps float32 values: remove it.")
CPU_ADAM = "needs DeepSpeed's own CPU Adam, and train.py uses torch's AdamW: remove it."

RULES = {
    # set by flags, or overridden
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), KEEP),
    **dict.fromkeys(("optimizer", "scheduler", "steps_per_print", "zero_force_ds_cpu_optimizer"), KEEP),
    **dict.fromkeys(("zero_optimization", "fp16", "bf16", "gradient_clipping"), KEEP),
    # passed to DeepSpeed
    **dict.fromkeys(("zero_allow_untested_optimizer", "communication_data_type", "disable_python_gc"), KEEP),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "vocabulary_size"), KEEP),
    **dict.fromkeys(("comms_logger", "flops_profiler", "tensorboard", "csv_monitor", "timers", "aio"), KEEP),
    "data_types": KEEP,
    "wandb": Rule(ACCEPTED, package="wandb"),
    "comet": Rule(ACCEPTED, package="comet_ml"),
    # ignored
    "activation_checkpointing": Rule(IGNORED, "--gradient_checkpointing decides which layers are recomputed"),
    **dict.fromkeys(("checkpoint", "datastates_ckpt"), CHECKPOINTS),
    "compile": Rule(REFUSED, "is not supported: remove it and use --torch_compile."),
    "dataloader_drop_last": Rule(IGNORED, "train.py reads the data itself and drops no sample"),
    "disable_allgather": Rule(IGNORED, "DeepSpeed does not use it"),
    "pipeline": Rule(IGNORED, "the models are not divided into pipeline stages"),
    "seq_parallel_communication_data_type": Rule(IGNORED, "sequence parallelism is not used"),
    "use_data_before_expert_parallelism": Rule(IGNORED, NO_EXPERTS),
    # refused
    "prescale_gradients": Rule(REFUSED, "does not work with ZeRO's reduce_scatter: remove it."),
    "gradient_predivide_factor": Rule(REFUSED, "does not work with ZeRO's reduce_scatter: remove it.", (1,)),
    "gradient_allreduce_op": Rule(REFUSED, "would multiply the gradient by the number of ranks: remove it.", ("mean",)),
    "managed_gradient_accumulation": Rule(
        REFUSED, "contradicts --gradient_accumulation_steps, which train.py counts: remove it.", (True,)
    ),
    "autotuning": Rule(REFUSED, "ends the run after a few steps: remove it and use --dry_run for suggestions."),
    "hybrid_engine": Rule(REFUSED, "is for generation during training, which train.py does itself: remove it."),
    "data_efficiency": Rule(REFUSED, "is not supported, as train.py reads the data itself: remove it."),
    "weight_quantization": Rule(REFUSED, "is for inference: remove it and use --quantization_bit."),
    "tensor_parallel": ONE_WAY,
    "sequence_parallel_size": Rule(REFUSED, ONE_WAY.why, (1,)),
    "expert_parallel": Rule(REFUSED, f"is not supported, as {NO_EXPERTS}: remove it."),
    **dict.fromkeys(("amp", "torch_autocast"), AUTOCAST),
    **dict.fromkeys(("compression_training", "curriculum_learning", "eigenvalue", "elasticity", "nebula"), REMOVED),
    **dict.fromkeys(("graph_harvesting", "progressive_layer_drop", "quantize_training", "sparse_attention"), REMOVED),
    "sparse_gradients": REMOVED,
    # zero_optimization
    "zero_optimization.stage": KEEP,
    **{
        f"zero_optimization.{key}": KEEP
        for key in (
            *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "enable_sanity_checks"),
            *("ignore_unused_parameters", "log_trace_cache_warnings", "memory_efficient_linear", "offload_optimizer"),
            *("offload_param", "overlap_comm", "override_module_apply", "parameter_alignment", "reduce_bucket_size"),
            *("reduce_scatter", "round_robin_gradients", "stage3_allgather_sequential", "stage3_max_live_parameters"),
            *("stage3_max_reuse_distance", "stage3_model_persistence_threshold", "stage3_param_persistence_threshold"),
            *("stage3_module_granularity_threshold", "stage3_prefetch_bucket_size", "sub_group_size"),
            *("stage3_use_all_reduce_for_fetch_params", "use_multi_rank_bucket_allreduce", "zero_hpz_partition_size"),
        )
    },
    **{
        f"zero_optimization.{key}": CHECKPOINTS
        for key in (
            *("elastic_checkpoint", "load_from_fp32_weights", "pipeline_loading_checkpoint"),
            *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
        )
    },
    "zero_optimization.cpu_offload": Rule(REFUSED, 'is the old form of "offload_optimizer": write that instead.'),
    "zero_optimization.cpu_offload_param": Rule(REFUSED, 'is the old form of "offload_param": write that instead.'),
    "zero_optimization.cpu_offload_use_pin_memory": Rule(
        REFUSED, 'is the old form of "pin_memory" in "offload_optimizer" and "offload_param": write that instead.'
    ),
    "zero_optimization.compute_grad_norm": Rule(
        REFUSED, "would apply steps whose gradient is NaN or Inf: remove it.", (True,)
    ),
    "zero_optimization.legacy_stage1": REMOVED,
    "zero_optimization.mics_shard_size": Rule(REFUSED, REMOVED.why, (-1,)),
    **dict.fromkeys(
        ("zero_optimization.mics_hierarchical_params_gather", "zero_optimization.zeropp_loco_param"), REMOVED
    ),
    "zero_optimization.save_muon_momentum_buffer_in_memory": Rule(IGNORED, "the optimizer is AdamW"),
    "zero_optimization.leaf_module": Rule(REFUSED, "is for models with experts: remove it."),
    "zero_optimization.zenflow": Rule(REFUSED, CPU_ADAM),
    **{
        f"zero_optimization.zero_quantized_{kind}": QUANTIZED_ZERO
        for kind in ("weights", "nontrainable_weights", "gradients")
    },
    **{
        f"zero_optimization.offload_optimizer.{key}": KEEP
        for key in ("device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write", "fast_init")
    },
    "zero_optimization.offload_optimizer.ratio": Rule(REFUSED, CPU_ADAM, (1,)),
    "zero_optimization.offload_optimizer.super_offload": Rule(REFUSED, CPU_ADAM),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": Rule(IGNORED, "only super_offload uses it"),
    **{
        f"zero_optimization.offload_param.{key}": KEEP
        for key in ("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory")
    },
    # precision
    **{
        f"fp16.{key}": KEEP
        for key in (
            *("enabled", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"),
            "consecutive_hysteresis",
        )
    },
    "fp16.auto_cast": Rule(IGNORED, "the models take token ids"),
    "fp16.fp16_master_weights_and_grads": MASTER,
    **{f"bf16.{key}": KEEP for key in ("enabled", "check_grad_overflow", "immediate_grad_update")},
    **dict.fromkeys(("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"), MASTER),
    # sections that DeepSpeed reads without a check of their keys
    **{f"data_types.{key}": KEEP for key in ("grad_accum_dtype", "buffer_dtype", "keep_in_fp32_modules")},
    "data_types.param_dtype": Rule(IGNORED, "--precision decides"),
    **{
        f"aio.{key}": KEEP
        for key in (
            *("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
        )
    },
    "aio.thread_count": Rule(IGNORED, "DeepSpeed reads intra_op_parallelism"),
    **{
        f"flops_profiler.{key}": KEEP
        for key in (
            *("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed"),
            "output_file",
        )
    },
    "timers.throughput": KEEP,
}
SECTIONS = {path.rpartition(".")[0] for path in RULES if "." in path}  # sections whose keys are in the table
# Other names of keys that DeepSpeed accepts.
OTHER_NAMES = {
    "bfloat16": "bf16",
    **{
        f"zero_optimization.{key}": f"zero_optimization.stage3_{key}"
        for key in (
            *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold"),
            *("max_live_parameters", "max_reuse_distance", "gather_16bit_weights_on_model_save"),
            *("module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential"),
        )
    },
}
OF_ACCELERATE = {"compute_environment", "deepspeed_config", "distributed_type", "mixed_precision", "num_processes"}


def sort_keys(config: dict) -> tuple[list[str], list[str]]:
    """Remove, in place, all keys that are not passed to DeepSpeed; returns notes and problems, one sentence each."""
    notes, problems = use_known_names(config)
    if OF_ACCELERATE & config.keys():
        names = ", ".join(sorted(OF_ACCELERATE & config.keys()))
        return notes, [f"--ds_file is a configuration of accelerate ({names}): give the DeepSpeed file instead."]
    switched_off: list[str] = []
    sort_section(config, "", notes, problems, switched_off)
    if switched_off:
        notes.append(f"--ds_file: ignored, as disabled: {', '.join(switched_off)}.")
    return notes, problems


def use_known_names(config: dict) -> tuple[list[str], list[str]]:
    """Rename keys in place by OTHER_NAMES; returns notes and problems."""
    notes, problems = [], []
    for other, name in OTHER_NAMES.items():
        path, _, key = other.rpartition(".")
        section, known = config.get(path) if path else config, name.rpartition(".")[2]
        if not isinstance(section, dict) or key not in section:
            continue
        value = section.pop(key)
        if section.setdefault(known, value) != value:
            problems.append(f"--ds_file has different values for {other} and {name}, two names of one key: remove one.")
        else:
            notes.append(f"--ds_file: {other} is read as {name}.")
    return notes, problems


def sort_section(section: dict, prefix: str, notes: list[str], problems: list[str], switched_off: list[str]) -> None:
    """`sort_keys` for one section, whose path ends with a dot in `prefix`; adds to the three lists."""
    for key, value in list(section.items()):
        path = prefix + key
        rule = RULES.get(path)
        if rule is None:
            problems.append(describe_unknown(path, prefix))
        elif rule.verdict == ACCEPTED and rule.package and not is_off(value):
            if importlib.util.find_spec(rule.package) is None:
                problems.append(f"--ds_file: {path} needs the package {rule.package}: install it or remove {path}.")
        elif rule.verdict == ACCEPTED:
            if path in SECTIONS and isinstance(value, dict):
                sort_section(value, f"{path}.", notes, problems, switched_off)
        elif value is None or (value in rule.harmless if rule.harmless else is_off(value)):
            del section[key]
            switched_off.append(path)
        elif rule.verdict == IGNORED:
            del section[key]
            notes.append(f"--ds_file: {path} has no effect: {rule.why}.")
        else:
            problems.append(f"--ds_file: {path} {quote(value)} {rule.why}")


def is_off(value: object) -> bool:
    """Whether a value, or a section by its own switch or those in it, is disabled."""
    if not isinstance(value, dict):
        return value is None or value is False or value == "auto"
    if "autotp_size" in value:
        return value["autotp_size"] in (0, 1)
    switches = find_switches(value)
    return not value or bool(switches) and all(map(is_off, switches))


def find_switches(section: dict) -> list:
    """The values that enable or disable a section: its own, or those of all sections in it."""
    own_switches = [section[name] for name in ("enabled", "deepcompile") if name in section]
    return own_switches or [
        switch for part in section.values() if isinstance(part, dict) for switch in find_switches(part)
    ]


def describe_unknown(path: str, prefix: str) -> str:
    """The error about a key that is not in the table.

    Args:
        prefix: path of its section with a dot; "" for the top level.
    """
    known = [name.removeprefix(prefix) for name in RULES if name.startswith(prefix)]
    known = [name for name in known if "." not in name]
    near = difflib.get_close_matches(path.removeprefix(prefix), known, n=1)
    fix = f'write "{near[0]}"' if near else "remove it"
    return f"--ds_file: {quote(path)} is not a key of DeepSpeed: {fix}."
