"""Short runs whose losses, learning rates and gradient norms are recorded in fixtures/losses.json.

    python -m tests.losses [NAME…]

runs them (all by default; 10 to 15 s each) and writes what they log to the fixture. Where a change must keep every
number, run it before and after on the same machine: `git diff` shows nothing then, because runs repeat to the last bit.
Tests that make these runs anyway compare them with the fixture, at a tolerance for other processors. Commit a rewritten
fixture only together with the change that explains it.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests import launch

FIXTURE = launch.REPOSITORY / "tests" / "fixtures" / "losses.json"
KEYS = ("loss", "lr", "grad_norm")
# Relative. Another processor sums in another order, and Adam divides by roots of squares that may be rounding errors.
# With torch's and MKL's plain kernels instead of AVX2 (ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE), losses of all
# runs differed by up to 2e-6 in the first five steps and 2e-5 later, gradient norms by up to 6e-5.
FIRST, FIRST_TOLERANCE = 5, 1e-5  # losses of that many steps
TOLERANCES = {"loss": 1e-4, "lr": 1e-12, "grad_norm": 3e-4}
METHODS = ("freeze", "ptuning", "lora", "all")
ZERO2, ZERO3, OFFLOAD = "ds_zero2_no_offload.json", "ds_zero3_no_offload.json", "ds_zero2_offload.json"
ZERO3_OFFLOAD = "ds_zero3_offload.json"

MATRIX = [(mode, method, ZERO2) for mode in launch.MODES for method in METHODS]
MATRIX += [(mode, method, ZERO3_OFFLOAD) for mode in launch.MODES for method in ("lora", "all")]

WHOLE = {"lora_module_name": "all-linear", "modules_to_save": "word_embeddings"}
# name: (mode, train_type, DeepSpeed file, further flags)
VARIANTS = {
    "lora-glm-zero3": ("glm", "lora", ZERO3, WHOLE),
    "dora-glm2": ("glm2", "lora", ZERO2, {"lora_variant": "dora", "modules_to_save": "output_layer"}),
    "rslora-glm3-zero3": ("glm3", "lora", ZERO3, {"lora_variant": "rslora"}),
    "loraplus-glm-offload": ("glm", "lora", OFFLOAD, {"lora_variant": "loraplus"}),
    "pissa-glm2-zero3": ("glm2", "lora", ZERO3, {"lora_variant": "pissa", "lora_module_name": "all-linear"}),
    "adalora-glm": (
        "glm",
        "lora",
        ZERO2,
        {"lora_variant": "adalora", "adalora_target_r": 3, "learning_rate": 3e-2, **WHOLE},
    ),
    "freeze-head-glm": ("glm", "freeze", ZERO3, {"freeze_module_name": "layers.3.,lm_head"}),
    "freeze-last-glm2": ("glm2", "freeze", ZERO2, {"freeze_last_n": 2}),
}
# name: (mode, train_type, further flags), in steps of four rows
SPEED = {
    "packing-glm": ("glm", "all", {"packing": True}),
    "packing-glm3": ("glm3", "all", {"packing": True}),
    "features-glm3": ("glm3", "freeze", {"cache_frozen_features": True, "ds_file": ZERO3}),
}
EMBEDDING = "prefix-embedding-glm3"


def matrix_options(mode: str, method: str, ds_file: str, output: Path) -> dict:
    """Flags of a run of every mode and method."""
    rate = 1e-1 if method == "ptuning" else 1e-2
    return launch.train_options(
        mode, method, output, ds_file=ds_file, learning_rate=rate, num_train_epochs=3, gradient_checkpointing=True,
        checkpoint_layers=3,
    )  # fmt: skip


def variant_options(name: str, output: Path) -> dict:
    """Flags of a run of a LoRA variant, or of a way to freeze."""
    mode, train_type, ds_file, changes = VARIANTS[name]
    options = launch.train_options(mode, train_type, output, ds_file=ds_file, learning_rate=3e-3, save_state_step=1)
    options |= {"save_total_limit": 9, "lora_dropout": 0.1, "num_train_epochs": 3}
    options |= {"gradient_checkpointing": True, "checkpoint_layers": 2}
    del options["freeze_module_name"]
    return options | changes


def speed_options(mode: str, train_type: str, output: Path, **changes) -> dict:
    """Flags of a run with steps of four rows on two ranks."""
    changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "learning_rate": 3e-3, **changes}
    return launch.train_options(mode, train_type, output, **changes)


def embedding_options(output: Path) -> dict:
    """Flags of a run of P-Tuning with a prefix of embeddings."""
    changes = {"prefix_layers": "embedding", "learning_rate": 1e-1, "num_train_epochs": 3}
    return launch.train_options("glm3", "ptuning", output, **changes)


def runs(directory: Path) -> dict[str, dict]:
    """The flags of every run, by its name; each writes to a directory of its name."""
    flags_of_run = {
        matrix_name(*case): matrix_options(*case, directory / matrix_name(*case) / "output") for case in MATRIX
    }
    flags_of_run |= {name: variant_options(name, directory / name / "output") for name in VARIANTS}
    for name, (mode, train_type, changes) in SPEED.items():
        flags_of_run[name] = speed_options(mode, train_type, directory / name / "output", **changes)
    return {**flags_of_run, EMBEDDING: embedding_options(directory / EMBEDDING / "output")}


def matrix_name(mode: str, method: str, ds_file: str) -> str:
    """The name of a run of MATRIX."""
    return f"{mode}-{method}-{Path(ds_file).stem.removeprefix('ds_')}"


def logged(output: Path) -> dict[str, list[float]]:
    """What a run logged, step by step."""
    lines = launch.metrics(output)
    return {key: [line[key] for line in lines] for key in KEYS}


def read() -> dict[str, dict[str, list[float]]]:
    """The fixture."""
    return json.loads(FIXTURE.read_text())


def assert_as_recorded(name: str, output: Path) -> None:
    """Compare what a run on two ranks logged with the fixture."""
    losses, expected = logged(output), read()[name]
    for key, tolerance in TOLERANCES.items():
        assert losses[key] == pytest.approx(expected[key], rel=tolerance), f"{key} of {name}"
    first = expected["loss"][:FIRST]
    assert losses["loss"][:FIRST] == pytest.approx(first, rel=FIRST_TOLERANCE), f"first losses of {name}"


def write(names: list[str]) -> None:
    """Run on two ranks each, and record; the others of the fixture stay."""
    recorded = read() if FIXTURE.is_file() else {}
    with tempfile.TemporaryDirectory() as directory:
        every = runs(Path(directory))
        for name in names or every:
            print(name, flush=True)
            launch.train(every[name], num_ranks=2)
            recorded[name] = logged(Path(every[name]["output_dir"]))
        lines = [f"{json.dumps(name)}: {json.dumps(recorded[name])}" for name in every if name in recorded]
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write(sys.argv[1:])
