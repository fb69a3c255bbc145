"""Read a checkpoint, an adapter or a whole model once into one checked object. Reads no weights of a base."""

from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.record import MERGED_FILE, RECORD_FILE, check_files, read_record
from errors import UserError
from flags import flags_of
from methods import METHODS
from methods.adapter import Adapter
from methods.adapter_config import CONFIG_FILE, other_base
from methods.method import Method
from methods.tensors import SavedTensors
from modes import MODES
from modes.directory import Base, fingerprint
from options.sections import ModelOptions
from shards import DTYPES


@dataclass(frozen=True, eq=False)
class CheckpointInfo:
    """A checkpoint, a foreign peft adapter, or a whole model (a base or a merged directory).

    method: with its options in training; `All` for a whole model.
    record: the content of checkpoint.json or merged_from.json; None for a base and a foreign adapter.
    saved: what `method.read` returned; None for a whole model, which is read as a base.
    """

    path: Path
    method: Method
    record: dict | None
    saved: SavedTensors | Adapter | None

    @property
    def train_type(self) -> str:
        """The name of the method."""
        return self.method.TITLE

    @property
    def mode(self) -> str | None:
        """Generation of the base; None without a record."""
        return self.record["mode"] if self.record else None

    @property
    def run_options(self) -> dict:
        """The flags of the run that wrote it; {} without a record."""
        return self.record["options"] if self.record else {}

    def base_path(self) -> Path:
        """The base that the record, or peft's adapter_config.json, names.

        Raises:
            UserError: it names none, or one that is not on this machine.
        """
        named = self.record["base"].get("path") if self.record else None
        if isinstance(self.saved, Adapter) and not self.record:
            named = self.saved.config.get("base_model_name_or_path")
        if not named or not Path(named).is_dir():
            raise UserError(
                f"{self.path} was trained on {named or 'an unnamed base'}, which is not here: add --base_model."
            )
        return Path(named)


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory has the files of a checkpoint or a peft adapter; otherwise it may be a whole model."""
    return (directory / RECORD_FILE).is_file() or (directory / CONFIG_FILE).is_file()


def read_checkpoint(directory: Path) -> CheckpointInfo:
    """Read a checkpoint or a peft adapter directory.

    Raises:
        UserError: it is neither, or is broken or incomplete.
    """
    record = read_record(directory)
    if record is None:
        if not is_checkpoint(directory):
            raise UserError(
                f"{directory} holds neither {RECORD_FILE} nor {CONFIG_FILE}: give the directory of a checkpoint, "
                "such as output-glm/epoch-1-step-100."
            )
        merged = read_record(directory, MERGED_FILE)
        if merged is not None:  # merge_lora.py --adapter_only
            raise UserError(
                f"{directory} is an adapter for the class in transformers: give the checkpoint that it was made from, "
                f"{merged.get('checkpoint')}."
            )
        lora = METHODS["lora"]()
        return CheckpointInfo(directory, lora, None, lora.read(directory))
    method = read_method(directory / RECORD_FILE, record)
    check_files(directory, record)
    return CheckpointInfo(directory, method, record, method.read(directory))


def read_model(directory: Path) -> CheckpointInfo:
    """Read the checkpoint, peft adapter, base or merged directory of --model_path.

    Raises:
        UserError: it is not a directory, or a checkpoint or the record of a merged directory is broken.
    """
    if not directory.is_dir():
        raise UserError(
            f"--model_path {directory} is not a directory: give a base, a merged directory or a checkpoint."
        )
    if is_checkpoint(directory):
        return read_checkpoint(directory)
    inside = [path for path in sorted(directory.glob("*")) if is_checkpoint(path)]
    if inside and not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds checkpoints and is none itself: give one of them, such as {inside[0]}.")
    return CheckpointInfo(directory, METHODS["all"](), read_record(directory, MERGED_FILE), None)


def read_method(path: Path, record: dict) -> Method:
    """The method of a record, with its options.

    Raises:
        UserError: this toolkit does not have the method, or did not write the record.
    """
    name, limits = record["train_type"], record["options"]
    if name not in METHODS:
        raise UserError(f"{path} names the unknown method {name!r}: use another checkpoint, or update this toolkit.")
    method = METHODS[name].from_record(record["method"])
    valid = {
        "method": method is not None,
        "base.path": isinstance(record["base"].get("path"), str),
        "precision": record["precision"] in DTYPES,
        "files": isinstance(record.get("files", {}), dict),
        "options": all(type(limits.get(name)) in (int, type(None)) for name in ("max_len", "max_src_len"))
        and limits.get("quantization_bit") in (None, *flags_of(ModelOptions)["quantization_bit"].choices),
    }
    wrong = [key for key, is_valid in valid.items() if not is_valid]
    if method is None or wrong:
        raise UserError(f"{path} has a {wrong[0]} that no checkpoint has: use another checkpoint.")
    return method


def check_base(base: Base, checkpoint: CheckpointInfo, force: bool | None = None) -> None:
    """Refuse a base that a checkpoint was not trained on; a foreign adapter accepts any.

    Args:
        force: whether --force accepts a base of the same generation with other weights; None: there is no --force.
    """
    record = checkpoint.record
    if record is None:
        return
    path = record["base"].get("path")
    if record["mode"] != base.mode:
        raise UserError(
            f"the checkpoint was trained on a {record['mode']} base ({path}), {base.path} is {base.mode}: "
            "give that base."
        )
    if not force and fingerprint(base) != record["base"].get("fingerprint"):
        remedy = "give that base" if force is None else "give that base, or --force to merge anyway"
        raise UserError(f"{base.path} does not have the weights that the checkpoint was trained on ({path}): {remedy}.")


def check_fit(base: Base, checkpoint: CheckpointInfo) -> set[str]:
    """Refuse a checkpoint whose tensors do not match the base; builds only the model's shapes.

    Returns: the names of the base's tensors.
    """
    mode, method = MODES[base.mode], checkpoint.method
    config = base.make_config()
    method.configure(config)
    with torch.device("meta"):
        model = mode.model_class(config)
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        method.fits(model, checkpoint.saved)
    return names


def notes_on_base(base: Base, checkpoint: CheckpointInfo) -> list[str]:
    """Notes about an accepted base: how its generation was recognized, and whether an adapter names another base.

    A checkpoint of this toolkit has the fingerprint of its base, a foreign adapter only a name.
    """
    named_other = None
    if isinstance(checkpoint.saved, Adapter) and checkpoint.record is None:
        named_other = other_base(checkpoint.saved.config, checkpoint.path, base.path, base.config)
    return [note for note in (base.note, named_other) if note]
