"""AdaLoRA: B E A, with ranks allocated to the most important layers (https://arxiv.org/abs/2303.10512).

Every layer starts with --lora_dim ranks. After a tenth of the run, the least important ranks of all layers are masked
(their value in the diagonal E is zero), until --adalora_target_r per layer remain on average. Then the mask is fixed.

peft's own update expects gradients in the parameters, and weights without a second copy. DeepSpeed (stage 1 and 2)
has neither, so `make_hooks` passes the gradients to peft and applies the mask to the float32 copies.
"""

import warnings
from collections.abc import Iterator

import peft
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_set_full_fp32_param

from methods.adapter import PREFIX
from methods.hooks import Hooks

ORTHOGONALITY = 0.5  # weight of |A A' - 1| + |B' B - 1|, averaged over all matrices, in a step; peft's default
FIRST, LAST = 0.1, 0.4  # fractions of the run before the first rank is masked, and after the last one
PATTERN = "rank_pattern"
EMAS = ("exp_avg_ipt", "exp_avg_unc")  # peft's running means of a weight's importance and its variation


def make_config(lora_dim: int, target_r: int, settings: dict) -> peft.AdaLoraConfig:
    """peft's configuration; `schedule_ranks` sets the number of steps later."""
    with warnings.catch_warnings(action="ignore"):
        return peft.AdaLoraConfig(init_r=lora_dim, target_r=target_r, total_step=1, orth_reg_weight=0.0, **settings)


def freeze_scales(model) -> None:
    """Freeze the divisor of the update: peft 0.21 trains it unless the base is float32 on the CPU."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def schedule_ranks(model, total_steps: int) -> None:
    """Set peft's schedule of masking."""
    config = model.peft_config["default"]
    config.total_step = total_steps
    config.tinit, config.tfinal = int(FIRST * total_steps), int(LAST * total_steps)
    config.deltaT = max(1, total_steps // 100)


def of_layers(model, part: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of every lora_A, lora_B or lora_E, without the adapter's name."""
    for name, parameter in model.named_parameters():
        if f".lora_{part}.default" in name:
            yield name.replace(".default", ""), parameter


def without_zero_ranks(adapters: dict[str, torch.Tensor], masked: bool) -> tuple[dict, dict | None]:
    """(a checkpoint's tensors without masked ranks, peft's rank_pattern: layer -> whether each rank is kept).

    Args:
        masked: whether any rank was masked yet; before that, zeros are only untrained values.
    """
    if not masked:
        return adapters, None
    kept = {
        name.removesuffix("E"): (diagonal != 0).flatten()
        for name, diagonal in adapters.items()
        if name.endswith(".lora_E")
    }
    smaller = {}
    for name, tensor in adapters.items():
        rows = kept[name[:-1]]
        smaller[name] = tensor[:, rows] if name.endswith("B") else tensor[rows]
    return smaller, {f"{name.removeprefix(PREFIX)}E": rows.tolist() for name, rows in kept.items()}


def orthogonality(model) -> torch.Tensor:
    """Mean deviation of the rows of every A and the columns of every B from orthonormality (Frobenius norm)."""
    distances = []
    for part in ("A", "B"):
        for _, matrix in of_layers(model, part):
            rows = matrix.float() if part == "A" else matrix.float().T  # [r, in] or [r, out]
            distances.append(torch.linalg.norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
    return torch.stack(distances).mean()


def make_hooks(engine, model, total_steps: int, world_size: int) -> Hooks:
    """Rank allocation around the loop's steps. The same on every process: all have the whole weights and gradients."""
    schedule_ranks(model, total_steps)
    config, allocator = model.peft_config["default"], model.base_model.rankallocator
    parameters = {name: parameter for name, parameter in model.get_base_model().named_parameters() if ".lora_" in name}
    gradients: dict[str, torch.Tensor] = {}

    def penalty(micro_batches: int) -> torch.Tensor:
        return ORTHOGONALITY / (micro_batches * world_size) * orthogonality(model)

    def before_step(step: int) -> None:
        if step < config.total_step - config.tfinal:  # until the mask is final, importance is updated
            scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
            gradients.update({name: safe_get_full_grad(parameter) / scale for name, parameter in parameters.items()})

    def after_step(step: int) -> None:
        values = {name: parameter.detach().clone() for name, parameter in parameters.items() if ".lora_E." in name}
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.to(parameters[name].dtype)
        model.base_model.update_and_allocate(step)
        for name in gradients:
            parameters[name].grad = None
        gradients.clear()
        for name, before in values.items():
            now = parameters[name]
            if not torch.equal(now, before):  # the next step uses the float32 copy
                safe_set_full_fp32_param(now, safe_get_full_fp32_param(now).masked_fill(now == 0, 0.0))

    def state() -> Iterator[tuple[str, torch.Tensor]]:
        for ema in EMAS:
            for name, mean in vars(allocator)[ema].items():
                yield f"{ema}/{name}", mean.to("cpu", copy=True)
        for name, kept in (config.rank_pattern or {}).items():
            yield f"{PATTERN}/{name}", torch.tensor(kept)

    def load_state(tensors: dict[str, torch.Tensor]) -> None:
        pattern = {}
        for key, tensor in tensors.items():
            kind, name = key.split("/")
            if kind == PATTERN:
                pattern[name] = tensor.tolist()
            else:
                allocator.ipt[name] = torch.zeros_like(parameters[name])
                vars(allocator)[kind][name] = tensor.to(parameters[name].device)
        config.rank_pattern = pattern or None

    return Hooks(penalty, before_step, after_step, state, load_state)
