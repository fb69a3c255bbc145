"""A base in fewer bits, to save memory: it is frozen, and LoRA or a prefix is trained on it.

--quantization_bit 8|4 rounds a half-precision base while it is loaded, through bitsandbytes: LLM.int8()
(https://arxiv.org/abs/2208.07339), or NF4 (https://arxiv.org/abs/2305.14314) with --double_quantization as an option.
The official ready-quantised releases need no flag and no bitsandbytes, see modes/quantization.py.
"""

import logging

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from errors import UserError
from modes import Mode
from modes.directory import Base, quantization_bit

BITS = (8, 4)
TRAINABLE = ("lora", "ptuning")  # the methods that leave the base as it is
KEPT = ["lm_head", "output_layer"]  # the output layer is not rounded: its errors would go straight into the logits
INSTALL = "pip install -c constraints.txt -e '.[quantization]'"


def check_quantization(base: Base, bits: int | None, double: bool, *, train_type: str, stage: int = 0) -> None:
    """Refuse what cannot be trained on a rounded base, and a library that is missing.

    Args:
        bits: --quantization_bit; None or 0 for none.
        double: --double_quantization.
        stage: of ZeRO.

    Raises:
        UserError: in one sentence.
    """
    of_base = quantization_bit(base)
    if double and bits != 4:
        raise UserError("--double_quantization needs --quantization_bit 4: give both or neither.")
    if not bits and not of_base:
        return
    what = f"--quantization_bit {bits}" if bits else f"{base.path} (quantization_bit {of_base})"
    if bits and of_base:
        raise UserError(
            f"{base.path} is rounded to {of_base} bits already: leave out {what}, or give the half-precision base."
        )
    if train_type not in TRAINABLE:
        raise UserError(
            f"--train_type {train_type} would train rounded weights ({what}): use --train_type "
            f"{' or '.join(TRAINABLE)}."
        )
    if stage == 3:
        raise UserError(
            f"{what} does not work under ZeRO-3, which cuts weights into pieces: use --ds_file "
            "ds_zero2_no_offload.json."
        )
    if bits and not is_bitsandbytes_available():
        raise UserError(f"{what} needs bitsandbytes, which is not installed: {INSTALL}.")


def load_base(mode: Mode, base: Base, config, dtype: torch.dtype, bits: int | None = None, double: bool = False):
    """The base's model in `dtype`, its blocks' linear layers in `bits` where that is asked; whole, on this rank.

    What bitsandbytes rounds lies on this rank's GPU (where there is one), everything else on the CPU.
    """
    keywords = {}
    if bits:
        # LLM.int8() says at every call that it takes other floats than float16 too
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=double,
            llm_int8_skip_modules=KEPT,
        )
    return mode.model_class.from_pretrained(base.path, config=config, dtype=dtype, **keywords)
