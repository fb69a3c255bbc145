"""Every command-line flag of train.py: its name, default, bounds and help sentence, and nothing else.

Names and defaults are those of the 2023 tool, but for --ds_file, whose default did not exist.
"""

import argparse
import math

from evaluation.scores import SCORES

CHOICES = {
    "mode": ("glm", "glm2", "glm3"),
    "train_type": ("freeze", "ptuning", "lora", "all"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "lr_scheduler_type": (
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "polynomial",
    ),
    "lora_variant": ("lora", "dora", "rslora", "loraplus", "pissa", "adalora"),
    "prefix_layers": ("all", "embedding"),
    "eval_metric": ("dev_loss", *SCORES),
    "on_nonfinite": ("stop", "skip"),
    "loss_on": ("all", "last"),
    "attn_implementation": ("auto", "sdpa", "varlen"),
}


def boolean(text: str) -> bool:
    """true/yes/1 or false/no/0 in any case. (bool("False") is True: the 2023 flag could not be switched off.)"""
    word = text.strip().lower()
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names. No name is ever empty: an empty one would be part of every parameter's name."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no name; give one or more, separated by commas")
    if any(len(name.split()) > 1 for name in found):
        apart = ",".join(part for name in found for part in name.split())
        raise argparse.ArgumentTypeError(f"{text!r} has blanks within a name; separate names by commas: {apart}")
    return found


def layer_count(text: str) -> int | str:
    """auto, or a number of layers; more than a model has are all of them."""
    if text == "auto":
        return text
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of layers")


# Group → flag → argparse's arguments. A method's group is named as its --train_type.
FLAGS = {
    "model": {
        "model_name_or_path": {
            "required": True,
            "metavar": "DIR",
            "help": "Directory of the base model in the official layout: config.json, tokenizer files, weights.",
        },
        "mode": {"default": "glm2", "help": "Generation of the base: ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B."},
    },
    "data": {
        "train_path": {
            "default": "",
            "metavar": "FILE",
            "help": "Files of training records, separated by commas, in any format of docs/data.md.",
        },
        "dataset": {
            "default": None,
            "metavar": "NAMES",
            "help": "Training records by their names in dataset_info.json, separated by commas, beside --train_path.",
        },
        "dataset_dir": {"default": "data", "metavar": "DIR", "help": "Directory of dataset_info.json."},
        "prompt_column": {
            "default": None,
            "metavar": "KEY",
            "help": "Key of the question, where it is none of the usual ones.",
        },
        "response_column": {"default": None, "metavar": "KEY", "help": "Key of the answer, such as chosen."},
        "history_column": {"default": None, "metavar": "KEY", "help": "Key of the earlier turns (by default history)."},
        "source_prefix": {"default": "", "metavar": "TEXT", "help": "Put this text in front of every question."},
        "loss_on": {
            "default": "all",
            "help": "In a conversation, learn all of the assistant's messages or the last one.",
        },
        "max_len": {"type": int, "default": 1024, "help": "Longest row in tokens: prompt, answer and special tokens."},
        "max_src_len": {"type": int, "default": 256, "help": "Longest prompt in tokens; what is longer gets cut."},
        "is_skip": {"action": "store_true", "help": "Drop the records that would be cut, instead of cutting them."},
        "data_cache_dir": {
            "default": None,
            "metavar": "DIR",
            "help": "Where tokenised data is kept for the next run (by default chatglm-finetuning under "
            "$XDG_CACHE_HOME or ~/.cache; under the temporary directory where these cannot be written).",
        },
    },
    "training": {
        "train_type": {"default": "lora", "help": "What is trained: some layers, a prefix, LoRA matrices, everything."},
        "per_device_train_batch_size": {"type": int, "default": 16, "help": "Records in a micro-batch of one rank."},
        "gradient_accumulation_steps": {"type": int, "default": 1, "help": "Micro-batches in an optimiser step."},
        "num_train_epochs": {
            "type": float,
            "default": 1,
            "help": "Number of training epochs; a fraction ends within an epoch, at a whole step (rounded up).",
        },
        "max_steps": {
            "type": int,
            "default": None,
            "help": "Optimiser steps of the run, instead of --num_train_epochs.",
        },
        "learning_rate": {"type": float, "default": 1e-3, "help": "Highest learning rate, reached after the warm-up."},
        "weight_decay": {"type": float, "default": 0.1, "help": "Decoupled weight decay of AdamW."},
        "warmup_ratio": {"type": float, "default": 0.1, "help": "Fraction of steps used for linear warm-up."},
        "warmup_steps": {
            "type": float,
            "default": None,
            "help": "Number of warm-up steps; takes precedence over --warmup_ratio. Below 1: a fraction of all steps.",
        },
        "lr_scheduler_type": {
            "default": "cosine",
            "help": "Learning-rate schedule after the warm-up, as in transformers; constant has the warm-up, too.",
        },
        "max_grad_norm": {"type": float, "default": 1.0, "help": "Clip the gradient to this L2 norm; 0 does not clip."},
        "precision": {
            "default": "auto",
            "help": "Number format of model and gradients. auto: fp32 on a CPU; on a GPU what the DeepSpeed file "
            "enables, else bf16 where the GPU has it, else fp16.",
        },
        "gradient_checkpointing": {
            "action": "store_true",
            "help": "Compute activations again in the backward pass: less memory, more time.",
        },
        "checkpoint_layers": {
            "type": layer_count,
            "default": "auto",
            "metavar": "auto|N",
            "help": "With --gradient_checkpointing: layers computed again; auto: as few as fit into memory.",
        },
        "packing": {
            "action": "store_true",
            "help": "Fill rows of --max_len with several records each, none of which sees another; "
            "--per_device_train_batch_size then counts rows.",
        },
        "share_prompts": {
            "type": boolean,
            "nargs": "?",
            "const": True,
            "default": True,
            "metavar": "True|False",
            "help": "Compute the beginning that prompts of a micro-batch have in common once (not with glm).",
        },
        "cache_frozen_features": {
            "action": "store_true",
            "help": "With freeze: run the frozen layers once for each record, keep what they make of it on disk, and "
            "train the upper layers on that.",
        },
        "attn_implementation": {
            "default": "auto",
            "help": "Attention among the records of a row: sdpa, one after the other; varlen, all in one kernel of "
            "flash attention (a GPU with bf16 or fp16); auto: varlen where it runs.",
        },
        "torch_compile": {
            "action": "store_true",
            "help": "Compile the layers: fewer kernels and less memory, behind a slow start (not with ZeRO-3).",
        },
        "dataloader_num_workers": {
            "type": int,
            "default": None,
            "help": "Number of background threads per rank that prepare batches (default: 1 with a GPU, else 0).",
        },
        "seed": {"type": int, "default": 1234, "help": "Seed of the order of records, dropout and new weights."},
        "ds_file": {
            "default": "ds_zero2_no_offload.json",
            "metavar": "FILE",
            "help": "DeepSpeed file: a path, or the name of one in ds_configs/.",
        },
        "local_rank": {"type": int, "default": -1, "help": "Set by the deepspeed launcher."},
    },
    "output": {
        "output_dir": {
            "default": None,
            "metavar": "DIR",
            "help": "Where checkpoints, metrics.jsonl, TensorBoard files and the loss curve go; needed.",
        },
        "report_to": {
            "type": names,
            "default": "tensorboard",
            "metavar": "NAMES",
            "help": "Trackers that get the metrics, separated by commas: tensorboard, wandb, swanlab, mlflow; or none.",
        },
        "show_loss_step": {"type": int, "default": 10, "help": "Steps between two lines of metrics."},
        "save_model_step": {
            "type": int,
            "default": None,
            "help": "Steps between two checkpoints; there is always one at the end of an epoch.",
        },
        "save_state_step": {
            "type": int,
            "default": None,
            "help": "Steps between two resume states (by default one with each checkpoint).",
        },
        "resume_from_checkpoint": {
            "default": "auto",
            "metavar": "auto|none|DIR",
            "help": "auto: resume from the newest state in output_dir, if any (checkpoints without a state are an "
            "error); none: from step 0, replacing what is there; or a directory.",
        },
        "save_total_limit": {"type": int, "default": None, "help": "Keep this many checkpoints, the newest ones."},
    },
    "evaluation": {
        "dev_path": {"default": None, "metavar": "FILE", "help": "Records that are not learnt, to evaluate on."},
        "eval_step": {
            "type": int,
            "default": None,
            "help": "Steps between two evaluations; there is always one at the end of an epoch.",
        },
        "eval_metric": {
            "default": "dev_loss",
            "help": "What tells the best step: the loss over --dev_path, or a score of generated answers.",
        },
        "eval_samples": {
            "type": int,
            "default": 64,
            "help": "Records of --dev_path, and of --probe_path, that are answered where --eval_metric is a score.",
        },
        "task_key": {
            "default": None,
            "metavar": "KEY",
            "help": "Key of a record that names its task (instruction does, too): a score for each task as well.",
        },
        "early_stopping_patience": {
            "type": int,
            "default": None,
            "help": "Stop after this many evaluations in a row without a better one.",
        },
        "probe_path": {
            "default": None,
            "metavar": "FILE",
            "help": "Records of other tasks, evaluated before training and then beside --dev_path: what is forgotten.",
        },
        "replay_path": {
            "default": None,
            "metavar": "FILE",
            "help": "General records to learn beside the task, against forgetting.",
        },
        "replay_ratio": {
            "type": float,
            "default": 0.1,
            "help": "Records of --replay_path in an epoch, as a share of those of --train_path.",
        },
    },
    "safety": {
        "dry_run": {
            "action": "store_true",
            "help": "Check all records, show lengths, steps and the memory needed, and leave; no weight is read.",
        },
        "gpu_memory": {
            "type": float,
            "default": None,
            "help": "With --dry_run: GiB of one card; suggests flags that fit. Memory is then estimated for GPUs.",
        },
        "on_nonfinite": {
            "default": "stop",
            "help": "After a step whose loss or gradient is not finite (it is never applied): stop, or skip it.",
        },
        "timeout_minutes": {
            "type": float,
            "default": 30.0,
            "help": "Stop when the ranks have waited this long for one of them, and say for which.",
        },
    },
    "lora": {
        "lora_dim": {"type": int, "default": 8, "help": "Rank of the LoRA matrices."},
        "lora_alpha": {"type": int, "default": 30, "help": "LoRA scale: the update counts alpha / dim times."},
        "lora_dropout": {"type": float, "default": 0.1, "help": "Dropout on what goes into the LoRA matrices."},
        "lora_module_name": {
            "type": names,
            "default": "query_key_value",
            "metavar": "NAMES",
            "help": "Linear modules with LoRA matrices, separated by commas; all-linear: all but the output layer.",
        },
        "lora_variant": {
            "default": "lora",
            "help": "How the LoRA matrices start, are scaled and learn; docs/methods.md compares the variants.",
        },
        "loraplus_lr_ratio": {
            "type": float,
            "default": 16.0,
            "help": "With --lora_variant loraplus: the B matrices learn at this many times the rate.",
        },
        "adalora_target_r": {
            "type": int,
            "default": 4,
            "help": "With --lora_variant adalora: the average rank at the end; --lora_dim is that of the start.",
        },
        "modules_to_save": {
            "type": names,
            "default": None,
            "metavar": "NAMES",
            "help": "Modules that are trained whole beside the LoRA matrices, such as word_embeddings, separated by "
            "commas.",
        },
    },
    "freeze": {
        "freeze_module_name": {
            "type": names,
            "default": "layers.27.",
            "metavar": "NAMES",
            "help": "Parts of names of the parameters that are trained, separated by commas; all others are frozen.",
        },
        "freeze_last_n": {
            "type": int,
            "default": None,
            "help": "Train the last N layers, instead of --freeze_module_name.",
        },
    },
    "ptuning": {
        "pre_seq_len": {"type": int, "default": 16, "help": "Trained positions in front of the prompt."},
        "prefix_projection": {
            "type": boolean,
            "nargs": "?",
            "const": True,
            "default": True,
            "metavar": "True|False",
            "help": "Whether an MLP makes the prefix; without it the prefix is trained as it is, in the same layers.",
        },
        "prefix_layers": {
            "default": "all",
            "help": "all: keys and values in every layer; embedding: vectors in front of the embeddings only.",
        },
    },
    "quantization": {
        "quantization_bit": {
            "type": int,
            "choices": (8, 4),
            "default": None,
            "help": "Quantize the frozen base of lora or ptuning to this many bits while loading (needs bitsandbytes).",
        },
        "double_quantization": {
            "action": "store_true",
            "help": "With --quantization_bit 4: round the scales as well, which saves 0.37 bits a value.",
        },
    },
    "start": {
        "init_adapter": {
            "default": None,
            "metavar": "DIR",
            "help": "Go on from this LoRA adapter or P-Tuning prefix instead of from new values.",
        },
    },
    "accepted and ignored": {
        "deepspeed": {"action": "store_true", "help": "Nothing: training always runs on DeepSpeed."},
        "deepspeed_config": {"default": None, "metavar": "FILE", "help": "Nothing: the DeepSpeed file is --ds_file."},
    },
}

# flag: (lower bound, is it allowed, upper bound, is it allowed)
BOUNDS = {
    "max_len": (16, True, math.inf, False),  # below that no template leaves room for an answer
    "max_src_len": (1, True, math.inf, False),
    "per_device_train_batch_size": (1, True, math.inf, False),
    "gradient_accumulation_steps": (1, True, math.inf, False),
    "num_train_epochs": (0, False, 2**31, False),
    "max_steps": (1, True, math.inf, False),
    "learning_rate": (0, False, math.inf, False),
    "weight_decay": (0, True, math.inf, False),
    "warmup_ratio": (0, True, 1, True),
    "warmup_steps": (0, True, 2**31, False),
    "max_grad_norm": (0, True, math.inf, False),
    "dataloader_num_workers": (0, True, 64, True),
    "seed": (0, True, 2**32, False),
    "show_loss_step": (1, True, math.inf, False),
    "save_model_step": (1, True, math.inf, False),
    "save_state_step": (1, True, math.inf, False),
    "save_total_limit": (1, True, math.inf, False),
    "eval_step": (1, True, math.inf, False),
    "eval_samples": (1, True, math.inf, False),
    "early_stopping_patience": (1, True, math.inf, False),
    "replay_ratio": (0, False, math.inf, False),
    "gpu_memory": (0, False, math.inf, False),
    "timeout_minutes": (0, False, math.inf, False),
    "lora_dim": (1, True, math.inf, False),
    "lora_alpha": (0, False, math.inf, False),
    "lora_dropout": (0, True, 1, False),
    "loraplus_lr_ratio": (0, False, math.inf, False),
    "adalora_target_r": (1, True, math.inf, False),
    "freeze_last_n": (1, True, math.inf, False),
    "pre_seq_len": (1, True, math.inf, False),
    "quantization_bit": (4, True, 8, True),
}
