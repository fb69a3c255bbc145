"""Fold a checkpoint of any method back into its base: a complete model directory in the official layout.

python merge_lora.py --ori_model_dir ChatGLM3-6B/ --model_dir output-glm3/epoch-2-step-700
python merge_lora.py --ori_model_dir ChatGLM-6B/ --model_dir output-glm/epoch-2-step-700 --output_dir chatglm-spo

Runs on the CPU, one tensor at a time, and holds at most one shard in memory.
"""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run_program
from options.merge import MERGE, parse_merge
from options.parser import refuse_early

if __name__ == "__main__":
    run_program(lambda: refuse_early(MERGE, lambda: parse_merge()[1]))  # before torch is loaded
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess
from checkpoints.merging import prepare_merge, write_merged
from shards import parse_size
from training.guards import explain_full_memory


def main(argv: Sequence[str] | None = None) -> None:
    """Merge the checkpoint of a command line."""
    options, problems = parse_merge(argv)
    if problems:
        raise UserError(*problems)
    output_dir, max_shard_bytes = Path(options.output), parse_size(options.max_shard_size)
    merge = prepare_merge(
        Path(options.ori_model_dir),
        Path(options.model_dir),
        output_dir,
        mode=options.mode,
        precision=options.precision,
        force=options.force,
    )
    for note in merge.notes:
        print(note, file=sys.stderr)
    size = write_merged(merge, max_shard_bytes)
    print(
        f"merged model: {output_dir} ({size / 1e9:.2f} GB of weights); ask it: "
        f"python predict.py --model_path {output_dir} --instruction ..."
    )


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    run_program(explain_full_memory(main, host="lower --max_shard_size, or end other programs"))
