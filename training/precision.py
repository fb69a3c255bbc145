"""Choose a run's precision from the GPU, --precision and the DeepSpeed file."""

from texts import quote


def settle_precision(
    config: dict, precision: str, device_type: str, bf16_supported: bool, notes: list[str], problems: list[str]
) -> str:
    """Choose the precision, and keep only its section in a DeepSpeed configuration, in place.

    Args:
        precision: --precision, "auto" or a choice.
        device_type, bf16_supported: see `training.ds_config.resolve`.
        notes, problems: sentences are added to them.

    Returns:
        "bf16", "fp16" or "fp32".
    """
    chosen = choose_precision(config, precision, device_type, bf16_supported, notes, problems)
    section = config.get(chosen, {})
    for key in ("fp16", "bf16"):
        config.pop(key, None)
    if chosen != "fp32":
        config[chosen] = {**section, "enabled": True}
    if chosen == "bf16" and section.get("check_grad_overflow", True) is not True:
        config["bf16"]["check_grad_overflow"] = True
        notes.append(
            f"--ds_file: bf16.check_grad_overflow {quote(section['check_grad_overflow'])} is overridden by true: a "
            "step with a NaN or Inf gradient is never applied."
        )
    return chosen


def choose_precision(
    config: dict, precision: str, device_type: str, bf16_supported: bool, notes: list[str], problems: list[str]
) -> str:
    """The precision, from --precision, what the file enables ("auto" is no choice), and the device."""
    enabled = []
    for key in ("bf16", "fp16"):
        switch = config.get(key, {}).get("enabled", False)
        if not isinstance(switch, bool) and switch != "auto":  # DeepSpeed would take 1 or "yes" for true
            problems.append(f"--ds_file: {key}.enabled {quote(switch)} must be true or false.")
        if switch is True:
            enabled.append(key)
    if len(enabled) == 2:
        problems.append("--ds_file enables both bf16 and fp16: remove one of them.")
    of_file = enabled[0] if enabled else None
    if precision != "auto":
        if of_file not in (None, precision):
            problems.append(
                f"--precision {precision} contradicts the --ds_file, which enables {of_file}: "
                f"leave out --precision, or disable {of_file} in the file."
            )
        if precision == "fp16" and device_type == "cpu":
            problems.append("--precision fp16 does not run on a CPU: use --precision fp32, or leave the flag out.")
        if precision == "bf16" and device_type == "cuda" and not bf16_supported:
            problems.append(
                "--precision bf16: this GPU only emulates bf16: use --precision fp16, or leave the flag out."
            )
        if precision == "bf16" and device_type == "cpu":
            notes.append("--precision bf16 on a CPU is about 12 times slower than fp32.")
        return precision
    if device_type == "cpu":
        if of_file:
            notes.append(f"--ds_file: {of_file} is overridden by fp32: there is no GPU.")
        return "fp32"
    if of_file == "bf16" and not bf16_supported:
        problems.append("--ds_file enables bf16, which this GPU only emulates: use fp16 in the file instead.")
    return of_file or ("bf16" if bf16_supported else "fp16")
