"""Experiment trackers of --report_to, which receive a run's metrics besides metrics.jsonl.

A tracker's own environment variables configure it: WANDB_MODE, WANDB_PROJECT, SWANLAB_MODE, SWANLAB_PROJECT,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on. Its local files are in --output_dir by default.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import UserError
from files import read_json, write_json
from parallel import ranks
from texts import one_line

PROJECT = "chatglm-finetuning"  # unless the environment names one
IDS_FILE = "trackers.json"  # the runs that a resumed run continues
NONE = "none"
STEP = "train/global_step"  # the step of each metric; the name is transformers'


@dataclass(frozen=True)
class Tracker:
    """One destination of metrics.

    run_id: its identifier of this run; "" if it has none.
    log: (metrics by name, optimizer step) -> None. close: ends the run.
    errors: what both may raise when its service cannot be reached.
    """

    name: str
    run_id: str
    log: Callable[[dict, int], None]
    close: Callable[[], None]
    errors: tuple[type[Exception], ...] = ()
    failed: list[str] = field(default_factory=list)


def start_tensorboard(output_dir: Path, start_step: int, run_id: str | None, config: dict) -> Tracker:
    """TensorBoard's files in OUTPUT_DIR/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second, needed only on rank 0

    writer = SummaryWriter(output_dir / "tensorboard", purge_step=start_step + 1)

    def log(figures: dict, step: int) -> None:
        for name, number in figures.items():
            writer.add_scalar(name, number, step)
        writer.flush()

    return Tracker("tensorboard", "", log, writer.close)


def start_wandb(output_dir: Path, start_step: int, run_id: str | None, config: dict) -> Tracker:
    """Weights & Biases."""
    import wandb

    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", output_dir.resolve().name),
            dir=os.environ.get("WANDB_DIR", output_dir),
            id=run_id or os.environ.get("WANDB_RUN_ID"),
            resume="allow" if run_id else None,
            config=config,
        )
    except wandb.Error as error:
        raise cannot_start("wandb", error, "log in with `wandb login`, or set WANDB_MODE=offline") from None
    # a resumed run repeats steps, and wandb drops metrics whose own step does not increase
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)

    def log(figures: dict, step: int) -> None:
        run.log({**figures, STEP: step})

    return Tracker("wandb", run.id, log, run.finish, (wandb.Error,))


def start_swanlab(output_dir: Path, start_step: int, run_id: str | None, config: dict) -> Tracker:
    """SwanLab."""
    import swanlab
    from swanlab.exceptions import AuthenticationError, DataStoreError

    errors = (AuthenticationError, DataStoreError, RuntimeError, OSError, ValueError)  # they have no common base class
    try:
        run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            name=os.environ.get("SWANLAB_NAME", output_dir.resolve().name),
            log_dir=os.environ.get("SWANLAB_LOG_DIR", str(output_dir / "swanlog")),
            id=run_id or os.environ.get("SWANLAB_RUN_ID"),
            resume="allow" if run_id else None,
            config=config,
        )
    except errors as error:
        raise cannot_start("swanlab", error, "log in with `swanlab login`, or set SWANLAB_MODE=offline") from None

    def log(figures: dict, step: int) -> None:
        run.log(figures, step=step)

    return Tracker("swanlab", run.id, log, run.finish, errors)


