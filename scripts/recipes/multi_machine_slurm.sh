#!/usr/bin/env bash
#SBATCH --job-name=chatglm --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --signal=TERM@300
# Several machines, ChatGLM3-6B, all parameters: SLURM starts one task per GPU.
#
#   sbatch scripts/recipes/multi_machine_slurm.sh                              from the repository
#   sbatch --nodes=4 scripts/recipes/multi_machine_slurm.sh --train_type lora
#
# Let every task see all GPUs of its node (--gpus-per-node, not --gpus-per-task). train.py reads srun's variables; set
# MASTER_ADDR and MASTER_PORT only to replace the first node and the port that follow from them. SIGTERM, 300 seconds
# before the time limit, keeps a resume state: submit the same command again to continue.
# Every machine needs this repository, its Python environment, the base at MODEL_PATH and the records at TRAIN_PATH.
# Checkpoints and metrics are written on the machine of rank 0. See docs/several_machines.md for shared and separate
# directories, ports, interfaces and ZeRO stages. Flags at the end replace those below: --mode, --train_type and their
# flags as in the other recipes. Relative paths count from the repository.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/../..}"
srun --kill-on-bad-exit=1 python train.py \
    --train_path "${TRAIN_PATH:-data/spo_0.json}" \
    --model_name_or_path "${MODEL_PATH:-ChatGLM3-6B/}" \
    --mode glm3 --train_type all \
    --max_len 1560 --max_src_len 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --num_train_epochs 2 \
    --learning_rate 1e-4 --weight_decay 0.1 --warmup_ratio 0.1 --seed 1234 \
    --ds_file ds_zero3_offload.json --gradient_checkpointing \
    --show_loss_step 10 --output_dir "${OUTPUT_DIR:-./output-glm3-all}" \
    "$@"
