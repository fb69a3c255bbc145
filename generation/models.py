"""Find and check the model that answers, then load it."""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from checkpoints.read import CheckpointInfo, check_base, check_fit, notes_on_base, read_model
from errors import UserError
from generation.answerer import Answerer
from modes import MODES
from modes.config import Config
from modes.directory import Base, fingerprint, read_base
from modes.loading import check_quantization, gpus_have_bf16, load_base
from modes.mode import Mode
from modes.tokenizer import Tokenizer
from shards import DTYPES
from texts import counted


@dataclass(frozen=True)
class UnloadedModel:
    """A checked base, merged directory or checkpoint, without weights.

    limits: see `Answerer`.
    quantization_bit: number of bits to quantize the base to while loading; None or 0: none.
    double_quantization: whether the scales are quantized, too.
    notes: sentences to print about the base.
    """

    checkpoint: CheckpointInfo
    base: Base
    config: Config
    tokenizer: Tokenizer
    limits: dict[str, int | None]
    quantization_bit: int | None
    double_quantization: bool
    notes: list[str]

    @property
    def mode(self) -> Mode:
        """Its generation."""
        return MODES[self.base.mode]

    def identity(self) -> str:
        """A hash of all weights: values of the base's tensors, and the files of a checkpoint."""
        digest = hashlib.sha256(fingerprint(self.base).encode())
        if self.checkpoint.train_type != "all":
            for file in sorted(path for path in self.checkpoint.path.iterdir() if path.is_file()):
                with file.open("rb") as content:
                    digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]


def find_model(
    checkpoint: CheckpointInfo,
    base_model: str | Path | None = None,
    *,
    mode: str | None = None,
    quantization_bit: int | None = None,
    max_src_len: int | None = None,
    max_len: int | None = None,
) -> UnloadedModel:
    """Find the base of a checkpoint from `read_model`, and check everything that needs no weights.

    Args:
        base_model: of a checkpoint; None for the recorded one.
        mode: generation of a base whose files do not show it; a checkpoint records its own.
        quantization_bit: bits to quantize the base to, 0 for none; None for those in training.
        max_src_len: maximum tokens of a prompt; None for the value in training.
        max_len: maximum tokens of a prompt with its answer; None for the value in training.

    Raises:
        UserError: the base of a checkpoint is missing or another one, or the directory has no model.
    """
    is_whole = checkpoint.train_type == "all"
    base_path = checkpoint.path if is_whole else Path(base_model or checkpoint.base_path())
    base = read_base(base_path, mode, recorded=checkpoint.mode)
    run_options = {} if is_whole else checkpoint.run_options
    if not is_whole:
        check_base(base, checkpoint)
        check_fit(base, checkpoint)
    bits = run_options.get("quantization_bit") if quantization_bit is None else quantization_bit
    double_quantization = bits == 4 and bool(run_options.get("double_quantization"))
    check_quantization(base, bits, double_quantization)
    config = base.make_config()
    checkpoint.method.configure(config)
    tokenizer = base.make_tokenizer()
    limits = choose_limits(checkpoint, max_src_len, max_len)
    return UnloadedModel(
        checkpoint, base, config, tokenizer, limits, bits, double_quantization, notes_on_base(base, checkpoint)
    )


def find_base(model: UnloadedModel) -> UnloadedModel:
    """The base of a checkpoint, quantized in the same way."""
    found = find_model(read_model(model.base.path), mode=model.base.mode, quantization_bit=model.quantization_bit or 0)
    return replace(found, double_quantization=model.double_quantization)


def choose_limits(checkpoint: CheckpointInfo, max_src_len: int | None, max_len: int | None) -> dict[str, int | None]:
    """Limits of prompts, as keywords of `prompt_ids`: the flags', else those of training; {} if there are none."""
    trained = checkpoint.run_options
    limits = {name: trained.get(name) for name in ("max_src_len", "max_len")} if checkpoint.record else {}
    if max_src_len is not None:
        limits = {"max_src_len": max_src_len}
    if max_len is not None:
        limits = {"max_src_len": limits.get("max_src_len") or max_len, "max_len": max_len}
    return limits


def choose_device(name: str = "auto") -> torch.device:
    """The device of --device; auto: the current GPU (by default the first), else the CPU.

    Raises:
        UserError: there is no such GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    number = int(name.removeprefix("cuda").removeprefix(":") or 0)
    if number >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch has {counted(torch.cuda.device_count(), 'GPU')}, numbered from 0: give one or cpu."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of --precision."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if gpus_have_bf16([device.index or 0]) else torch.float16


def load_model(unloaded: UnloadedModel, precision: str = "auto", device: torch.device | None = None) -> Answerer:
    """Load the weights.

    Args:
        device: None: see `choose_device`.
    """
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    device = device or choose_device()
    dtype = choose_dtype(precision, device)
    quantization = unloaded.quantization_bit, unloaded.double_quantization
    model = load_base(unloaded.mode, unloaded.base, unloaded.config, dtype, *quantization, device)
    model = unloaded.checkpoint.method.load(model, unloaded.checkpoint.saved).eval()
    return Answerer(unloaded.mode, unloaded.tokenizer, model, unloaded.limits)


def load_answerer(
    model_path: str | Path,
    base_model: str | Path | None = None,
    precision: str = "auto",
    *,
    quantization_bit: int | None = None,
    mode: str | None = None,
) -> Answerer:
    """Read, check and load a directory of any kind; see `find_model`."""
    unloaded = find_model(read_model(Path(model_path)), base_model, mode=mode, quantization_bit=quantization_bit)
    return load_model(unloaded, precision)
