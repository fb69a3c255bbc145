#!/usr/bin/env bash
# Checks and tests on a fresh machine (python3 ≥ 3.11):
#
#   bash scripts/test.sh                         ruff and mypy, then all tests, those of extras last
#   bash scripts/test.sh tests/test_options.py   ruff and mypy, then pytest with these arguments
#   bash scripts/test.sh --versions oldest       the fast tests and three runs, with the oldest supported versions
#   bash scripts/test.sh --versions newest       the same with the newest; further arguments go to pytest instead
#   VENV=/path/to/venv bash scripts/test.sh      another virtual environment than .venv (made where missing)
#   PYTHON=python3.12 bash scripts/test.sh       another interpreter to make it with
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

versions=pinned
if [ "${1:-}" = --versions ]; then
    versions=${2:-}
    shift $(($# < 2 ? $# : 2))
fi
case $versions in
pinned) venv=${VENV:-.venv} constraints=constraints.txt ;;
oldest) venv=${VENV:-.venv-oldest} constraints=constraints-oldest.txt ;;
newest) venv=${VENV:-.venv-newest} constraints=/dev/null ;; # newest of the day it was made: remove it for a newer one
*)
    echo "--versions '$versions' is unknown: give oldest or newest." >&2
    exit 2
    ;;
esac
python=$venv/bin/python
if [ ! -x "$python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=python3.11")'
    "${PYTHON:-python3}" -m venv "$venv"
fi

# Install when the dependency files changed since the last complete installation.
stamp=$venv/installed-for-tests
if ! cat setup.cfg pyproject.toml "$constraints" | cmp -s - "$stamp"; then
    # Of 15,000 files the tests import 4,000: those are compiled as they are imported.
    "$python" -m pip install --no-compile -c "$constraints" -e ".[test,serve]"
    cat setup.cfg pyproject.toml "$constraints" >"$stamp"
fi

# Absolute: ranks and scripts started by tests call these programs from other directories.
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
# What a test does make torch compile is compiled once for all tests; no test may download anything.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$(cd "$venv" && pwd)/torch_extensions}
export HF_HUB_OFFLINE=1
# Where this is set, as in images of containers, every process compiles all that it imports.
unset PYTHONDONTWRITEBYTECODE

ruff check .
ruff format --check .
if [ "$versions" = pinned ]; then # other versions of the dependencies have other types
    mypy
fi
if [ $# -gt 0 ]; then
    python -m pytest "$@"
    exit
fi
# A thread each, because more gain nothing on tiny models. A third test at a time, because many slow ones wait.
export OMP_NUM_THREADS=1
if [ "$versions" != pinned ]; then
    python -m pytest -n 2 --dist loadfile -m "not slow"
    # A run under the deepspeed launcher; two of two ranks, which are merged and predicted from.
    matrix=tests/end_to_end/test_matrix.py::test_trained_saved_merged_predicted
    python -m pytest tests/end_to_end/test_commands_of_2023.py::test_the_command \
        "$matrix[glm3-lora-ds_zero2_no_offload.json]" "$matrix[glm-all-ds_zero3_offload.json]"
    python -m pip list --format=freeze | grep -iE '^(torch|deepspeed|transformers|peft|numpy)='
else
    of_extras=(
        tests/test_export_gguf.py tests/test_quantization.py tests/end_to_end/test_quantized.py tests/test_trackers.py
        tests/test_constraint.py tests/test_call_constraint.py tests/test_serving_*.py tests/end_to_end/test_serve.py
        tests/browser
    )
    python -m pytest -n 3 --dist worksteal --durations=20 "${of_extras[@]/#/--ignore=}"
    # Last, because peft imports bitsandbytes wherever it is installed, which costs every process two seconds.
    python -m pip install --quiet --no-compile -c constraints.txt \
        -e ".[test,gguf,quantization,serve,serve-test,browser-test,wandb,swanlab,mlflow]"
    # Without Chromium the tests of the page in a browser are skipped.
    if [ -n "${CI:-}" ] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then
        (export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk) >/dev/null || true
    fi
    # Built from source, in minutes: where that fails, the tests of GGUF files are skipped.
    python -m pip install --quiet --no-compile -c constraints.txt -e ".[llama]" || true
    python -m pytest -n 2 --dist worksteal "${of_extras[@]}" \
        tests/end_to_end/test_recipes_of_tutorials.py::test_alpaca_on_an_int8_base
fi
