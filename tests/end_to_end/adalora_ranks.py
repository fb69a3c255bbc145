"""Run by test_variants.py under torchrun: AdaLoRA on a tiny base; every rank tells the ranks of its own layers.

torchrun --nproc_per_node 2 tests/end_to_end/adalora_ranks.py OUTPUT_DIR
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from methods import adalora
from methods.lora import Lora
from options.sections import OptimizerOptions
from parallel import ranks
from tests.prepared import build
from training.ds_config import DeepSpeedSetup
from training.engine import start_engine

STEPS = 10
OPTIONS = {
    "lora_dim": 6,
    "lora_alpha": 12,
    "lora_dropout": 0.0,
    "lora_module_name": ("all-linear",),
    "lora_variant": "adalora",
    "adalora_target_r": 2,
}
CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}


def ranks_of_copies(model) -> dict[str, int]:
    """Layer -> values of E that are not zero in DeepSpeed's float32 copy; the model's own must be zero in the same."""
    found = {}
    for name, one in adalora.of_layers(model, "E"):
        copy = safe_get_full_fp32_param(one)
        assert torch.equal(copy != 0, one != 0), name
        found[name] = int((copy != 0).sum())
    return found


def main(output_dir: Path) -> None:
    """Ten steps, each rank on data of its own; writes rank-R.json: the layers' ranks after every step."""
    ranks.start_ranks(timedelta(minutes=2))
    model = build("glm2", "lora", **OPTIONS).train()
    options = OptimizerOptions(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0)
    engine = start_engine(model, DeepSpeedSetup(CONFIG, "fp32"), options, STEPS)
    hooks = Lora(**OPTIONS).hooks(engine, model, STEPS, ranks.world_size())
    torch.manual_seed(ranks.rank())
    seen = []
    for step in range(1, STEPS + 1):
        input_ids = torch.randint(100, 2000, (1, 40))
        loss = engine(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        engine.backward(loss + hooks.penalty(1), scale_wrt_gas=False)
        hooks.before_step(step)
        engine.step()
        hooks.after_step(step)
        seen.append(ranks_of_copies(model))
    (output_dir / f"rank-{ranks.rank()}.json").write_text(json.dumps(seen))
    ranks.stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
