"""Advice about options of other tools that have no counterpart here: advice -> their names."""

ALWAYS = "leave it out, train.py always does so"
UNUSED = "leave it out, it has no counterpart here"
LAUNCHER = "give it to the launcher, before train.py (deepspeed --num_gpus 2 train.py …)"
TRAIN_ADVICE = {
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
    "leave it out, with --dev_path the best checkpoint is kept in OUTPUT_DIR/best": "load_best_model_at_end save_best",
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
}
PREDICT_ADVICE = {
    "leave it out, the generation is read from the base": "model_type template",
    "leave it out, no code of a model directory is run": "trust_remote_code",
}
MERGE_ADVICE = {
    "leave it out, merging runs on the CPU": "device device_map export_device",
    "leave it out, no code of a model directory is run": "trust_remote_code",
    "leave it out, the generation is read from the base": "finetuning_type model_type template",
}
SERVE_ADVICE = {
    "leave it out, the generation is read from the base": "chat_template model_type template",
    "leave it out, no code of a model directory is run": "trust_remote_code",
    "leave it out, models without tools refuse them": "enable_auto_tool_choice tool_call_parser",
    "leave it out, --lora is enough": "enable_lora max_lora_rank max_loras",
    "leave it out, one process uses one device": "data_parallel_size dp_size pipeline_parallel_size pp_size "
    "tensor_parallel_size tp_size workers",
    "leave it out, a request has its own": "seed",
    UNUSED: "block_size disable_log_requests disable_log_stats enable_chunked_prefill enable_prefix_caching "
    "enforce_eager max_num_batched_tokens swap_space uvicorn_log_level",
}
CHAT_ADVICE = {
    **PREDICT_ADVICE,
    "use --do_sample, --temperature and --top_p, or /set in the chat": "sampling",
    "leave it out, /load reads a conversation": "history history_file",
    "write it in the chat or to standard input": "input instruction prompt query question",
}
WEBUI_ADVICE = {
    "set CUDA_VISIBLE_DEVICES, or choose devices on the page": "device device_map gpu_ids",
    "choose a model on the page": "base_model checkpoint model model_name_or_path model_path",
    "leave it out, nothing leaves this machine": "share",
    "leave it out, any path works behind a reverse proxy": "root_path",
    "use a reverse proxy for HTTPS": "ssl_certfile ssl_keyfile ssl_keyfile_password",
    UNUSED: "debug enable_queue inbrowser max_threads quiet show_error theme",
}
