#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model in minutes, without a GPU (python3 ≥ 3.11 and a C++ compiler):
#
#   bash scripts/quickstart.sh              ChatGLM3's layout
#   MODE=glm2 bash scripts/quickstart.sh    glm, glm2 or glm3
#   VENV=/path/to/venv bash scripts/quickstart.sh       another virtual environment than .venv (made where missing)
#   PYTHON=python3.12 bash scripts/quickstart.sh        another interpreter to make it with
#
# The base is a tiny random model in the official layout, so the result knows one task only: finding triples in fault
# reports. With a real base the commands are the same. Everything is written to quickstart-$MODE/, which is replaced each
# time. The exit status is 0 if the score on records outside the training set reaches 0.8.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${MODE:-glm3}
case $mode in
    glm | glm2 | glm3) ;;
    *)
        echo "MODE=$mode is none of glm, glm2, glm3." >&2
        exit 2
        ;;
esac

venv=${VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=python3.11")'
    "${PYTHON:-python3}" -m venv "$venv"
fi
# Install when the dependency files changed since the last complete installation.
stamp=$venv/installed-for-quickstart
if ! cat setup.cfg constraints.txt | cmp -s - "$stamp"; then
    "$venv/bin/python" -m pip install -c constraints.txt -e .
    cat setup.cfg constraints.txt >"$stamp"
fi
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
# One thread: the model is too small for a second one to help, and two busy threads on one core are very slow.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

say() { printf '\n== %s\n' "$*"; }
started=$SECONDS
work=quickstart-$mode
rm -rf "$work"
mkdir "$work"

say "A tiny random base: $work/base"
python scripts/make_tiny_base.py --mode "$mode" --output_dir "$work/base"

say "Scores before training"
predict=(--test_path data/spo_1.json --batch_size 50 --max_new_tokens 64 --metrics triples_f1,exact_match)
before=$(python predict.py --model_path "$work/base" --output_path "$work/before.jsonl" "${predict[@]}" | tail -n 1)
echo "$before"

say "Fine-tuning all parameters on data/spo_0.json"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} deepspeed --master_port "$port" train.py \
    --train_path data/spo_0.json \
    --model_name_or_path "$work/base" \
    --mode "$mode" \
    --train_type all \
    --max_len 256 \
    --max_src_len 192 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 2e-3 \
    --weight_decay 0.1 \
    --num_train_epochs 5 \
    --warmup_ratio 0.1 \
    --seed 1234 \
    --ds_file ds_zero2_no_offload.json \
    --show_loss_step 50 \
    --save_total_limit 1 \
    --data_cache_dir "$work/cache" \
    --output_dir "$work/output"
checkpoint=$(find "$work/output" -maxdepth 1 -type d -name 'epoch-*-step-*' | sort -V | tail -n 1)

say "Merging $checkpoint into a complete model: $work/merged"
python merge_lora.py --ori_model_dir "$work/base" --model_dir "$checkpoint" --output_dir "$work/merged"

say "Answers to records outside the training set"
after=$(python predict.py --model_path "$work/merged" --output_path "$work/after.jsonl" "${predict[@]}" | tail -n 1)
python - "$work/after.jsonl" <<'EOF'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as lines:
    for record in [json.loads(line) for line in lines][:4]:
        print(record["input"], *record["prediction"].split("\n"), sep="\n    ")
EOF

say "Done in $((SECONDS - started)) s"
echo "before training: $before"
echo "after training:  $after"
echo "loss curve:      $work/output/loss.png"
echo "ask it:          python predict.py --model_path $work/merged --instruction ... --input ..."
echo "talk to it:      python chat.py --model_path $work/merged"
echo "serve it:        pip install -c constraints.txt -e '.[serve]' && python serve.py --model_path $work/merged"
python -c 'import json, sys; sys.exit(json.loads(sys.argv[1])["triples_f1"] < 0.8 and "The score stayed below 0.8.")' "$after"
