"""Freeze: train the parameters that --freeze_module_name lists, or the last --freeze_last_n layers; freeze the rest.

(The 2023 documentation said that the flag lists the frozen parameters, but its code trained them, and so does this.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from errors import UserError
from flags import flag
from methods.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Freeze(Method):
    """The trained parameters: substrings of names, or a number of layers."""

    TITLE: ClassVar[str] = "freeze"
    stem: ClassVar[str] = "trained"

    freeze_module_name: tuple[str, ...] = flag(
        ("layers.27.",),
        help="Substrings of the names of parameters to train, separated by commas; the rest is frozen.",
        zh="要训练的参数名片段，用逗号分隔；其余全部冻结。",
        elsewhere="freeze_trainable_modules name_module_trainable trainable_modules",
    )
    freeze_last_n: int | None = flag(
        None,
        help="Number of last layers to train, instead of --freeze_module_name.",
        zh="训练最后多少层，取代 --freeze_module_name。",
        at_least=1,
        excludes="freeze_module_name",
        elsewhere="freeze_trainable_layers num_layer_trainable num_trainable_layers",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError for a name that matches no parameter, or more layers than the model has."""
        if self.freeze_last_n is not None:
            if self.freeze_last_n > len(model.blocks):
                raise UserError(
                    f"--freeze_last_n {self.freeze_last_n}: this model has {len(model.blocks)} layers, give fewer."
                )
            return
        names = [name for name, _ in model.named_parameters()] + list(model._tied_weights_keys or {})
        unmatched = [part for part in self.freeze_module_name if not any(part in name for name in names)]
        if unmatched:
            outside = sorted({name.rsplit(".", 1)[0] for name in names if ".layers." not in name})
            raise UserError(
                f"--freeze_module_name {','.join(unmatched)} matches no parameter of this model: choose from layers.0. "
                f"to layers.{len(model.blocks) - 1}. and {', '.join(outside)}."
            )

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Train only the parameters whose names contain one of the substrings, or the last layers."""
        parts = self.freeze_module_name
        if self.freeze_last_n is not None:
            count = len(model.blocks)
            parts = tuple(f"layers.{i}." for i in range(count - self.freeze_last_n, count))
        # ChatGLM-6B's head is its embedding
        also = {source: target for target, source in (model._tied_weights_keys or {}).items()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name or part in also.get(name, "") for part in parts))
        return model
