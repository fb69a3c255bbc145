"""train.py in fp16 on CPU ranks, for tests: torch computes fp16 on a CPU, slowly, and DeepSpeed is made to accept it.

python tests/end_to_end/fp16_on_cpu.py --precision fp16 FLAGS
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from deepspeed.accelerator import get_accelerator

import train
from errors import run_program
from options.train import TrainOptions
from training import check

resolve_for_run = check.resolve_for_run


def resolve_as_on_gpu(options: TrainOptions, hidden_size: int | None) -> tuple:
    """The DeepSpeed configuration of a run on a GPU, which --gpu_memory makes of it."""
    return resolve_for_run(replace(options, safety=replace(options.safety, gpu_memory=24)), hidden_size)


def support() -> bool:
    """Whether fp16 may be used."""
    return True


if __name__ == "__main__":
    get_accelerator().is_fp16_supported = support
    check.resolve_for_run = resolve_as_on_gpu
    run_program(train.main)
