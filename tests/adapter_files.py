"""Files of adapters, and the names that peft and its wrappers give to their tensors."""

import re

NAME, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def without_prefix(name):
    return name.removeprefix("base_model.model.")


def with_adapter_name(name, adapter="default"):
    name = re.sub(r"(\.lora_[AB])\.", rf"\1.{adapter}.", name)
    name = re.sub(r"(lora_(magnitude_vector|embedding_[AB])|trainable_tokens_delta)$", rf"\1.{adapter}", name)
    return name.replace("final_layernorm.", f"final_layernorm.modules_to_save.{adapter}.")


def compiled(name):
    return name.replace("base_model.model.", "base_model.model._orig_mod.")


def compiled_layers(name):
    return re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name)


NAMES = {
    "without prefix": without_prefix,
    "with the adapter's name": with_adapter_name,
    "with another adapter's name": lambda name: with_adapter_name(name, "my-adapter"),
    "without prefix, with the adapter's name": lambda name: without_prefix(with_adapter_name(name)),
    "compiled": compiled,
    "compiled, outermost": lambda name: f"_orig_mod.{name}",
    "compiled layers": compiled_layers,
    "compiled layers without prefix, with the adapter's name": lambda name: compiled_layers(
        without_prefix(with_adapter_name(name))
    ),
    "data parallel": lambda name: f"module.{name}",
    "sharded": lambda name: name.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
    "recomputed": lambda name: re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", name),
    "prefix twice": lambda name: f"base_model.model.{name}",
    "magnitudes as a module": lambda name: re.sub("magnitude_vector$", "magnitude_vector.weight", name),
}
