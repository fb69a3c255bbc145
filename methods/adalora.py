"""AdaLoRA: B E A, whose ranks go to the layers where they matter (https://arxiv.org/abs/2303.10512).

Every layer starts with --lora_dim ranks. From a tenth of the run on, the least important ones of all layers are masked
(their value in the diagonal E is zero), until --adalora_target_r a layer are left on average; the pattern then stays.

peft's own update expects gradients beside the parameters and weights that no one keeps a second copy of. DeepSpeed
(stage 1 and 2) has neither, so `make_hooks` lends the gradients to peft and carries the mask into the float32 copies.
"""

import warnings
from collections.abc import Iterator

import peft
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_set_full_fp32_param

from methods.adapter import PREFIX
from methods.hooks import Hooks

ORTHOGONALITY = 0.5  # weight of |A A' - 1| + |B' B - 1|, averaged over all matrices, in a step; peft's default
FIRST, LAST = 0.1, 0.4  # shares of the run before the first rank goes, and after the last one went
PATTERN = "rank_pattern"
EMAS = ("exp_avg_ipt", "exp_avg_unc")  # peft's running means of a weight's importance, and of how much it varies


def make_config(lora_dim: int, target_r: int, settings: dict) -> peft.AdaLoraConfig:
    """peft's configuration; how many steps there are, `schedule_ranks` sets later."""
    with warnings.catch_warnings(action="ignore"):
        return peft.AdaLoraConfig(init_r=lora_dim, target_r=target_r, total_step=1, orth_reg_weight=0.0, **settings)


def freeze_scales(model) -> None:
    """Leave the divisor of the update as it is: peft 0.21 trains it where the base is not float32 on the CPU."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def schedule_ranks(model, total_steps: int) -> None:
    """Tell peft when ranks go."""
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
    """A checkpoint's tensors without the ranks whose value in E is zero, and peft's rank_pattern: layer -> kept or not.

    Args:
        masked: whether any rank was masked yet; before that, zeros are only values that have not been learnt.
    """
    if not masked:
        return adapters, None
    kept = {name.removesuffix("E"): (one != 0).flatten() for name, one in adapters.items() if name.endswith(".lora_E")}
    smaller = {}
    for name, tensor in adapters.items():
        rows = kept[name[:-1]]
        smaller[name] = tensor[:, rows] if name.endswith("B") else tensor[rows]
    return smaller, {f"{name.removeprefix(PREFIX)}E": rows.tolist() for name, rows in kept.items()}


def orthogonality(model) -> torch.Tensor:
    """How far the rows of every A and the columns of every B are from orthonormal, on average (Frobenius norm)."""
    distances = []
    for part in ("A", "B"):
        for _, matrix in of_layers(model, part):
            rows = matrix.float() if part == "A" else matrix.float().T  # [r, in] or [r, out]
            distances.append(torch.linalg.norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
    return torch.stack(distances).mean()


def make_hooks(engine, model, total_steps: int, world_size: int) -> Hooks:
    """Rank allocation around the loop's steps. The same on every rank: all see the whole weights and gradients."""
    schedule_ranks(model, total_steps)
    config, allocator = model.peft_config["default"], model.base_model.rankallocator
    parameters = {name: one for name, one in model.get_base_model().named_parameters() if ".lora_" in name}
    gradients: dict[str, torch.Tensor] = {}

    def penalty(micro_batches: int) -> torch.Tensor:
        return ORTHOGONALITY / (micro_batches * world_size) * orthogonality(model)

    def before_step(step: int) -> None:
        if step < config.total_step - config.tfinal:  # the pattern is not final, importance still counts
            scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
            gradients.update({name: safe_get_full_grad(one) / scale for name, one in parameters.items()})

    def after_step(step: int) -> None:
        values = {name: one.detach().clone() for name, one in parameters.items() if ".lora_E." in name}
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.to(parameters[name].dtype)
        model.base_model.update_and_allocate(step)
        for name in gradients:
            parameters[name].grad = None
        gradients.clear()
        for name, before in values.items():
            now = parameters[name]
            if not torch.equal(now, before):  # the next step starts from the float32 copy
                safe_set_full_fp32_param(now, safe_get_full_fp32_param(now).masked_fill(now == 0, 0.0))

    def state() -> Iterator[tuple[str, torch.Tensor]]:
        for ema in EMAS:
            for name, one in vars(allocator)[ema].items():
                yield f"{ema}/{name}", one.to("cpu", copy=True)
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
