"""Load the model of a run, and choose the layers to recompute."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from memory.activations import read_sizes
from memory.available import memory_of_rank
from memory.checkpointing import choose_layers
from memory.setup import read_setup
from memory.step import largest_batch
from methods.method import Method
from modes import MODES
from modes.directory import Base, iterate_shards
from modes.loading import load_base
from options.sections import ModelOptions
from parallel import launch, ranks
from parallel.zero import build_partitioned
from shards import DTYPES
from training.command import Command
from training.datasets import TrainingData
from training.ds_config import DeepSpeedSetup
from training.engine import checkpoint_blocks
from training.kernels import use_kernels
from training.shapes import ModelShapes
from training.summary import describe_trained


def make_model(
    base: Base, shapes: ModelShapes, method: Method, ds: DeepSpeedSetup, options: ModelOptions, seed: int
) -> PreTrainedModel:
    """Load the base and add the method's trained parameters; under ZeRO-3 it is partitioned from the start."""
    mode = MODES[base.mode]
    if ds.stage == 3:
        model = build_partitioned(mode.model_class, shapes.config, ds.config, iterate_shards(base))
    else:
        # directly on DeepSpeed's device, so that no rank holds a copy in host memory
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        model = load_base(
            mode, base, shapes.config, DTYPES[ds.precision], options.quantization_bit, options.double_quantization,
            device,
        )  # fmt: skip
    ranks.seed_everything(seed)  # new tensors are the same on every rank, whatever the ZeRO stage
    return method.prepare(model)


def prepare_model(command: Command, data: TrainingData, *, resumes: bool, at: Callable[[str], None]) -> PreTrainedModel:
    """Load the model with the values of --init_adapter, and set its kernels and recomputed layers.

    Args:
        resumes: whether a resume state will replace the values of --init_adapter.
        at: called with the name of the next phase, equally often on every rank.
    """
    options, ds, method = command.options, command.ds, command.options.method
    if options.compute.gradient_checkpointing:
        recomputed, reason = layers_to_recompute(command, data)
    at("loading the weights")
    model = make_model(command.base, command.shapes, method, ds, options.model, options.steps.seed)
    use_kernels(model, command.attention, options.compute.torch_compile)
    if command.start and not resumes:
        method.load_start(model, command.start)
    kernels = f"{command.attention} attention" + ", compiled layers" * options.compute.torch_compile
    ranks.say(
        f"{command.base.mode} {options.model.train_type}, {ds.precision}, {kernels}, trained:", describe_trained(model)
    )
    if options.compute.gradient_checkpointing:
        count = checkpoint_blocks(model, model.blocks, recomputed)
        ranks.say(f"layers recomputed in backward: {count} of {len(model.blocks)} ({reason})")
    return model


def layers_to_recompute(command: Command, data: TrainingData) -> tuple[int, str]:
    """(number of layers, reason); the same on every rank, from the smallest memory of all."""
    options, ds = command.options, command.ds
    rows, batch_size = data.rows, options.steps.per_device_train_batch_size
    memory = ranks.smallest(memory_of_rank(launch.local_world_size()))
    setup = read_setup(
        ds.config, precision=ds.precision, ranks=ranks.world_size(), on_gpu=torch.cuda.is_available(),
        accumulation=options.steps.gradient_accumulation_steps, lora_dropout=options.method.drops_inputs,
        batch=largest_batch(rows.lengths, rows.supervised, batch_size, data.row_length),
    )  # fmt: skip
    sizes = read_sizes(command.shapes.config, gated=MODES[command.base.mode].gated)
    return choose_layers(options.compute.checkpoint_layers, command.shapes.parameters, sizes, setup, memory)
