"""DeepSpeed files, completed by flags of two samples, three micro-batches and four ranks on a CPU."""

from training.ds_config import resolve

GPU = {"device_type": "cuda", "bf16_supported": True}
OLD_GPU = {"device_type": "cuda", "bf16_supported": False}


def resolved(file_config, **changed):
    arguments = {
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "world_size": 4,
        "precision": "auto",
        "explicit": frozenset(),
        "max_grad_norm": 1.0,
        "device_type": "cpu",
        "bf16_supported": False,
    }
    return resolve(file_config, **(arguments | changed))
