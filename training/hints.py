"""What to use instead of an option that our programs do not have: from tables of other tools' names, then by spelling.

The names are those of transformers' TrainingArguments, peft's LoraConfig, LLaMA-Factory, swift, alpaca-lora, FastChat,
the official ChatGLM scripts and their forks of 2023.
"""

import argparse
import difflib
import re
from collections.abc import Iterator

# program → our option (with a value where the other tool's name implies one) → names elsewhere
RENAMED = {
    "train.py": {
        "--model_name_or_path": "model model_dir model_id model_id_or_path model_name model_path base_model "
        "base_model_name_or_path base_model_path llm_path pretrained_model pretrained_model_name_or_path",
        "--mode": "chatglm_version model_type model_version version",
        "--train_path": "custom_train_dataset_path data_file data_path dataset_path train_data train_data_file "
        "train_data_path train_dataset train_file train_files training_data training_file",
        "--dataset": "dataset_name datasets",
        "--dataset_dir": "data_dir",
        "--prompt_column": "input_column prompt_key question_column source_column",
        "--response_column": "answer_column output_column response_key target_column",
        "--max_len": "block_size cutoff_len max_length max_seq_len max_seq_length max_sequence_length "
        "model_max_length seq_len seq_length",
        "--max_src_len": "max_input_length max_prompt_length max_source_length max_src_length",
        "--data_cache_dir": "cache_dir cache_path data_cache dataset_cache_dir tokenized_path",
        "--train_type": "finetune_type finetuning_type method peft_type sft_type train_method tuner_type tuning_type",
        "--train_type lora": "use_lora use_peft",
        "--per_device_train_batch_size": "batch_size micro_batch_size per_device_batch_size per_gpu_train_batch_size "
        "train_batch_size train_micro_batch_size_per_gpu",
        "--gradient_accumulation_steps": "accumulate_grad_batches accumulation_steps grad_accum_steps "
        "gradient_accumulation",
        "--num_train_epochs": "epoch epochs max_epochs n_epochs num_epoch num_epochs train_epochs",
        "--max_steps": "max_iters max_train_steps num_train_steps total_steps train_iters train_steps",
        "--learning_rate": "lr",
        "--weight_decay": "wd",
        "--warmup_ratio": "warmup_proportion",
        "--warmup_steps": "lr_warmup_steps num_warmup_steps warmup_iters warmup_step",
        "--lr_scheduler_type": "lr_decay_style lr_schedule lr_scheduler scheduler scheduler_type",
        "--max_grad_norm": "clip_grad clip_grad_norm grad_clip gradient_clipping",
        "--precision": "compute_dtype dtype mixed_precision torch_dtype",
        "--precision bf16": "bf16 pure_bf16",
        "--precision fp16": "fp16 half pure_fp16",
        "--precision fp32": "fp32",
        "--gradient_checkpointing": "activation_checkpointing checkpoint_activations gradient_checkpoint "
        "use_gradient_checkpointing",
        "--packing": "neat_packing pack sample_packing",
        "--attn_implementation": "attn_impl flash_attention flash_attn use_flash_attention use_flash_attn",
        "--torch_compile": "compile use_compile",
        "--dataloader_num_workers": "num_workers",
        "--seed": "data_seed random_seed",
        "--ds_file": "deepspeed_config_file deepspeed_file ds_config ds_config_file ds_config_path",
        "--ds_file ds_zero2_offload.json": "cpu_offload offload offload_optimizer",
        "--output_dir": "checkpoint_path output output_path save_dir save_path",
        "--show_loss_step": "log_every log_interval log_steps logging_step logging_steps print_freq",
        "--save_model_step": "checkpoint_interval checkpointing_steps save_every save_freq save_interval save_step "
        "save_steps",
        "--save_total_limit": "keep_last max_checkpoints max_to_keep",
        "--resume_from_checkpoint": "load_checkpoint resume resume_from resume_path resume_training",
        "--resume_from_checkpoint none": "overwrite_output_dir",
        "--report_to": "log_with logger logging_backend tracker trackers",
        "--report_to wandb": "use_wandb wandb",
        "--report_to swanlab": "use_swanlab",
        "--report_to tensorboard": "use_tensorboard",
        "--dev_path": "dev_file eval_data_path eval_dataset eval_file eval_path val_data val_file val_path "
        "valid_file validation_data validation_file validation_path",
        "--eval_step": "eval_interval eval_steps evaluation_steps validation_steps",
        "--eval_metric": "metric metric_for_best_model metrics",
        "--eval_samples": "max_eval_samples num_eval_samples",
        "--early_stopping_patience": "early_stop early_stopping patience",
        "--lora_dim": "lora_attention_dim lora_r lora_rank r rank",
        "--lora_alpha": "alpha lora_scale lora_scaling",
        "--lora_dropout": "lora_dropout_p",
        "--lora_module_name": "lora_modules lora_target lora_target_module lora_target_modules lora_trainable "
        "target_modules",
        "--lora_variant dora": "use_dora",
        "--lora_variant rslora": "use_rslora",
        "--lora_variant pissa": "pissa_init",
        "--lora_variant": "init_lora_weights",
        "--loraplus_lr_ratio": "lora_plus_lr_ratio lorap_lr_ratio",
        "--adalora_target_r": "target_r",
        "--modules_to_save": "additional_target lora_modules_to_save",
        "--freeze_module_name": "freeze_trainable_modules name_module_trainable trainable_modules",
        "--freeze_last_n": "freeze_trainable_layers num_layer_trainable num_trainable_layers",
        "--pre_seq_len": "num_virtual_tokens prefix_len prefix_length prompt_length",
        "--init_adapter": "adapter adapter_name_or_path adapter_path checkpoint_dir lora_checkpoint lora_model_path "
        "lora_path lora_weights peft_model_path peft_path ptuning_checkpoint resume_lora_training",
        "--quantization_bit": "bits quant_bits quantization_bits",
        "--quantization_bit 8": "load_in_8bit use_int8_training",
        "--quantization_bit 4": "load_in_4bit q_lora qlora use_qlora",
        "--double_quantization": "bnb_4bit_use_double_quant double_quant use_double_quant",
        "--on_nonfinite": "logging_nan_inf_filter",
        "--timeout_minutes": "ddp_timeout",
    },
    "predict.py": {
        "--model_path": "adapter adapter_name_or_path adapter_path checkpoint checkpoint_dir checkpoint_path ckpt_path "
        "lora_model_path lora_path lora_weights model model_name model_name_or_path peft_model_path peft_path",
        "--base_model": "base_model_name_or_path base_model_path",
        "--instruction": "prompt query question text",
        "--input": "context",
        "--test_path": "data_path dataset eval_file input_file input_path predict_file predict_path test_data "
        "test_dataset test_file train_path validation_file",
        "--output_path": "output output_dir output_file predictions_path result_path save_path",
        "--metrics": "eval_metric metric",
        "--batch_size": "eval_batch_size per_device_eval_batch_size predict_batch_size",
        "--max_new_tokens": "max_new_token max_output_length max_target_length max_tgt_len max_tokens "
        "val_max_target_length",
        "--max_src_len": "cutoff_len max_input_length max_seq_length max_source_length max_src_length",
        "--num_beams": "beam_size beam_width beams",
        "--repetition_penalty": "rep_penalty",
        "--temperature": "temp",
        "--seed": "random_seed",
        "--precision": "dtype torch_dtype",
        "--precision bf16": "bf16",
        "--precision fp16": "fp16 half",
        "--precision fp32": "fp32",
        "--quantization_bit": "bits quant_bits quantization_bits",
        "--quantization_bit 8": "load_in_8bit",
        "--quantization_bit 4": "load_in_4bit",
    },
    "merge_lora.py": {
        "--ori_model_dir": "base base_model base_model_name_or_path base_model_path base_path model model_name "
        "model_name_or_path model_path",
        "--model_dir": "adapter adapter_dir adapter_model adapter_name_or_path adapter_path checkpoint checkpoint_dir "
        "checkpoint_path lora_dir lora_model lora_model_path lora_path lora_weights peft_model_path peft_path",
        "--output_dir": "export_dir merged_dir output output_path save_dir save_path",
        "--max_shard_size": "export_size shard_size",
        "--precision": "dtype export_dtype torch_dtype",
        "--precision bf16": "bf16",
        "--precision fp16": "fp16 half",
        "--precision fp32": "fp32",
    },
}
ALWAYS = "leave it out, train.py always does so"
UNUSED = "leave it out, it has no counterpart here"
LAUNCHER = "give it to the launcher, before train.py (deepspeed --num_gpus 2 train.py …)"
# program → what to do → names elsewhere
EXPLAINED = {
    "train.py": {
        ALWAYS: "ddp_find_unused_parameters do_train drop_last group_by_length plot_loss use_deepspeed",
        UNUSED: "bf16_full_eval fp16_opt_level half_precision_backend ignore_pad_token_for_loss lora_bias "
        "max_train_samples num_proc overwrite_cache padding_side preprocessing_num_workers remove_unused_columns "
        "tf32 use_fast_tokenizer",
        "leave it out, train.py does supervised fine-tuning only": "stage",
        "hold out records yourself and give their file as --dev_path": "dev_ratio split split_ratio test_size "
        "val_ratio val_set_size val_size validation_ratio validation_split validation_split_percentage",
        "give --dev_path, and --eval_step N for more than one evaluation per epoch": "do_eval do_validation "
        "eval_strategy evaluation_strategy",
        "use --save_model_step N; there is always a checkpoint at the end of an epoch": "save_strategy",
        "use --show_loss_step N": "logging_first_step logging_strategy",
        "leave it out, with --dev_path the best checkpoint is kept in OUTPUT_DIR/best": "load_best_model_at_end "
        "save_best",
        "use --report_to tensorboard, which writes to OUTPUT_DIR/tensorboard": "logging_dir tensorboard_dir",
        "set the environment variable WANDB_PROJECT, SWANLAB_PROJECT or MLFLOW_EXPERIMENT_NAME": "experiment_name "
        "project swanlab_project wandb_project",
        "leave it out, the runs of a tracker are named after --output_dir": "run_name swanlab_run_name wandb_run_name",
        "use predict.py": "do_predict predict_with_generate",
        "leave it out, each generation has its own template": "prompt_template system template template_type",
        "use --max_len, which counts prompt and answer together": "max_answer_length max_output_length "
        "max_target_length max_tgt_len max_tgt_length",
        "shorten the file itself": "max_samples num_samples train_dataset_sample",
        "use --loss_on all or last; prompts are never trained on": "mask_history train_on_inputs train_on_prompt",
        "leave it out, no code of a model directory is run": "trust_remote_code",
        "leave it out, evaluation uses --per_device_train_batch_size": "eval_batch_size per_device_eval_batch_size "
        "per_gpu_eval_batch_size",
        "leave it out, the optimizer is AdamW with betas 0.9 and 0.95": "adam_beta1 adam_beta2 adam_epsilon optim "
        "optimizer optimizer_type",
        "use --ds_file ds_zero2_no_offload.json or ds_zero3_no_offload.json": "stage3 zero zero_stage",
        "leave it out, nothing is uploaded": "hub_model_id hub_token push_to_hub",
        "use --lora_variant loraplus with --loraplus_lr_ratio": "use_loraplus",
        "set CUDA_VISIBLE_DEVICES": "device device_map gpu_ids no_cuda use_cpu",
        LAUNCHER: "gpus hostfile include master_addr master_port nnodes node_rank nproc_per_node num_gpus num_nodes",
    },
    "predict.py": {
        "leave it out, the generation is read from the base": "model_type template",
        "leave it out, no code of a model directory is run": "trust_remote_code",
    },
    "merge_lora.py": {
        "leave it out, merging runs on the CPU": "device device_map export_device",
        "leave it out, no code of a model directory is run": "trust_remote_code",
        "leave it out, the generation is read from the base": "finetuning_type model_type template",
    },
}
LISTS = (
    *("train_path", "dev_path", "probe_path", "replay_path", "dataset", "lora_module_name", "freeze_module_name"),
    *("modules_to_save", "report_to", "metrics"),
)


