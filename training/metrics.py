"""A run's reports: metrics.jsonl, trackers such as TensorBoard, a progress bar, and the loss curve at the end.

    log = MetricsLog(output_dir, total_steps, trackers, enabled=rank == 0)
    log.advance()                       # every optimizer step
    log.write(step=…, epoch=…, loss=…)  # every --show_loss_step steps
    log.close()                         # draws output_dir/loss.png

metrics.jsonl has one JSON object per line: step, epoch, loss (nats per supervised token, of the step over all ranks),
lr, grad_norm (L2, before clipping), tokens_per_second (all ranks), peak_memory_bytes (rank 0). A missing number, or one
that is not finite, is null.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from evaluation.report import read_history
from files import whole_file
from training.trackers import Tracker, close_trackers, log_figures

SMOOTHING = 0.9  # weight of the past in the smoothed loss curve


def peak_memory_bytes() -> int:
    """Peak memory of this process: allocated on its GPU, or resident in RAM without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def finite(number: float | None) -> float | int | None:
    """A number for JSON (tensors of one element become numbers); None if it is not finite."""
    if number is None or isinstance(number, int):
        return number
    number = float(number)
    return number if math.isfinite(number) else None


class Throughput:
    """Tokens per second of training, without evaluation and saving."""

    def __init__(self):
        self.tokens, self.started = 0, time.perf_counter()

    def add(self, tokens: int) -> None:
        """Count trained tokens."""
        self.tokens += tokens

    def read(self) -> float:
        """Tokens per second since the start or the last call."""
        now = time.perf_counter()
        rate = self.tokens / (now - self.started)
        self.tokens, self.started = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this context does not count."""
        paused = time.perf_counter()
        yield
        self.started += time.perf_counter() - paused


class MetricsLog:
    """Writes metrics on the rank where it is enabled; on the others every call does nothing.

    Args:
        output_dir: created if needed. An existing metrics.jsonl is continued.
        total_steps: optimizer steps of the whole run.
        trackers: of `training.trackers.open_trackers`; closed with the log.
        start_step: steps done before, in a resumed run.
    """

    def __init__(
        self,
        output_dir: Path,
        total_steps: int,
        trackers: Sequence[Tracker] = (),
        *,
        enabled: bool = True,
        start_step: int = 0,
    ):
        self.enabled, self.trackers = enabled, trackers
        if not enabled:
            return
        self.output_dir = Path(output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.total_steps, self.start_step, self.started = total_steps, start_step, time.perf_counter()
        path = self.output_dir / "metrics.jsonl"
        cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        if cut:  # a killed run left the last line unfinished
            self.file.write("\n")
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=not self.on_terminal
        )

    def advance(self) -> None:
        """Advance the progress bar by one optimizer step."""
        if self.enabled:
            self.bar.update()

    def write(
        self,
        *,
        step: int,
        epoch: int,
        loss: float,
        lr: float,
        grad_norm: float | None,
        tokens_per_second: float,
        peak_memory_bytes: int,
    ) -> None:
        """Write one object to metrics.jsonl and its numbers to the trackers, and print them.

        Numbers may be tensors of one element.
        """
        if not self.enabled:
            return
        loss, lr, tokens_per_second = float(loss), float(lr), float(tokens_per_second)
        row = {
            "step": step,
            "epoch": epoch,
            "loss": finite(loss),
            "lr": finite(lr),
            "grad_norm": finite(grad_norm),
            "tokens_per_second": finite(tokens_per_second),
            "peak_memory_bytes": finite(peak_memory_bytes),
        }
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        figures = {f"train/{name}": number for name, number in row.items() if name != "step" and number is not None}
        log_figures(self.trackers, figures, step)
        if self.on_terminal:  # the bar itself shows steps and the time left
            self.bar.set_postfix_str(f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s")
            return
        seconds_a_step = (time.perf_counter() - self.started) / max(step - self.start_step, 1)
        left = tqdm.format_interval(seconds_a_step * (self.total_steps - step))
        print(
            f"step {step}/{self.total_steps}, epoch {epoch}, loss {loss:.4f}, lr {lr:.3g}, "
            f"{tokens_per_second:,.0f} tokens/s, peak {peak_memory_bytes / 2**30:.2f} GiB, {left} left",
            flush=True,
        )

    def write_evaluation(self, row: dict) -> None:
        """Write the metrics of an evaluation, which are also in evaluation.jsonl, to the trackers."""
        if not self.enabled:
            return
        numbers = {name: finite(number) for name, number in row.items() if name not in ("step", "epoch")}
        figures = {f"evaluation/{name}": number for name, number in numbers.items() if number is not None}
        log_figures(self.trackers, figures, row["step"])

    def close(self) -> None:
        """Close the files and draw the loss curve."""
        if not self.enabled:
            return
        self.bar.close()
        self.file.close()
        close_trackers(self.trackers)
        plot_loss(self.output_dir / "metrics.jsonl", self.output_dir / "loss.png")


def smooth(values: list[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential moving average with bias correction (the first smoothed value is the first value)."""
    smoothed, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smoothed.append(mean / (1 - weight**count))
    return smoothed


def plot_loss(metrics_path: Path, png_path: Path) -> bool:
    """Plot the loss over the steps, raw and smoothed. Returns whether there was a loss to plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, needed only on rank 0
    from matplotlib.figure import Figure

    rows = [row for row in read_history(metrics_path) if isinstance(row.get("loss"), (int, float))]
    if not rows:
        return False
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="loss (nats per supervised token)", title="training loss")
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, marker="." if len(steps) < 50 else None, label="as measured")
    axes.plot(steps, smooth(losses), color="tab:blue", label="smoothed")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(png_path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True
