"""Fold a checkpoint of any method back into its base: a complete model directory in the official layout.

python merge_lora.py --ori_model_dir ChatGLM3-6B/ --model_dir output-glm3/epoch-2-step-700
python merge_lora.py --ori_model_dir ChatGLM-6B/ --model_dir output-glm/epoch-2-step-700 --output_dir chatglm-spo

Works on a CPU, one tensor at a time: memory for one shard is enough.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from errors import UserError, run
from methods import METHODS, lora
from modes import MODES
from modes.directory import Base, check_mode, fingerprint, iterate_shards, read_base, side_files
from shards import parse_size, write_shards
from training.checkpoint import MERGED_FILE, check_files, copy_beside, read_record, write_json, written_whole
from training.engine import DTYPES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--ori_model_dir", required=True, help="the base that the checkpoint was trained on")
    parser.add_argument("--model_dir", required=True, help="the checkpoint, or a peft LoRA adapter directory")
    parser.add_argument("--mode", choices=list(MODES), help="only checked: the generation is read from the base")
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


def read_method(model_dir: Path) -> tuple[str, dict, dict | None]:
    """(train_type, the method's options, the record) of a checkpoint or of a peft adapter directory."""
    if not model_dir.is_dir():
        raise UserError(f"--model_dir {model_dir} is not a directory: give the directory of a checkpoint.")
    record = read_record(model_dir)
    if record is None:
        if not (model_dir / lora.CONFIG_FILE).is_file():
            raise UserError(
                f"--model_dir {model_dir} holds neither checkpoint.json nor {lora.CONFIG_FILE}: give the directory "
                "of a checkpoint, such as output-glm/epoch-1-step-100."
            )
        return "lora", {}, None
    check_files(model_dir, record)
    if record["train_type"] not in METHODS:
        raise UserError(f"{model_dir} was trained with the unknown method {record['train_type']!r}.")
    return record["train_type"], record["method"], record


def check_base(base: Base, record: dict | None, force: bool) -> None:
    """Refuse a base that is not the one trained on."""
    if record is None:
        return
    if record["mode"] != base.mode:
        raise UserError(f"the checkpoint was trained on a {record['mode']} base, {base.path} is {base.mode}.")
    if not force and fingerprint(base) != record["base"].get("fingerprint"):
        raise UserError(
            f"{base.path} does not hold the weights that the checkpoint was trained on "
            f"({record['base'].get('path')}): give that base, or --force to merge all the same."
        )


def check_output(output_dir: Path, model_dir: Path, base_dir: Path) -> None:
    """Refuse to write into the checkpoint, the base, or anything that is already there."""
    for what, directory in (("--model_dir", model_dir), ("--ori_model_dir", base_dir)):
        if output_dir.resolve() == directory.resolve() or directory.resolve() in output_dir.resolve().parents:
            raise UserError(f"--output_dir {output_dir} lies in {what}: choose a directory of its own.")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"--output_dir {output_dir} is there already: remove it or choose another.")


def merged_tensors(base: Base, fold, tied: dict[str, str], dtype: torch.dtype | None):
    """Yield every (name, tensor) of the merged model, in the base's order and dtype (or `dtype`).

    Raises:
        UserError: a tensor that the checkpoint changes is not in the base.
    """
    unused = set(fold.names)
    for _, tensors in iterate_shards(base):
        for name, tensor in tqdm(tensors.items(), desc="merging", unit="tensor", leave=False, disable=None):
            if name.endswith("inv_freq"):  # a table that the official code computes anew, kept as it is
                yield name, tensor
                continue
            source = tied.get(name, name)
            unused.discard(source)
            yield name, fold.change(source, tensor).to(dtype or tensor.dtype)
    if unused:
        raise UserError(
            f"the base has no {sorted(unused)[0]}, which the checkpoint changes: give the base it was trained on."
        )
    for name, tensor in fold.added.items():
        yield name, tensor.to(dtype or tensor.dtype)


def merge(
    ori_model_dir: Path,
    model_dir: Path,
    output_dir: Path,
    *,
    mode: str | None = None,
    precision: str = "auto",
    max_shard_bytes: int = 2 * 10**9,
    force: bool = False,
) -> int:
    """Write the merged directory; returns the bytes of its weights.

    Raises:
        UserError: the inputs do not fit together, or the output would overwrite something.
    """
    base = read_base(ori_model_dir)
    if mode is not None:
        check_mode(base, mode)
    train_type, method_options, record = read_method(model_dir)
    check_output(output_dir, model_dir, base.path)
    check_base(base, record, force)
    fold = METHODS[train_type].fold(model_dir, **method_options)
    if precision == "auto" and record is not None:
        precision = record["precision"]
    dtype = DTYPES.get(precision)
    tied = MODES[base.mode].model_class._tied_weights_keys or {}
    changes = dict(fold.config)
    if dtype is not None:
        changes["torch_dtype"] = str(dtype).removeprefix("torch.")
    with written_whole(output_dir) as temporary:
        size = write_shards(merged_tensors(base, fold, tied, dtype), temporary, "model", max_shard_bytes)
        copy_beside(side_files(base), temporary, changes)
        if record is not None:
            write_json(temporary / MERGED_FILE, {key: value for key, value in record.items() if key != "files"})
    return size


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and merge."""
    options = build_parser().parse_args(argv)
    model_dir = Path(options.model_dir)
    output_dir = Path(options.output_dir or f"{str(model_dir).rstrip('/')}-merged")
    size = merge(
        Path(options.ori_model_dir),
        model_dir,
        output_dir,
        mode=options.mode,
        precision=options.precision,
        max_shard_bytes=parse_size(options.max_shard_size),
        force=options.force,
    )
    print(
        f"merged model: {output_dir} ({size / 1e9:.2f} GB of weights); ask it: "
        f"python predict.py --model_path {output_dir} --instruction ..."
    )


if __name__ == "__main__":
    run(main)
