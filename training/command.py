"""The command line of a run, checked as far as one rank can by itself: before ranks meet and before weights load."""

from errors import UserError
from modes.directory import read_base
from training import launch
from training.caches import use_writable_caches
from training.ds_config import resolve_for_run
from training.method_flags import check_method_flags
from training.options import parse_options, validate
from training.quantization import check_quantization, check_training


def read_command(argv: list[str] | None) -> tuple:
    """(options, base, DeepSpeed configuration, precision, notes to print).

    Raises:
        UserError: what is wrong with them.
    """
    cache_notes = use_writable_caches()
    options = parse_options(argv)
    option_notes = validate(options, launch.rank())
    base = read_base(options.model_name_or_path, options.mode if "mode" in options.explicit else None)
    if base.mode != options.mode:  # the default
        raise UserError(f"{base.path} holds a {base.mode} model, not {options.mode}: use --mode {base.mode}.")
    check_quantization(base, options.quantization_bit, options.double_quantization)
    ds_config, precision, ds_notes = resolve_for_run(options, base.config["hidden_size"])
    stage = ds_config["zero_optimization"]["stage"]
    check_training(
        base,
        options.quantization_bit,
        train_type=options.train_type,
        stage=stage,
        lora_variant=options.lora_variant,
        modules_to_save=options.modules_to_save,
    )
    check_method_flags(options, stage)
    notes = [*cache_notes, *option_notes, *([base.note] if base.note else []), *ds_notes]
    return options, base, ds_config, precision, notes
