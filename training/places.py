"""Check that the files that a run reads exist, and that the directories that it writes to are writable."""

import os
from pathlib import Path

from checkpoints.output_names import check_names
from data.formats import Columns
from data.sources import find_sources, split_paths
from errors import UserError
from files import read_problem, write_problem
from options.train import TrainOptions
from parallel import launch
from training.trackers import check_trackers

POLYNOMIAL_END = 1e-7  # transformers.get_polynomial_decay_schedule_with_warmup's lr_end


def record_files(options: TrainOptions) -> dict[str, str | None]:
    """Flag -> its comma-separated files of records."""
    return {
        "train_path": options.data.train_path,
        "dev_path": options.evaluation.dev_path,
        "probe_path": options.evaluation.probe_path,
        "replay_path": options.data.replay_path,
    }


def check_places(options: TrainOptions, rank: int) -> list[str]:
    """One sentence for each path that cannot be read or written, and for other problems that need no base.

    Args:
        rank: only rank 0 tries to write to the directories, so that ranks do not interfere.
    """
    problems = [*check_schedule(options), *check_inputs(options), *check_output_dir(options, rank)]
    cache_problem = write_problem(options.data.cache_dir) if rank == 0 else None
    if cache_problem:
        problems.append(f"--data_cache_dir {options.data.cache_dir} {cache_problem}.")
    return problems + check_trackers(options.output.report_to, rank)


def check_schedule(options: TrainOptions) -> list[str]:
    """One sentence if the learning rate is not above the final rate of transformers' polynomial schedule."""
    optimizer = options.optimizer
    if optimizer.lr_scheduler_type == "polynomial" and 0 < optimizer.learning_rate <= POLYNOMIAL_END:
        return [
            f"--learning_rate {optimizer.learning_rate} is not above {POLYNOMIAL_END}, where --lr_scheduler_type "
            "polynomial ends: raise it, or choose linear."
        ]
    return []


def check_inputs(options: TrainOptions) -> list[str]:
    """One sentence for each base directory, file of records or resume state that cannot be read."""
    problems = []
    base, data, resume = options.model.model_name_or_path, options.data, options.output.resume_from_checkpoint
    if not base:
        problems.append("--model_name_or_path is missing: give the local directory of a base model.")
    elif not os.path.isdir(base):
        state = "is not a directory" if os.path.exists(base) else "does not exist"
        problems.append(
            f"--model_name_or_path {base} {state}: give the local directory of a base model (nothing is downloaded)."
        )
    if not data.train_path and not data.dataset:
        problems.append("--train_path is missing: give the file of training records, or names as --dataset.")
    elsewhere = launch.on_several_machines()  # the directory may be on another machine
    if resume not in ("auto", "none") and not os.path.isdir(resume) and not elsewhere:
        problems.append(f"--resume_from_checkpoint {resume} is not a directory: give one, or auto, or none.")
    for name, paths in record_files(options).items():
        problems += unreadable(name, split_paths(paths or ""))
    try:
        sources = find_sources(None, data.dataset, data.dataset_dir, Columns())
        problems += unreadable("dataset", [source.path for source in sources])
    except UserError as error:
        problems += error.sentences
    return problems


def unreadable(flag: str, paths: list[str]) -> list[str]:
    """One sentence for each file of records that cannot be read."""
    problems = {path: read_problem(path) for path in paths}
    return [f"--{flag} {path} {problem}." for path, problem in problems.items() if problem]


def check_output_dir(options: TrainOptions, rank: int) -> list[str]:
    """One sentence if --output_dir is missing, inside the base or not writable, or for each conflicting name."""
    directory = options.output.output_dir
    if not directory:
        return ["--output_dir is missing: give the directory for checkpoints and metrics."]
    output, base = Path(directory).resolve(), Path(options.model.model_name_or_path).resolve()
    if options.model.model_name_or_path and (output == base or base in output.parents):
        return [f"--output_dir {directory} is inside the base directory {base}: choose another directory."]
    if rank:
        return []
    problem = write_problem(directory)
    return [f"--output_dir {directory} {problem}."] if problem else check_names(directory)
