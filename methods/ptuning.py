"""P-Tuning: train a prefix, freeze the model.

--prefix_layers all        pre_seq_len key/value pairs in every layer, as the official ptuning code (P-Tuning v2,
                           https://arxiv.org/abs/2110.07602); --prefix_projection computes them by an MLP
--prefix_layers embedding  pre_seq_len vectors before the word embeddings only (https://arxiv.org/abs/2103.10385)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from errors import UserError
from flags import flag
from methods.method import Method

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from methods.start import StartValues
    from methods.tensors import Fold, SavedTensors
    from parameters import Parameter


@dataclass(frozen=True)
class PTuning(Method):
    """Length, encoder and position of the prefix."""

    TITLE: ClassVar[str] = "ptuning"
    stem: ClassVar[str] = "prefix_encoder"

    pre_seq_len: int = flag(
        16,
        help="Length of the trainable prefix in tokens.",
        zh="可训练前缀的长度（token 数）。",
        at_least=1,
        elsewhere="num_virtual_tokens prefix_len prefix_length prompt_length",
    )
    prefix_projection: bool = flag(
        True,
        help="Compute the prefix by an MLP; without it the prefix itself is trained, in the same layers.",
        zh="前缀由 MLP 生成；False 时直接训练前缀，仍在每一层。",
    )
    prefix_layers: str = flag(
        "all",
        help="all: keys and values in every layer; embedding: vectors before the embeddings only.",
        zh="all：每层的键和值；embedding：只在词嵌入前面的向量。",
        choices=("all", "embedding"),
    )

    def quantized_conflicts(self, quantizer: str) -> list[str]:
        """The base is frozen, so there is no conflict."""
        return []

    def start_conflict(self) -> str:
        """It can start from any prefix of its shape."""
        return ""

    def configure(self, config: PretrainedConfig) -> None:
        """Configure the model's prefix encoder.

        Raises:
            UserError: an invalid length or position.
        """
        if self.pre_seq_len < 1:
            raise UserError(f"pre_seq_len is {self.pre_seq_len}: use a length of 1 or more.")
        if self.prefix_layers not in ("all", "embedding"):
            raise UserError(f'prefix_layers is {self.prefix_layers!r}: use "all" or "embedding".')
        config.pre_seq_len = self.pre_seq_len
        config.prefix_projection = self.prefix_projection
        config.prefix_layers = self.prefix_layers

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Train the prefix encoder, freshly initialized from the current seed."""
        from methods.tensors import in_whole

        prefix = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("prefix_encoder." in name)
            if parameter.requires_grad:
                prefix.append(parameter)
        # under ZeRO-3 parameters are partitioned: every rank draws the same values, rank 0's are kept
        with in_whole(prefix):
            model.init_prefix()
        return model

    def read_start(
        self, directory: Path, parameters: list[Parameter], model_class: type, config: object
    ) -> StartValues:
        """Read a prefix of this length and position."""
        from methods.start import read_prefix

        return read_prefix(
            directory, parameters, pre_seq_len=self.pre_seq_len, prefix_projection=self.prefix_projection
        )

    def fits(self, model: PreTrainedModel, saved: SavedTensors) -> None:
        """Raise UserError unless the tensors match the model, which is on the meta device, and are complete."""
        super().fits(model, saved)
        prefix = [name for name, _ in model.named_parameters() if "prefix_encoder." in name]
        missing = [name for name in prefix if name not in saved.files]
        if missing:
            raise UserError(
                f"{saved.directory} holds no {missing[0]}, which the method in its record requires: use another "
                "checkpoint."
            )

    def fold(self, saved: SavedTensors) -> Fold:
        """The base stays unchanged; the prefix is added, and its length to config.json, as in the official code."""
        from methods.tensors import Fold, unchanged

        return Fold(change=unchanged, names=frozenset(), added=dict(saved.items()), config=self.record())
