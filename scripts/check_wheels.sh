#!/usr/bin/env bash
# Checks that the pinned and the oldest supported versions have wheels for another Python on Linux (x86_64); downloads a
# gigabyte and installs nothing:
#
#   bash scripts/check_wheels.sh              3.12 and 3.13
#   bash scripts/check_wheels.sh 3.14         other versions
#
# deepspeed, rouge-score and pwinput (of swanlab) are left out: they are published as source alone, and pip builds them on every Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -gt 0 ] || set -- 3.12 3.13
platforms=()
for tag in 1 2010 2014 $(seq -f _2_%g 5 28); do
    platforms+=(--platform "manylinux${tag}_x86_64")
done
for version in "$@"; do
    for constraints in constraints.txt constraints-oldest.txt; do
        mapfile -t requirements < <(grep -vE '^(#|deepspeed=|rouge.score=|pwinput=)' "$constraints")
        "${PYTHON:-python3}" -m pip install --quiet --dry-run --ignore-installed --no-deps --only-binary=:all: \
            --python-version "$version" "${platforms[@]}" --target unused "${requirements[@]}"
        echo "Python $version: wheels for all of $constraints"
    done
done