def hint(program: str, flag: str, known: list[str]) -> str:
    """What to do about an option that does not exist.

    Args:
        flag: with its dashes. known: all options of the program, with theirs.
    """
    name = flag.lstrip("-").replace("-", "_").lower()
    if f"--{name}" in known:
        return f"use --{name}"
    for ours, theirs in RENAMED[program].items():
        if name in theirs.split():
            return f"use {ours}"
    for advice, theirs in EXPLAINED[program].items():
        if name in theirs.split():
            return advice
    longer = [one for one in known if one.startswith(f"--{name}")]
    near = longer if len(longer) == 1 else difflib.get_close_matches(f"--{name}", known, n=1)
    return f"did you mean {near[0]}?" if near else f"{program} --help lists all options"


def unknown_flags(words: list[str], known: dict[str, argparse.Action]) -> Iterator[str]:
    """The options on a command line, without their values, that are not known."""
    for word in words:
        if word == "--":
            return
        flag = word.split("=")[0]
        if re.fullmatch(r"--?[A-Za-z][^\s]*", flag) and flag not in known:
            yield flag


def stray_value(words: list[str], known: dict[str, argparse.Action]) -> tuple[str, str, list[str]] | None:
    """(value, the option before it or "", the values behind that) of the first value that belongs to no option."""
    flag, values = "", []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in known:
            flag, values = name, [value] if equals else []
        else:
            values.append(word)
        allowed = 0 if not flag or known[flag].nargs == 0 else 1
        if len(values) > allowed:
            rest = [*words[i + 1 :], "--"]
            return values[-1], flag, values + rest[: next(j for j, one in enumerate(rest) if one[:2] == "--")]
    return None


def describe_stray(program: str, value: str, flag: str, values: list[str]) -> str:
    """What to do about a value that belongs to no option; see `stray_value`."""
    name = flag.removeprefix("--")
    if name == "deepspeed":
        return f"--deepspeed takes no value: use --ds_file {value}"
    if name in LISTS:
        return f"{flag} takes one value: separate names by commas ({flag} {','.join(values)})"
    if flag and len(values) == 1:  # a switch
        off = value.lower() in ("false", "no", "0", "none")
        return f"{flag} takes no value: leave out {f'{flag} and ' if off else ''}{value}"
    quoting = f"{flag} takes one value: put it in quotation marks if it holds blanks" if flag else "leave it out"
    return f"{value} belongs to no option: {quoting} ({program} --help lists all options)"
