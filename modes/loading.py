"""Load the weights of a base, quantized to 8 or 4 bits if a flag requests it; LoRA or a prefix is trained on it.

--quantization_bit 8|4 quantizes a half-precision base while it is loaded, through bitsandbytes: LLM.int8()
(https://arxiv.org/abs/2208.07339), or NF4 (https://arxiv.org/abs/2305.14314) with --double_quantization as an option.
The official quantized releases need no flag and no bitsandbytes, see modes/quantization.py.
"""

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from errors import UserError
from modes.config import Config
from modes.directory import Base, iterate_shards, quantization_bit
from modes.linear import use_linear
from modes.mode import Mode
from modes.model import LanguageModel

KEPT = ["lm_head", "output_layer"]  # the output layer is not quantized: its errors would directly affect the logits
INSTALL = "pip install -c constraints.txt -e '.[quantization]'"


def check_quantization(base: Base, bits: int | None, double: bool) -> None:
    """Check that a base can be quantized, and that bitsandbytes is installed.

    Args:
        bits: --quantization_bit; None or 0 for none.
        double: --double_quantization.

    Raises:
        UserError: it cannot.
    """
    if double and bits != 4:
        raise UserError("--double_quantization needs --quantization_bit 4: give both or neither.")
    if bits:
        check_not_quantized(base, bits)
    if bits and not is_bitsandbytes_available():
        raise UserError(f"--quantization_bit {bits} needs bitsandbytes, which is not installed: {INSTALL}.")


def check_not_quantized(base: Base, bits: int) -> None:
    """Raise UserError if a base that --quantization_bit `bits` would quantize is an official quantized release."""
    if quantization_bit(base):
        raise UserError(
            f"{base.path} is quantized to {quantization_bit(base)} bits already: leave out --quantization_bit {bits}, "
            "or give the half-precision base."
        )


def load_base(
    mode: Mode,
    base: Base,
    config: Config,
    dtype: torch.dtype,
    bits: int | None = None,
    double: bool = False,
    device: torch.device | None = None,
) -> LanguageModel:
    """Load the whole base in `dtype`, with the linear layers of its blocks quantized to `bits` if given.

    Weight files are memory-mapped and tensors converted one at a time, so memory never holds a second copy of the
    model. On a CPU, weights that have that dtype in their file stay memory-mapped until they are changed.

    Args:
        device: of the model; None is the CPU, or with `bits` this rank's GPU, if there is one.
    """
    # without a device map weights stay memory-mapped on a CPU
    keywords: dict[str, Any] = {"device_map": {"": device}} if device and device.type != "cpu" else {}
    if bits:
        # LLM.int8() warns at every call about inputs that are not float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=double,
            llm_int8_skip_modules=KEPT,
        )
    source: Path | None = base.path
    if base.hf:  # another layout than our class has: transformers gets the tensors by official name
        source, keywords["state_dict"] = None, dict(chain.from_iterable(s.items() for _, s in iterate_shards(base)))
    model = mode.model_class.from_pretrained(source, config=config, dtype=dtype, **keywords)
    model.name_or_path = str(base.path)
    if bits == 4:
        stay_as_quantized(model)
    use_linear(model)
    return model


def stay_as_quantized(model: torch.nn.Module) -> None:
    """Keep bitsandbytes (0.50) from rewriting weights at the first evaluation on a CPU that has AVX512-BF16.

    It would permanently cast their scales to bf16, fail on layers whose width is not a multiple of 64, and use a
    layout without backward.
    """
    from bitsandbytes.nn import Linear4bit  # an optional dependency, installed if the model was quantized

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def gpus_have_bf16(devices: Iterable[int]) -> bool:
    """Whether all these GPUs, by number, support bf16; those before Ampere (V100, T4, RTX 20) only emulate it."""
    for device in devices:
        with torch.cuda.device(device):  # torch checks the current one
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return False
    return True
