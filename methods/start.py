"""--init_adapter: start from the values of an existing adapter or prefix.

lora     a peft adapter directory, of peft 0.3 to today
ptuning  a checkpoint of this toolkit, the official ptuning layout (transformer.prefix_encoder.* in pytorch_model.bin),
         or a whole model that includes these tensors, as the 2023 tool wrote it; only these are read
"""

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from errors import UserError
from methods.adapter import PREFIX, TOKENS, Adapter, low_rank, read_adapter
from methods.adapter_config import other_base
from methods.apply import check_fit
from methods.tensors import check_finite, in_whole, saved_name, tied_names
from parameters import Parameter

PREFIX_ENCODER = "transformer.prefix_encoder."
WEIGHTS = ("prefix_encoder*.safetensors", "model*.safetensors", "pytorch_model*.bin")
BROKEN = (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
START_OF_VARIANT = {"loraplus": "lora"}  # the kind of adapter that a variant starts from, if not its own


@dataclass(frozen=True, eq=False)
class StartValues:
    """The checked start values of a run.

    tensors: by the names of the trained parameters in a checkpoint's file.
    adapter_config: peft's adapter_config.json; None of a prefix.
    """

    directory: Path
    tensors: dict[str, torch.Tensor]
    adapter_config: dict | None = None


def read_adapter_start(
    directory: Path,
    parameters: list[Parameter],
    model_class: type,
    config: object,
    *,
    variant: str,
    lora_dim: int,
    lora_alpha: float,
) -> StartValues:
    """Read the adapter that a LoRA run starts from.

    Args:
        parameters: of the prepared model. model_class, config: of the base. variant: of LoRA.

    Raises:
        UserError: the run cannot start from it.
    """
    check_directory(directory)
    adapter = read_adapter(directory)
    with torch.device("meta"):
        check_fit(model_class(config), adapter)
    tied = tied_names(model_class)
    tensors = check_adapter(adapter, parameters, tied, variant=variant, lora_dim=lora_dim, lora_alpha=lora_alpha)
    return StartValues(directory, tensors, adapter.config)


def check_directory(directory: Path) -> None:
    """Raise UserError unless --init_adapter names a directory."""
    if not directory.is_dir():
        raise UserError(f"--init_adapter {directory} is not a directory: give that of an adapter or a prefix.")


def check_adapter(
    adapter: Adapter,
    parameters: list[Parameter],
    tied: dict[str, str],
    *,
    variant: str,
    lora_dim: int,
    lora_alpha: float,
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter by peft's names; UserError unless they match the flags."""
    directory = adapter.directory
    matrices = [
        parameter.name.removeprefix(PREFIX)
        for parameter in parameters
        if parameter.trained and ".lora_A." in parameter.name
    ]
    asked_layers = {name.split(".lora_A.")[0] for name in matrices}
    official = {parameter.name.removeprefix(PREFIX): parameter.trained for parameter in parameters}
    whole = {name for name in adapter.whole if name in official and adapter.config.get("modules_to_save")}
    asked_whole = {name for name, trained in official.items() if trained and ".lora_" not in name}
    compare(directory, "--lora_variant", adapter.kind, START_OF_VARIANT.get(variant, variant))
    ranks = {len(low_rank(parts)[0]) for parts in adapter.layers.values()}
    compare(directory, "--lora_dim", list_of(ranks), list_of([lora_dim]))
    alphas = {adapter.alpha(module) for module in adapter.layers}
    compare(directory, "--lora_alpha", list_of(alphas), list_of([lora_alpha]))
    if asked_layers != adapter.layers.keys():
        names_held, names_asked = (
            [name.rsplit(".", 1)[-1] for name in names] for names in (adapter.layers, asked_layers)
        )
        compare(directory, "--lora_module_name", describe(names_held), describe(names_asked))
    compare(directory, "--modules_to_save", describe(whole), describe(asked_whole))
    tensors = {PREFIX + name: tensor for name, tensor in tensors_of(adapter)}
    shapes = {saved_name(parameter.name): parameter.shape for parameter in parameters if parameter.trained}
    check_shapes(directory, tensors, shapes)
    unused = tensors.keys() - shapes.keys() - {PREFIX + name for name in tied}
    if unused:
        raise UserError(
            f"--init_adapter {directory} holds {min(unused).removeprefix(PREFIX)}, which this run does not train: "
            "merge it with merge_lora.py and give the result as --model_name_or_path."
        )
    return tensors


def describe_start(start: StartValues, base_path: Path, base_config: dict) -> list[str]:
    """Notes about a start: a warning if the adapter names another base."""
    if start.adapter_config is None:
        return []
    warning = other_base(start.adapter_config, start.directory, base_path, base_config)
    return [warning] if warning else []


def read_prefix(
    directory: Path, parameters: list[Parameter], *, pre_seq_len: int, prefix_projection: bool
) -> StartValues:
    """The prefix that a P-Tuning run starts from; UserError unless its length and position are those of the flags."""
    check_directory(directory)
    tensors = dict(prefix_tensors(directory))
    embedding = tensors.get(f"{PREFIX_ENCODER}embedding.weight")
    if embedding is None or embedding.ndim != 2:
        raise UserError(f"--init_adapter {directory} holds no {PREFIX_ENCODER}embedding.weight: give a P-Tuning one.")
    compare(directory, "--pre_seq_len", len(embedding), pre_seq_len)
    has_projection = any(".trans." in name for name in tensors)
    compare(directory, "--prefix_projection", has_projection, prefix_projection)
    check_shapes(directory, tensors, {parameter.name: parameter.shape for parameter in parameters if parameter.trained})
    return StartValues(directory, tensors)


def compare(directory: Path, flag: str, held: object, asked: object) -> None:
    """Raise UserError if a value of the directory differs from the flag's."""
    if held != asked:
        raise UserError(f"--init_adapter {directory} has {held} for {flag}, which is {asked}: make them the same.")


def describe(names) -> str:
    """The distinct names, with their number of occurrences if more than one."""
    counts = Counter(names)
    return ",".join(f"{name} ({counts[name]} times)" if counts[name] > 1 else name for name in sorted(counts)) or "none"


def check_shapes(directory: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, tuple]) -> None:
    """Raise UserError unless the directory holds every trained tensor, finite and in the model's shape."""
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
            held = list(tensors[name].shape) if name in tensors else "nothing"
            raise UserError(
                f"--init_adapter {directory} holds {held} for {name}, the model has {list(shape)}: it belongs to "
                "another base or other flags."
            )
        check_finite(name, tensors[name], directory)


def list_of(values: Iterable[float]) -> str:
    """Numbers in ascending order, as text of a flag."""
    return ",".join(f"{value:g}" for value in sorted(values))


def tensors_of(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in today's files, tensor) of all tensors of an adapter."""
    yield from adapter.lora_tensors()
    yield from adapter.whole.items()
    for name, (_, values) in adapter.rows.items():
        yield name.removesuffix(".weight") + TOKENS, values


def prefix_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(official name, tensor) of every prefix encoder's tensor in the weight files of a directory.

    Raises:
        UserError: there is no weight file, or one cannot be read or contains more than tensors.
    """
    files = next((matches for pattern in WEIGHTS if (matches := sorted(directory.glob(pattern)))), [])
    if not files:
        raise UserError(f"--init_adapter {directory} holds none of {', '.join(WEIGHTS)}: give a P-Tuning checkpoint.")
    for file in files:
        try:
            yield from ((name, tensor) for name, tensor in read_tensors(file) if name.startswith(PREFIX_ENCODER))
        except BROKEN:
            raise UserError(f"--init_adapter: {file} cannot be read as tensors: give another P-Tuning one.") from None


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of a weight file, memory-mapped if possible; only tensors are unpickled."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, not a dict
                yield name, opened.get_tensor(name)
        return
    with file.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"  # torch's format since 1.6; older ones cannot be memory-mapped
    state = torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("not a dict of tensors")
    yield from state.items()


def copy_start(model, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors, by their names in files, into the trained parameters of a prepared model; on every rank."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with in_whole([parameter]):
                parameter.data.copy_(tensors[saved_name(name)])
