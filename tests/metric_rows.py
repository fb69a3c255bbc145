"""Rows of a metrics log."""

from training.metrics import MetricsLog


def write_steps(log, steps, loss=1.0, **changed):
    """Log so many steps whose loss falls; `changed` are further or other values of their rows."""
    for step in steps:
        log.advance()
        row = {"step": step, "epoch": 1, "loss": loss / step, "lr": 1e-4, "grad_norm": 0.5, "tokens_per_second": 1234.5}
        log.write(**(row | {"peak_memory_bytes": 3 * 2**30} | changed))


def log_steps(directory, steps, loss=1.0, **changed):
    """Write rows as training does."""
    log = MetricsLog(directory, 100)
    write_steps(log, steps, loss, **changed)
    log.file.close()