def start_mlflow(output_dir: Path, start_step: int, run_id: str | None, config: dict) -> Tracker:
    """MLflow: the server or database of MLFLOW_TRACKING_URI, else OUTPUT_DIR/mlflow.db."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    try:
        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{output_dir.resolve() / 'mlflow.db'}")
        if "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        run = mlflow.start_run(run_id=run_id, run_name=output_dir.resolve().name)
        if not run_id:
            mlflow.log_params(config)
    except mlflow.MlflowException as error:
        raise cannot_start("mlflow", error, "correct MLFLOW_TRACKING_URI, or unset it and install mlflow") from None

    def log(figures: dict, step: int) -> None:
        mlflow.log_metrics(figures, step=step)

    return Tracker("mlflow", run.info.run_id, log, mlflow.end_run, (mlflow.MlflowException,))


# name in --report_to: (its package, the function that starts it)
TRACKERS = {
    "tensorboard": ("tensorboard", start_tensorboard),
    "wandb": ("wandb", start_wandb),
    "swanlab": ("swanlab", start_swanlab),
    "mlflow": ("mlflow", start_mlflow),
}


def cannot_start(name: str, error: Exception, remedy: str) -> UserError:
    """The error about a tracker that does not start."""
    message = one_line(error)
    return UserError(f"--report_to {name} cannot start ({message}): {remedy}, or leave {name} out of --report_to.")


def check_trackers(names: Sequence[str], rank: int) -> list[str]:
    """One sentence for each name in --report_to that is unknown, or whose package is missing on rank 0."""
    unknown = [name for name in names if name not in (*TRACKERS, NONE)]
    if unknown:
        known = f"{', '.join(TRACKERS)} or {NONE}"
        return [f"--report_to {name} is unknown: choose from {known}." for name in unknown]
    if NONE in names and len(set(names)) > 1:
        return [f"--report_to {','.join(names)} has {NONE} and others: give {NONE} alone, or leave it out."]
    if rank:
        return []
    return [
        f"--report_to {name} needs the package {TRACKERS[name][0]}: run pip install {name}, or leave {name} out."
        for name in dict.fromkeys(names)
        if name != NONE and importlib.util.find_spec(TRACKERS[name][0]) is None
    ]


def open_trackers(names: Sequence[str], output_dir: Path, start_step: int, config: dict) -> list[Tracker]:
    """Start the trackers of --report_to on rank 0; every rank calls it, the others get []. See `start_trackers`.

    Raises:
        UserError: why a tracker does not start; on every rank.
    """
    opened, problem = [], None
    if ranks.is_main():
        try:
            opened = start_trackers(names, output_dir, start_step, config)
        except UserError as error:
            problem = str(error)
    ranks.fail_together(problem)
    return opened


def start_trackers(names: Sequence[str], output_dir: Path, start_step: int, config: dict) -> list[Tracker]:
    """Start the trackers of --report_to.

    Args:
        start_step: of a resumed run, which continues the trackers' runs; 0 starts new ones.
        config: the flags of the run.

    Raises:
        UserError: why a tracker does not start.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    ids = read_ids(output_dir / IDS_FILE) if start_step else {}
    wanted = [name for name in dict.fromkeys(names) if name != NONE]
    started = [TRACKERS[name][1](output_dir, start_step, ids.get(name), config) for name in wanted]
    ids = {tracker.name: tracker.run_id for tracker in started if tracker.run_id}
    if ids:
        write_json(output_dir / IDS_FILE, ids)
    return started


def read_ids(path: Path) -> dict[str, str]:
    """Tracker -> its run; {} if the file is missing or broken."""
    try:
        ids = read_json(path, "delete it")
    except UserError:
        return {}
    return {name: text for name, text in ids.items() if isinstance(text, str)}


def log_figures(trackers: Sequence[Tracker], figures: dict, step: int) -> None:
    """Log metrics to all trackers. The run continues without a tracker that fails."""
    for tracker in trackers:
        if not tracker.failed:
            try:
                tracker.log(figures, step)
            except tracker.errors as error:
                give_up(tracker, error)


def close_trackers(trackers: Sequence[Tracker]) -> None:
    """End the runs of all trackers."""
    for tracker in trackers:
        try:
            tracker.close()
        except tracker.errors as error:
            give_up(tracker, error)


def give_up(tracker: Tracker, error: Exception) -> None:
    """Report once that a tracker failed."""
    message = one_line(error)
    if not tracker.failed:
        print(f"{tracker.name} failed ({message}): the run continues without it.", file=sys.stderr, flush=True)
    tracker.failed.append(message)
