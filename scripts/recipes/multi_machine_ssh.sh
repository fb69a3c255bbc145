#!/usr/bin/env bash
# Several machines, ChatGLM3-6B, all parameters: DeepSpeed's launcher, started once, over ssh.
#
#   MASTER_ADDR=10.0.0.1 HOSTFILE=hostfile bash scripts/recipes/multi_machine_ssh.sh   on the first machine
#
# HOSTFILE has one line per machine, the first machine first, with its number of GPUs:
#
#   10.0.0.1 slots=4
#   10.0.0.2 slots=4
#
# Needs pdsh on the first machine, ssh without a password to all machines, and the same paths on all of them.
# Variables for the other machines go into .deepspeed_env, one NAME=VALUE per line.
# Every machine needs this repository, its Python environment, the base at MODEL_PATH and the records at TRAIN_PATH.
# Checkpoints and metrics are written on the machine of rank 0. See docs/several_machines.md for shared and separate
# directories, ports, interfaces and ZeRO stages. Flags at the end replace those below: --mode, --train_type and their
# flags as in the other recipes. Relative paths count from the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec deepspeed --hostfile "${HOSTFILE:?a file with one line per machine, see the head of this script}" \
    --force_multi --master_addr "${MASTER_ADDR:?the address of the first machine}" \
    --master_port "${MASTER_PORT:-29520}" train.py \
    --train_path "${TRAIN_PATH:-data/spo_0.json}" \
    --model_name_or_path "${MODEL_PATH:-ChatGLM3-6B/}" \
    --mode glm3 --train_type all \
    --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --learning_rate 1e-4 --weight_decay 0.1 --warmup_ratio 0.1 --seed 1234 \
    --ds_file ds_zero3_offload.json --gradient_checkpointing \
    --show_loss_step 10 --output_dir "${OUTPUT_DIR:-./output-glm3-all}" \
    "$@"
