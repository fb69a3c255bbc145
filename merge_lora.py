"""Fold a checkpoint of any method back into its base, or convert a base: a complete model in one of several formats.

python merge_lora.py --ori_model_dir ChatGLM3-6B/ --model_dir output-glm3/epoch-2-step-700
python merge_lora.py --ori_model_dir ChatGLM-6B/ --model_dir output-glm/epoch-2-step-700 --output_dir chatglm-spo
python merge_lora.py --ori_model_dir ChatGLM3-6B/ --model_dir output-glm3/epoch-2-step-700 --format hf
python merge_lora.py --ori_model_dir ChatGLM3-6B/ --format gguf --quantize q8_0

Runs on the CPU, one tensor at a time, and holds at most one shard in memory.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, end_on_interrupt, run_program
from options.merge import MERGE, parse_merge
from options.parser import refuse_early

if __name__ == "__main__":
    run_program(lambda: refuse_early(MERGE, lambda: parse_merge()[1]))  # before torch is loaded
    end_on_interrupt()
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

import torch
import transformers

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess
from checkpoints.merging import prepare_merge, write_whole
from export.formats import FORMATS
from export.verify import is_small
from shards import parse_size
from training.guards import explain_full_memory


def main(argv: Sequence[str] | None = None) -> None:
    """Merge the checkpoint of a command line."""
    options, problems = parse_merge(argv)
    if problems:
        raise UserError(*problems)
    parse_size(options.max_shard_size)
    output_dir = Path(options.output)
    merge = prepare_merge(
        Path(options.ori_model_dir),
        Path(options.model_dir) if options.model_dir else None,
        output_dir,
        mode=options.mode,
        precision=options.merged_precision,
        force=options.force,
    )
    form = FORMATS["adapter" if options.adapter_only else options.format]
    form.check(merge, options)
    for note in merge.notes:
        print(note, file=sys.stderr)
    started = time.perf_counter()
    size = write_whole(merge, lambda directory: form.write(merge, directory, options), options.export)
    seconds = time.perf_counter() - started
    print(f"{form.content}: {output_dir} ({size / 1e9:.2f} GB of weights, {seconds:.0f} s)")
    if options.verify or (options.verify is None and is_small(merge)):
        transformers.utils.logging.disable_progress_bar()
        print(form.verify(merge, options))
    print(f"use it: {form.use.format(directory=output_dir)}")


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    run_program(explain_full_memory(main, host="lower --max_shard_size, or end other programs"))
