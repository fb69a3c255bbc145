"""Run by test_resume.py on two ranks: what the ranks gather for a resume state, at each ZeRO stage.

torchrun --nproc_per_node 2 tests/invariance/state_ranks.py OUTPUT_DIR
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.memory import SHAPES, peaks
from checkpoints.state import MOMENTS, link_moments, local_part, state_tensors
from modes import MODES
from options.sections import OptimizerOptions
from parallel import ranks
from parallel.zero import build_partitioned
from training.ds_config import DeepSpeedSetup
from training.engine import start_engine

# (stage, is the optimizer offloaded), ZeRO-3 last: it changes torch's linear function for good
STAGES = [(1, False), (2, False), (2, True), (3, False), (3, True)]


def make_engine(stage: int, offload: bool, shapes: str):
    """A random model of which everything is trained, after one step."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10}
    zero |= {"offload_optimizer": {"device": "cpu"}} if offload else {}
    ds_config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
    }
    mode = MODES["glm2"]
    config = mode.config_class(**SHAPES[shapes]["glm2"])
    torch.manual_seed(0)
    model = mode.model_class(config)
    if stage == 3:
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        model = build_partitioned(mode.model_class, config, ds_config, [(Path("random"), tensors)])
    options = OptimizerOptions(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0)
    engine = start_engine(model, DeepSpeedSetup(ds_config, "fp32"), options, total_steps=1)
    torch.manual_seed(ranks.rank())
    ids = torch.randint(10, 400, (1, 40))
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    engine.step()
    link_moments(engine)
    return engine, model


def check_stage(stage: int, offload: bool, shapes: str) -> dict:
    """Values against DeepSpeed's own way to gather them; bytes that gathering took on this rank, at most."""
    _, model = make_engine(stage, offload, shapes)
    expected = {}
    for name, parameter in model.named_parameters():
        expected[f"fp32/{name}"] = safe_get_full_fp32_param(parameter).clone()
        for key in MOMENTS:
            expected[f"{key}/{name}"] = safe_get_full_optimizer_state(parameter, key).clone()
        if stage == 3:
            assert local_part(parameter, expected[f"fp32/{name}"]).numel() == parameter.ds_tensor.numel()

    names, same, values = [], True, 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, record_function("phase: state"):
        for name, tensor in state_tensors(model):
            names.append(name)
            values += tensor.numel()
            if ranks.is_main():
                same = same and tensor.device.type == "cpu" and torch.equal(tensor, expected[name])
    return {
        "stage": stage,
        "offload": offload,
        "names": names == list(expected),
        "same": same,
        "values": values,
        "all": sum(tensor.numel() for tensor in expected.values()),
        "largest_bytes": max(tensor.nbytes for tensor in expected.values()),
        "taken": peaks(profiler)["state"],
    }


def main(output_dir: Path, shapes: str = "small") -> None:
    """Writes rank-R.json: a dict for each stage."""
    ranks.start_ranks(timedelta(minutes=2))
    found = [check_stage(*stage, shapes) for stage in STAGES]
    (output_dir / f"rank-{ranks.rank()}.json").write_text(json.dumps(found, indent=1))
    ranks.stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
