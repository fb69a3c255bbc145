"""Fold a checkpoint of any method back into its base: a complete model directory in the official layout.

python merge_lora.py --ori_model_dir ChatGLM3-6B/ --model_dir output-glm3/epoch-2-step-700
python merge_lora.py --ori_model_dir ChatGLM-6B/ --model_dir output-glm/epoch-2-step-700 --output_dir chatglm-spo

Works on a CPU, one tensor at a time: memory for one shard is enough.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # no guess to report
from checkpoints.merging import prepare_merge, write_merged
from errors import run
from modes import MODES
from shards import parse_size
from training.engine import DTYPES
from training.guards import explain_full_memory
from training.options import OptionsParser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OptionsParser(prog="merge_lora.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--ori_model_dir", required=True, help="the base that the checkpoint was trained on")
    parser.add_argument("--model_dir", required=True, help="the checkpoint, or a peft LoRA adapter directory")
    parser.add_argument("--mode", choices=list(MODES), help="generation of the base, where its files do not tell it")
    parser.add_argument("--output_dir", help="where to write; default: MODEL_DIR-merged")
    parser.add_argument("--max_shard_size", default="2GB", help="the largest weight file, such as 2GB or 500MB")
    parser.add_argument(
        "--precision",
        choices=["auto", *DTYPES],
        default="auto",
        help="of the merged weights; auto: what the checkpoint was trained in, so that merging loses nothing "
        "(a peft adapter from elsewhere: what the base is in)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="merge although the base's fingerprint is not the one that the checkpoint was trained on",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and merge."""
    options = build_parser().parse_args(argv)
    model_dir = Path(options.model_dir)
    output_dir = Path(options.output_dir or f"{str(model_dir).rstrip('/')}-merged")
    max_shard_bytes = parse_size(options.max_shard_size)
    merge = prepare_merge(
        Path(options.ori_model_dir),
        model_dir,
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
    helps = "lower --max_shard_size, or end other programs"
    run(explain_full_memory(main, host=helps))
