#!/usr/bin/env bash
# Check this toolkit on one GPU in about ten minutes; nothing is downloaded. Run it inside the environment of the README:
#
#   bash scripts/card_check.sh /data/card_check
#
# 1. The tests marked gpu, and every path that depends on the device at tiny size (benchmarks/smoke.py): losses that must
#    agree do, Ctrl-C keeps a state, killed runs resume.
# 2. Memory, throughput and all parameters at the size of ChatGLM3-6B (benchmarks/real_size.py) on a base of random
#    weights, 12 GB, which stays in the directory for the next time.
#
# Results: smoke.json and real_size.json in the directory, logs beside them. The exit status is 1 if a test, a case or a
# comparison failed. MINUTES=60 gives real_size.py more time than the default of 6 minutes, and so more rows.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -ne 1 ]; then
    echo "usage: bash scripts/card_check.sh DIRECTORY" >&2
    exit 2
fi
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "card_check.sh needs a GPU that torch can use.")' || exit 2

mkdir -p "$1"
directory=$(cd "$1" && pwd)
begun=$SECONDS failed=0
say() { printf '\n== %d s: %s\n' $((SECONDS - begun)) "$*"; }
export HF_HUB_OFFLINE=1
rm -rf "$directory/smoke"

say "the tests marked gpu, and every path that depends on the device"
python -m pytest -q -m gpu tests >"$directory/pytest.log" 2>&1 &
tests=$!
python benchmarks/smoke.py --work_dir "$directory/smoke" --output "$directory/smoke.json" | grep -v '^{' || failed=1
wait $tests || failed=1
tail -n 5 "$directory/pytest.log"

say "memory, throughput and all parameters at 6B"
python benchmarks/real_size.py --work_dir "$directory/real_size" --minutes "${MINUTES:-6}" \
    --output "$directory/real_size.json" | grep -v '^{' || failed=1

say "done: $directory"
exit $failed
