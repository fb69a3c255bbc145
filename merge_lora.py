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
from tqdm import tqdm

from checkpoints.record import MERGED_FILE, RECORD_FILE, check_files, make_record, read_record
from checkpoints.write import copy_beside
from errors import UserError, run
from files import whole_directory, write_json, write_problem
from methods import LATER_OPTIONS, METHODS, OPTION_TYPES, lora
from methods.tensors import Fold
from modes import MODES
from modes.directory import Base, fingerprint, iterate_shards, quantization_bit, read_base, side_files
from shards import parse_size, write_shards
from training.engine import DTYPES
from training.guards import explain_full_memory
from training.options import OptionsParser
from training.quantization import BITS


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
    check_method(model_dir / RECORD_FILE, record)
    record = with_later_options(record)
    check_record(model_dir / RECORD_FILE, record)
    check_files(model_dir, record)
    return record["train_type"], record["method"], record


def with_later_options(record: dict) -> dict:
    """The record with the options of its method that were not there when it was written."""
    known = METHODS[record["train_type"]].OPTIONS
    later = {name: value for name, value in LATER_OPTIONS.items() if name in known}
    return {**record, "method": {**later, **record["method"]}}


def check_method(path: Path, record: dict) -> None:
    """Refuse a record of a method that this toolkit does not have."""
    if record["train_type"] not in METHODS:
        raise UserError(
            f"{path} names the unknown method {record['train_type']!r}: use another checkpoint, or update this toolkit."
        )


def check_record(path: Path, record: dict) -> None:
    """Refuse a record whose values cannot have been written by this toolkit."""
    method, limits = record["method"], record.get("options")
    checks = {
        "method": set(method) == set(METHODS[record["train_type"]].OPTIONS)
        and all(type(value) in OPTION_TYPES[name] for name, value in method.items())
        and all(type(part) is str for value in method.values() if type(value) is list for part in value),
        "base.path": isinstance(record["base"].get("path"), str),
        "precision": record["precision"] in DTYPES,
        "files": isinstance(record.get("files", {}), dict),
        "options": isinstance(limits, dict)
        and all(type(limits.get(name)) in (int, type(None)) for name in ("max_len", "max_src_len"))
        and limits.get("quantization_bit") in (None, *BITS),
    }
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise UserError(f"{path} has a {wrong[0]} that no checkpoint has: use another checkpoint.")


def check_base(base: Base, record: dict | None, force: bool) -> None:
    """Refuse a base that is not the one trained on."""
    if record is None:
        return
    if record["mode"] != base.mode:
        raise UserError(
            f"the checkpoint was trained on a {record['mode']} base, {base.path} is {base.mode}: give that one."
        )
    if not force and fingerprint(base) != record["base"].get("fingerprint"):
        raise UserError(
            f"{base.path} does not hold the weights that the checkpoint was trained on "
            f"({record['base'].get('path')}): give that base, or --force to merge all the same."
        )


def warn_of_other_base(base: Base, model_dir: Path, record: dict | None) -> None:
    """Say so if a peft adapter names another base. A checkpoint of this toolkit has the fingerprint of its base."""
    warning = lora.other_base(model_dir, base.path, base.config) if record is None else None
    if warning:
        print(warning, file=sys.stderr)


def check_not_rounded(base: Base) -> None:
    """Refuse an official quantised release: what is merged would be rounded, and training was not."""
    bits = quantization_bit(base)
    if bits:
        raise UserError(
            f"{base.path} is rounded to {bits} bits, and nothing is merged into rounded weights: give the "
            "half-precision base as --ori_model_dir, with --force, as it is not the one trained on."
        )


def check_output(output_dir: Path, model_dir: Path, base_dir: Path) -> None:
    """Refuse to write into the checkpoint, the base, or anything that is already there."""
    for what, directory in (("--model_dir", model_dir), ("--ori_model_dir", base_dir)):
        if output_dir.resolve() == directory.resolve() or directory.resolve() in output_dir.resolve().parents:
            raise UserError(f"--output_dir {output_dir} lies in {what}: choose a directory of its own.")
    if os.path.exists(output_dir) and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"--output_dir {output_dir} is there already: remove it or choose another.")
    if problem := write_problem(output_dir):
        raise UserError(f"--output_dir {output_dir} {problem}.")


def check_fit(base: Base, model_dir: Path, train_type: str, method_options: dict) -> set[str]:
    """Refuse a checkpoint whose tensors are not the base's; the model's shapes alone are built.

    Returns: the names of the base's tensors.
    """
    mode, method = MODES[base.mode], METHODS[train_type]
    config = mode.config_class(**base.config)
    method.configure(config, **method_options)
    with torch.device("meta"):
        model = mode.model_class(config)
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        method.fits(model, model_dir)
    return names


def check_mergeable(fold: Fold, names: set[str], model_dir: Path) -> None:
    """Refuse a checkpoint that changes what the base does not have, such as the bias of a layer without one."""
    absent = sorted(fold.names - names)
    if absent:
        raise UserError(
            f"{model_dir} changes {absent[0]}, which the base does not have, so that it cannot be merged: give it to "
            "predict.py as --model_path instead."
        )


def merged_record(base: Base, model_dir: Path, record: dict | None, dtype: torch.dtype | None) -> dict:
    """What merged_from.json says: what was merged (the checkpoint's record, if it has one) into which base."""
    names = {value: name for name, value in DTYPES.items()}
    if record is None:
        precision = names.get(dtype, str(base.config.get("torch_dtype") or "auto"))
        record = make_record(
            mode=base.mode, train_type="lora", method={}, base_path=base.path, fingerprint="",
            template=MODES[base.mode].template, options={}, precision=precision,
        )  # fmt: skip
    kept = {key: value for key, value in record.items() if key != "files"}
    into = {"path": str(base.path.resolve()), "fingerprint": fingerprint(base)}
    return {**kept, "base": into, "checkpoint": str(model_dir.resolve())}


def merged_tensors(base: Base, fold, tied: dict[str, str], dtype: torch.dtype | None):
    """Yield every (name, tensor) of the merged model, in the base's order and dtype (or `dtype`).

    Raises:
        UserError: a tensor that the checkpoint changes is not in the base.
    """
    unused = {tied.get(name, name) for name in fold.names}
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
    train_type, method_options, record = read_method(model_dir)
    base = read_base(ori_model_dir, mode, recorded=record and record["mode"])
    if base.note:
        print(base.note)
    check_output(output_dir, model_dir, base.path)
    check_not_rounded(base)
    check_base(base, record, force)
    names = check_fit(base, model_dir, train_type, method_options)
    fold = METHODS[train_type].fold(model_dir, **method_options)
    check_mergeable(fold, names, model_dir)
    warn_of_other_base(base, model_dir, record)
    if precision == "auto" and record is not None:
        precision = record["precision"]
    dtype = DTYPES.get(precision)
    tied = MODES[base.mode].model_class._tied_weights_keys or {}
    changes = dict(fold.config)
    if dtype is not None:
        changes["torch_dtype"] = str(dtype).removeprefix("torch.")
    try:
        with whole_directory(output_dir) as temporary:
            size = write_shards(merged_tensors(base, fold, tied, dtype), temporary, "model", max_shard_bytes)
            copy_beside(side_files(base), temporary, changes)
            write_json(temporary / MERGED_FILE, merged_record(base, model_dir, record, dtype))
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written ({error.strerror}): free space or choose another.") from error
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
    helps = "lower --max_shard_size, or end other programs"
    run(explain_full_memory(main, host=helps))
