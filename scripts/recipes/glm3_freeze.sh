#!/usr/bin/env bash
# ChatGLM3-6B, freeze: trains the last four of the 28 layers and freezes the others.
#
#   bash scripts/recipes/glm3_freeze.sh                                GPU 0
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash scripts/recipes/glm3_freeze.sh   four GPUs
#   MODEL_PATH=/models/chatglm3-6b TRAIN_PATH=my.json bash scripts/recipes/glm3_freeze.sh --num_train_epochs 3
#
# Needs the official ChatGLM3-6B directory (config.json, tokenizer files, weights) at MODEL_PATH.
# Each GPU holds the whole base: 12.5 GB of weights in half precision (scripts/method_sizes.py), plus what it trains.
# Flags at the end replace those below. Relative paths count from the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
exec deepspeed --master_port "${MASTER_PORT:-29520}" train.py \
    --train_path "${TRAIN_PATH:-data/spo_0.json}" \
    --model_name_or_path "${MODEL_PATH:-ChatGLM3-6B/}" \
    --mode glm3 --train_type freeze \
    --freeze_module_name "layers.27.,layers.26.,layers.25.,layers.24." \
    --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --learning_rate 1e-4 --weight_decay 0.1 --warmup_ratio 0.1 --seed 1234 \
    --ds_file ds_zero2_no_offload.json --gradient_checkpointing \
    --show_loss_step 10 --output_dir "${OUTPUT_DIR:-./output-glm3-freeze}" \
    "$@"
