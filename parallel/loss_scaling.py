"""The loss scale of fp16: DeepSpeed's scaler, its smallest scale, and its state in resume states."""

# Attributes of a dynamic scaler that change.
DYNAMIC = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def stay_at_smallest_scale(engine) -> None:
    """Skip a step that overflows at the smallest scale, where DeepSpeed would raise a bare exception.

    The loop detects with `can_lower_scale` that such a step is not finite at any scale.
    """
    if has_dynamic_scale(engine):
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False


def has_dynamic_scale(engine) -> bool:
    """Whether the loss scale is dynamic (fp16 with `loss_scale` 0, the default)."""
    return engine.fp16_enabled() and engine.optimizer.loss_scaler.dynamic


def can_lower_scale(engine) -> bool:
    """Whether a gradient that overflows in the next step may be finite at a smaller scale."""
    if not has_dynamic_scale(engine):
        return False
    scaler = engine.optimizer.loss_scaler
    waits = scaler.delayed_shift > 1 and scaler.cur_hysteresis > 1  # this overflow would not lower the scale yet
    return scaler.cur_scale > scaler.min_scale or waits


def scaler_state(engine) -> dict[str, float]:
    """The state for `load_scaler_state`; empty if the scale is fixed, or the loss is not scaled."""
    return {name: vars(engine.optimizer.loss_scaler)[name] for name in DYNAMIC} if has_dynamic_scale(engine) else {}


def load_scaler_state(engine, state: dict[str, float]) -> None:
    """Resume with the scale of a resume state, unless the DeepSpeed file fixes one."""
    if has_dynamic_scale(engine):
        vars(engine.optimizer.loss_scaler).update(state)
