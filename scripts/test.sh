#!/usr/bin/env bash
# Checks and tests on a fresh machine (python3 ≥ 3.11):
#
#   bash scripts/test.sh                         ruff, then the fast tests, then the slow ones
#   bash scripts/test.sh tests/test_options.py   ruff, then pytest with these arguments
#   VENV=/path/to/venv bash scripts/test.sh      another virtual environment than .venv (made where missing)
#   PYTHON=python3.12 bash scripts/test.sh       another interpreter to make it with
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
python=$venv/bin/python
if [ ! -x "$python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=python3.11")'
    "${PYTHON:-python3}" -m venv "$venv"
fi

# Install when the dependency files changed since the last complete installation.
stamp=$venv/installed-for-tests
if ! cat setup.cfg pyproject.toml constraints.txt | cmp -s - "$stamp"; then
    "$python" -m pip install -c constraints.txt -e ".[test]"
    cat setup.cfg pyproject.toml constraints.txt >"$stamp"
fi

# Absolute: ranks and scripts started by tests call these programs from other directories.
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
# What a test does make torch compile is compiled once for all tests; no test may download anything.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$(cd "$venv" && pwd)/torch_extensions}
export HF_HUB_OFFLINE=1

ruff check .
ruff format --check .
if [ $# -gt 0 ]; then
    python -m pytest "$@"
else
    python -m pytest -m "not slow"
    python -m pytest -m slow
fi
