"""A run's options, base and DeepSpeed file, checked as far as one rank can by itself: before ranks meet and before any
weight is loaded. Everything that is wrong is said at once.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.record import make_record
from errors import UserError
from methods.start import describe_start
from modes import MODES
from modes.directory import Base, fingerprint, read_base
from options.config_file import flat
from options.train import TrainOptions, notes_on, parse_train
from training import launch
from training.caches import use_writable_caches
from training.ds_config import DeepSpeedSetup, fit_buckets, resolve_for_run
from training.engine import DTYPES
from training.features import first_trained_block
from training.kernels import choose_attention
from training.models import ModelShapes, read_shapes
from training.places import check_places
from training.quantization import check_quantization, check_training


@dataclass(frozen=True)
class Command:
    """What a run is to do; nothing contradicts anything.

    shapes: of the model. attention: the implementation that was chosen.
    first_block: in which training begins, for --cache_frozen_features; 0 without. notes: sentences to print.
    """

    options: TrainOptions
    base: Base
    ds: DeepSpeedSetup
    shapes: ModelShapes
    attention: str
    first_block: int
    notes: tuple[str, ...]

    @property
    def save_bytes(self) -> tuple[int, int]:
        """Bytes of a checkpoint and of a resume state, at most."""
        return self.options.method.save_bytes(self.shapes.trained, DTYPES[self.ds.precision].itemsize)

    @property
    def on_gpu(self) -> bool:
        """Whether the run's memory is that of GPUs: there is one, or --gpu_memory asks for it."""
        return torch.cuda.is_available() or self.options.safety.gpu_memory is not None

    def identity(self, data: str) -> dict[str, object]:
        """What a resumed run must have in common with the run that wrote its state.

        Args:
            data: what tells the training data from others.
        """
        options = self.options
        return {
            "mode": self.base.mode,
            "train_type": options.model.train_type,
            **options.method.record(),
            "precision": self.ds.precision,
            "seed": options.steps.seed,
            "training data": data,
            "base": fingerprint(self.base)[:16],
            "quantization_bit": options.model.quantization_bit,
            "packing": options.row_length,
        }

    @property
    def complete_sections(self) -> tuple[object, ...]:
        """All dataclasses of flags, with the mode that was recognized."""
        model = dataclasses.replace(self.options.model, mode=self.base.mode)
        return model, *self.options.sections[1:]

    def record(self) -> dict:
        """What the checkpoints of the run say of it, see `checkpoints.record.make_record`."""
        options = self.options
        return make_record(
            mode=self.base.mode, train_type=options.model.train_type, method=options.method.record(),
            base_path=self.base.path, fingerprint=fingerprint(self.base), template=MODES[self.base.mode].template,
            options=flat(self.complete_sections), precision=self.ds.precision,
        )  # fmt: skip


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add the sentences of a UserError to a list, instead of raising it."""
    try:
        yield
    except UserError as error:
        problems += error.sentences


def read_command(argv: Sequence[str] | None) -> Command:
    """The command line of train.py.

    Raises:
        UserError: everything that is wrong with it.
    """
    return check(*parse_train(argv))


def check(options: TrainOptions, problems: Sequence[str] = ()) -> Command:
    """Read the base's files and the DeepSpeed file, and look for everything that cannot work.

    Args:
        problems: that were found before.

    Raises:
        UserError: all problems, a sentence each.
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
    problems += options.method.conflicts(stage=stage, ds_file=compute.ds_file, quantization_bit=model.quantization_bit)
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
    attention, first_block, start_notes = "", 0, []
    if base and ds and shapes:
        with collected(problems):
            attention = choose_attention(compute.attn_implementation, ds.precision, shapes.config.head_dim)
        if compute.cache_frozen_features:
            with collected(problems):
                first_block = first_trained_block(shapes.parameters)
        if model.init_adapter and not problems:
            start = Path(model.init_adapter)
            with collected(problems):
                options.method.check_start(start, shapes.parameters, MODES[base.mode].model_class, shapes.config)
                start_notes = describe_start(start, base.path, base.config)
    if problems or base is None or ds is None or shapes is None:
        raise UserError(*dict.fromkeys(problems))
    ds = DeepSpeedSetup(fit_buckets(ds.config, shapes.trained), ds.precision)
    notes = [*cache_notes, *notes_on(options), *([base.note] if base.note else []), *ds_notes, *start_notes]
    return Command(options, base, ds, shapes, attention, first_block, tuple(notes))


def check_compile(options: TrainOptions, stage: int) -> list[str]:
    """One sentence for each thing that does not go with --torch_compile.

    Args:
        stage: of ZeRO.
    """
    problems = []
    if options.compute.torch_compile and stage == 3:
        problems.append(
            f"--torch_compile does not go with ZeRO stage 3 of --ds_file {options.compute.ds_file}, which gathers "
            "weights between a layer's operations: take a file with stage 2, or leave the flag out."
        )
    if options.compute.torch_compile and options.model.quantization_bit:
        problems.append(
            f"--torch_compile does not go with --quantization_bit {options.model.quantization_bit}, whose products it "
            "cannot look into: leave one of them out."
        )
    return problems
