"""Check a LoRA adapter, our own or a foreign one, against a base, and load it.

methods/adapter.py reads the directory; peft decides which modules its config adapts.
"""

import warnings
from contextlib import contextmanager
from pathlib import Path

import peft
import torch

from errors import UserError
from methods.adapter import PREFIX, TOKENS, Adapter, low_rank, official_name
from methods.adapter_config import CONFIG_FILE
from methods.tensors import tied_names
from texts import one_line


def check_fit(model, adapter: Adapter) -> None:
    """Check an adapter against a model on the meta device, which it wraps.

    Raises:
        UserError: a tensor does not match the model, has no effect, or is missing.
    """
    check_shapes(model, adapter)
    check_tied(tied_names(model), adapter)
    check_targets(model, adapter)


def check_shapes(model, adapter: Adapter) -> None:
    """Raise UserError unless the shapes of the adapter's tensors match the model."""
    directory = adapter.directory
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    # weights of 4 bits are packed
    shapes |= {f"{name}.weight": [module.out_features, module.in_features] for name, module in linear}
    adapter_shapes = {}
    for module, parts in adapter.layers.items():
        a, b = low_rank(parts)
        adapter_shapes[f"{module}.weight"] = [a.shape[1], len(b)] if "embedding_A" in parts else [len(b), a.shape[1]]
    adapter_shapes |= {name: list(tensor.shape) for name, tensor in adapter.whole.items()}
    tokens = {f"{name}.weight" for name, module in model.named_modules() if is_of_tokens(model, module)}
    for name, shape in adapter_shapes.items():
        base_shape = shapes.get(name)
        if base_shape and name in tokens and base_shape[0] != shape[0] and base_shape[1:] == shape[1:]:
            raise UserError(
                f"{directory} has {shape[0]} tokens in {name}, the base {base_shape[0]}; added tokens are not "
                "supported: merge it with peft and give the result as the base."
            )
        if base_shape != shape:
            raise UserError(
                f"the adapter of {name.removesuffix('.weight')} in {directory} is for {shape}, the base has "
                f"{base_shape or 'no such layer'}: it belongs to another base, give that one."
            )
    for name, (indices, values) in adapter.rows.items():
        base_shape = shapes.get(name)
        if (
            base_shape is None
            or base_shape[1:] != list(values.shape[1:])
            or (len(indices) and indices.max() >= base_shape[0])
        ):
            raise UserError(
                f"{directory} has tokens up to {max(indices.tolist(), default=0)} of {values.shape[1]} values for "
                f"{name}, the base has {base_shape or 'no such layer'}: it belongs to another base, give that one."
            )


def is_of_tokens(model, module) -> bool:
    """Whether a module is the model's embedding or its output layer."""
    return module is model.get_input_embeddings() or module is model.get_output_embeddings()


def check_tied(tied: dict[str, str], adapter: Adapter) -> None:
    """Raise UserError if an adapter changes one of two tied tensors but not the other, or both differently."""
    directory = adapter.directory
    kept_apart = not adapter.config.get("ensure_weight_tying")
    saved = [name.rpartition(".")[2] for name in adapter.config.get("modules_to_save") or ()]
    for target, source in tied.items():
        head, embedding = adapter.whole.get(target), adapter.whole.get(source)
        head_differs = head is not None and (embedding is None or not torch.equal(head, embedding))
        # peft trains a copy of modules_to_save; embeddings saved for other reasons are the tied tensor itself
        only_embedding = head is None and embedding is not None and kept_apart and source.split(".")[-2] in saved
        has_matrices = any(name.removesuffix(".weight") in adapter.layers for name in (target, source))
        if head_differs or only_embedding or has_matrices or target in adapter.rows:
            first, second = (source, target) if only_embedding else (target, source)
            raise UserError(
                f"the adapter in {directory} changes {first} but not {second}, which are one tensor in this model: "
                "use another adapter."
            )


def check_targets(model, adapter: Adapter) -> None:
    """Raise UserError unless an adapter has the tensors of peft's model for its config; wraps the meta model."""
    directory = adapter.directory
    parts = (".lora_", ".modules_to_save.", "trainable_tokens_delta")
    with explained(directory):
        wrapped = wrap(model, adapter.config)
    asked = {official_name(name) for name, _ in wrapped.named_parameters() if any(part in name for part in parts)}
    asked = {name.replace("magnitude_vector.weight", "magnitude_vector") for name in asked}
    lora = {name for name, _ in adapter.lora_tensors()}
    rows = {f"{name.removesuffix('.weight')}{TOKENS}" for name in adapter.rows}
    unused, missing = sorted((lora | rows) - asked), sorted(asked - lora - rows - adapter.whole.keys())
    if unused:
        raise UserError(
            f"{directory} holds {unused[0]}, which {CONFIG_FILE} does not list (see target_modules there), so it "
            "would have no effect: use another adapter."
        )
    if missing:
        raise UserError(
            f"{directory} holds no {missing[0]}, which {CONFIG_FILE} requires: the adapter is incomplete, use another."
        )


def wrap(model, config: dict, **changes):
    """Wrap a model with peft for an adapter_config.json with changes; its tensors are not loaded yet."""
    settings = {**config, "inference_mode": True, "init_lora_weights": True, "task_type": "CAUSAL_LM", **changes}
    return peft.get_peft_model(model, peft.PeftConfig.from_peft_type(**settings))


@contextmanager
def explained(directory: Path):
    """Convert peft's errors about an adapter to UserError.

    Hides its warnings about AdaLoRA's form of rank pattern, and about tied weights, which `check_tied` checks.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    # A wrong type in one of the many keys that only peft reads raises one of these.
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"peft cannot load the adapter in {directory} ({one_line(error)}): use another checkpoint."
        ) from error


def load(model, adapter: Adapter):
    """Wrap the model with an adapter that `check_fit` has checked.

    Raises:
        UserError: a tensor to replace is quantized in this model, or peft cannot load the adapter.
    """
    directory = adapter.directory
    replace(model, adapter)
    # exactly the layers of the file; its other tensors are in the model by now
    cleared = ("modules_to_save", "trainable_token_indices", "exclude_modules", "layers_to_transform", "layers_pattern")
    changes = {**dict.fromkeys(cleared), "target_modules": sorted(adapter.layers), "bias": "none"}
    with explained(directory):
        wrapped = wrap(model, adapter.config, **changes)
        tensors = {PREFIX + name: tensor for name, tensor in adapter.lora_tensors()}
        unexpected = peft.set_peft_model_state_dict(wrapped, tensors).unexpected_keys
    if unexpected:
        raise UserError(f"peft does not use {unexpected[0]} of {directory}: use another adapter.")
    return wrapped


def replace(model, adapter: Adapter) -> None:
    """Copy the tensors and rows that an adapter replaces into the base."""
    directory = adapter.directory
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in (*adapter.whole, *adapter.rows):
        parameter = parameters[name]
        if not parameter.is_floating_point() or (
            name in adapter.whole and parameter.shape != adapter.whole[name].shape
        ):
            raise UserError(
                f"the adapter in {directory} replaces {name}, which is quantized: give --quantization_bit 0."
            )
        if name in adapter.whole:
            parameter.data.copy_(adapter.whole[name])
        if name in adapter.rows:
            indices, values = adapter.rows[name]
            parameter.data[indices.to(parameter.device)] = values.to(parameter.data)
