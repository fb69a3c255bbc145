"""memory/suggestions.py: the fastest configuration that fits."""

from dataclasses import replace

from memory.available import GIB, usable
from memory.estimate import estimate
from memory.setup import read_setup
from memory.suggestions import BUCKET, CHOICES, smaller_batches, suggest
from tests.shapes import SETUP, alike, model
from training.ds_config import find_ds_file, read_ds_file


def test_suggestions_are_the_cheapest_that_fit():
    parameters, sizes = model("glm3", "lora")
    setup = replace(SETUP, batch=alike(4), accumulation=2)
    batches = smaller_batches([1560] * 4, [512] * 4, 4)
    suggested = {gigabytes: suggest(parameters, sizes, setup, usable(gigabytes * GIB), batches=batches)
             for gigabytes in (80, 40, 24, 16, 1)}  # fmt: skip
    assert suggested[80].micro_batch_size == 4 and suggested[80].setup.accumulation == 2
    layers = {gigabytes: suggestion.setup.recomputed for gigabytes, suggestion in suggested.items()}
    assert layers[80] == 0 < layers[40] < layers[24] <= 28
    assert suggested[80].flags().startswith("--ds_file ds_zero2_no_offload.json --per_device_train_batch_size 4 ")
    assert (
        suggested[40]
        .flags()
        .startswith(
            f"--ds_file ds_zero2_no_offload.json --gradient_checkpointing --checkpoint_layers {layers[40]} --per_device"
        )
    )
    assert suggested[24].setup.stage == 2 and not suggested[24].setup.offload_optimizer
    for gigabytes, suggestion in suggested.items():
        assert suggestion.fits == (gigabytes > 1) == (suggestion.estimate.gpu_peak <= usable(gigabytes * GIB))
        assert suggestion.micro_batch_size * suggestion.setup.accumulation == 8
        assert suggestion.estimate == estimate(parameters, sizes, suggestion.setup)
        assert suggestion.estimate.gpu_peak >= suggested[1].estimate.gpu_peak

    full, sizes = model("glm3", "all")
    order = []
    for gigabytes in (141, 24, 16):
        suggested = suggest(full, sizes, replace(setup, ranks=8), usable(gigabytes * GIB), batches=batches)
        assert suggested.fits
        order.append((suggested.setup.offload_optimizer, -suggested.micro_batch_size, suggested.setup.stage))
    assert order == sorted(order) and order[0][0] < order[-1][0]


def test_choices_are_what_the_shipped_files_say():
    for ds_file, stage, optimizer, param in CHOICES:
        setup = read_setup(read_ds_file(find_ds_file(ds_file)), precision="bf16", ranks=2, batch=SETUP.batch)
        assert (setup.stage, setup.offload_optimizer, setup.offload_param) == (stage, optimizer, param)
        assert setup.reduce_bucket_size == BUCKET and setup.overlap_comm and setup.pin_memory in (optimizer, True)
