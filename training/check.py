"""Check a run's options, base and DeepSpeed file on one rank, before the ranks connect and before any weight is loaded.

All problems are reported at once.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from errors import UserError
from methods.method import Method
from methods.start import StartValues, describe_start
from modes import MODES
from modes.directory import Base, quantization_bit, read_base
from modes.loading import check_quantization
from options.train import TrainOptions, notes_on, parse_train
from parallel import launch
from training.caches import use_writable_caches
from training.command import Command
from training.ds_config import DeepSpeedSetup, fit_buckets, resolve_for_run
from training.features import first_trained_block
from training.kernels import choose_attention
from training.places import check_places
from training.shapes import read_shapes


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add the sentences of a UserError to a list instead of raising it."""
    try:
        yield
    except UserError as error:
        problems += error.sentences


def read_command(argv: Sequence[str] | None) -> Command:
    """Read and check the command line of train.py.

    Raises:
        UserError: all its problems.
    """
    return check(*parse_train(argv))


def check(options: TrainOptions, problems: Sequence[str] = ()) -> Command:
    """Read the base's files and the DeepSpeed file, and collect all conflicts.

    Args:
        problems: sentences of earlier checks.

    Raises:
        UserError: all problems, one sentence each.
    """
    problems = [*problems]
    cache_notes = use_writable_caches()
    problems += check_places(options, launch.rank())
    model, compute, base, ds, shapes = options.model, options.compute, None, None, None
    ds_notes: list[str] = []
    if os.path.isdir(model.model_name_or_path):
        with collected(problems):
            base = read_base(model.model_name_or_path, model.mode if model.mode in MODES else None)
    with collected(problems):
        ds, ds_notes = resolve_for_run(options, base.config["hidden_size"] if base else None)
    stage = ds.stage if ds else 0
    problems += options.method.conflicts(stage, compute.ds_file)
    problems += check_compile(options, stage)
    if model.init_adapter and options.method.start_conflict():
        problems.append(f"--init_adapter {model.init_adapter} {options.method.start_conflict()}.")
    if base:
        with collected(problems):
            check_quantization(base, model.quantization_bit, model.double_quantization)
        with collected(problems):
            check_training(base, model.quantization_bit, options.method, stage)
        with collected(problems):
            shapes = read_shapes(base, options.method)
    attention, first_block = "", 0
    start: StartValues | None = None
    start_notes: list[str] = []
    if base and ds and shapes:
        with collected(problems):
            attention = choose_attention(compute.attn_implementation, ds.precision, shapes.config.head_dim)
        if compute.cache_frozen_features and model.train_type == "freeze":  # else it is among the problems
            with collected(problems):
                first_block = first_trained_block(shapes.parameters)
        if model.init_adapter and not problems:
            with collected(problems):
                start = options.method.read_start(
                    Path(model.init_adapter), shapes.parameters, MODES[base.mode].model_class, shapes.config
                )
                start_notes = describe_start(start, base.path, base.config)
    if problems or base is None or ds is None or shapes is None:
        raise UserError(*dict.fromkeys(problems))
    ds = DeepSpeedSetup(fit_buckets(ds.config, shapes.trained), ds.precision)
    notes = [*cache_notes, *notes_on(options), *([base.note] if base.note else []), *ds_notes, *start_notes]
    return Command(options, base, ds, shapes, attention, first_block, start, tuple(notes))


def check_compile(options: TrainOptions, stage: int) -> list[str]:
    """One sentence for each option that cannot be combined with --torch_compile.

    Args:
        stage: the ZeRO stage.
    """
    problems = []
    if options.compute.torch_compile and stage == 3:
        problems.append(
            f"--torch_compile cannot be combined with ZeRO stage 3 of --ds_file {options.compute.ds_file}, which "
            "gathers weights within a layer: use stage 2, or leave the flag out."
        )
    if options.compute.torch_compile and options.model.quantization_bit:
        problems.append(
            f"--torch_compile cannot be combined with --quantization_bit {options.model.quantization_bit}, whose "
            "kernels it cannot compile: leave one of them out."
        )
    return problems


def check_training(base: Base, bits: int | None, method: Method, stage: int) -> None:
    """Check that the method and the ZeRO stage can train on a quantized base.

    Args:
        bits: --quantization_bit; None or 0 for none.
        stage: of ZeRO.

    Raises:
        UserError: one sentence for each conflict.
    """
    of_base = quantization_bit(base)
    if not bits and not of_base:
        return
    quantizer = f"--quantization_bit {bits}" if bits else f"{base.path} (quantization_bit {of_base})"
    problems = method.quantized_conflicts(quantizer)
    if stage == 3:
        problems.append(
            f"{quantizer} does not work under ZeRO-3, which partitions weights: use --ds_file ds_zero2_no_offload.json."
        )
    if problems:
        raise UserError(*problems)
