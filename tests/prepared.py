"""Golden bases prepared by methods, and their options."""

import torch

from checkpoints.merging import write_whole
from checkpoints.record import make_record
from checkpoints.write import save_checkpoint
from export.official import write_official
from methods import METHODS
from modes import MODES
from modes.directory import fingerprint, read_base
from options.merge import MergeOptions
from tests.launch import GOLDEN

OPTIONS = {
    "freeze": {"freeze_module_name": ("layers.3.", "final_layernorm")},
    "ptuning": {"pre_seq_len": 5, "prefix_projection": True, "prefix_layers": "all"},
    "lora": {"lora_dim": 4, "lora_alpha": 16, "lora_dropout": 0.0, "lora_module_name": ("query_key_value", "dense")},
    "all": {},
}
# Every linear layer; the options of all LoRA variants.
LORA = {
    "lora_dim": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_module_name": ("all-linear",),
    "lora_variant": "lora",
    "loraplus_lr_ratio": 8.0,
    "adalora_target_r": 2,
    "modules_to_save": None,
}


def build(mode, method=None, **options):
    """A golden base in float32, prepared by a method."""
    torch.manual_seed(0)
    directory = GOLDEN / mode / "base"
    config = MODES[mode].config_class.from_pretrained(directory)
    if method:
        METHODS[method](**options).configure(config)
    model = MODES[mode].model_class.from_pretrained(directory, config=config, dtype=torch.float32).eval()
    return METHODS[method](**options).prepare(model) if method else model


def trained(model):
    """Name → trained parameter of a model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def checkpoint_of(mode, method, options, directory, noise=0.0):
    """A checkpoint of a freshly prepared model; of all parameters, a complete model directory.

    noise: standard deviation of what is added to every trained value.
    """
    base = read_base(GOLDEN / mode / "base")
    if method == "all":
        return base.path
    model = build(mode, method, **options)
    record = make_record(
        mode=mode, train_type=method, method=options, base_path=base.path, fingerprint=fingerprint(base),
        template=MODES[mode].template, options={}, precision="fp32",
    )  # fmt: skip
    tensors = [(name, value.detach() + noise * torch.randn(value.shape)) for name, value in trained(model).items()]
    save_checkpoint(directory, iter(tensors), lambda to, pairs: METHODS[method]().save(to, model, pairs), record, True)
    return directory


def write_merged(merge):
    """Write a merge in the official layout, as merge_lora.py does without --format."""
    return write_whole(merge, lambda directory: write_official(merge, directory, MergeOptions()))
