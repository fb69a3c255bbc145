"""trl's SFTTrainer on transformers' GlmForCausalLM, the architecture of ChatGLM2 and ChatGLM3.

python benchmarks/trl_side.py --mode glm3 --train_type lora --model_name_or_path BASE --rows rows.json \
    --output_dir /tmp/trl --order by_length

Takes the weights of our base: query_key_value is cut into three, the rest is renamed. Settings that are best on a CPU:
float32, no recomputing unless asked, fused AdamW, completion-only loss through ready labels, rows in order of length.
Its length grouping sorts groups of up to 50 batches; --order by_length does that with all rows of the run, so that a
run of few steps pads as little as a long one. Not used: packing and padding-free batches, which need flash attention
(with sdpa on a CPU, rows would see one another). On a CPU its loss makes the logits of all positions, in tiles that
backward makes once more; only on a GPU does it leave out what is not supervised.

--order given takes the batches as they are: the losses are then those of train.py, for `all` to rounding; for `lora`
from the second step on about, because three matrices A stand in the place of one.

Writes metrics.jsonl: step, epoch, loss, tokens_per_second (padding is not counted), peak_memory_bytes.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark  # noqa: E402
from benchmarks.sides import SideOptions, in_order, write_step  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from modes import MODES  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class TrlOptions(SideOptions):
    """What trl trains, and in which order."""

    TITLE: ClassVar[str] = "training"

    mode: str | None = flag(
        None, help="Generation of the base.", zh="基座是哪一代。", choices=("glm2", "glm3"), required="the generation"
    )
    train_type: str | None = flag(None, help="Method.", zh="训练方法。", choices=("lora", "all"), required="the method")
    order: str = flag(
        "by_length",
        help="Rows of like length in a batch, or batches as given.",
        zh="把长度相近的行放进一批，或保持给定的批次。",
        choices=("by_length", "given"),
    )
    gradient_checkpointing: bool = flag(False, help="Recompute activations during backward.", zh="反向时重算激活值。")


PROGRAM = benchmark(__file__, __doc__, TrlOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import torch  # noqa: E402
from transformers import GlmConfig, GlmForCausalLM, TrainerCallback  # noqa: E402

from modes.directory import iterate_shards, read_base  # noqa: E402

# our names -> those of GlmForCausalLM
WHOLE = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
PARTS = {
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}


def glm_config(config) -> GlmConfig:
    """The config of a ChatGLM2 or ChatGLM3 base in GlmForCausalLM's keys."""
    base, divisor = config.rotary_scale
    assert divisor == 1, "a long release of ChatGLM2, which this benchmark does not have"
    rope = {"rope_type": "default", "rope_theta": float(base), "partial_rotary_factor": 0.5}
    return GlmConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        rms_norm_eps=config.layernorm_epsilon,
        max_position_embeddings=config.seq_length,
        rope_parameters=rope,
        attention_bias=config.add_qkv_bias,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        tie_word_embeddings=False,
    )


def renamed(config, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One of our tensors under the names of GlmForCausalLM: three for query_key_value, one for any other.

    Raises:
        KeyError: a tensor that it has not, such as a prefix.
    """
    if name in WHOLE:
        return {WHOLE[name]: tensor}
    layer, _, part = name.removeprefix("transformer.encoder.layers.").partition(".")
    module, _, kind = part.rpartition(".")
    start = f"model.layers.{layer}."
    if module != "self_attention.query_key_value":
        return {f"{start}{PARTS[module]}.{kind}": tensor}
    sizes = [config.num_attention_heads, config.multi_query_group_num, config.multi_query_group_num]
    cut = tensor.split([size * config.kv_channels for size in sizes])
    return {f"{start}self_attn.{letter}_proj.{kind}": piece for letter, piece in zip("qkv", cut, strict=True)}


def load(mode: str, path: Path | str) -> GlmForCausalLM:
    """A base of ours as GlmForCausalLM in float32."""
    config = MODES[mode].config_class.from_pretrained(path)
    model = GlmForCausalLM(glm_config(config)).to(torch.float32)
    weights = {}
    for _, tensors in iterate_shards(read_base(path)):
        for name, tensor in tensors.items():
            if not name.endswith("inv_freq"):
                weights |= {new: part.float() for new, part in renamed(config, name, tensor).items()}
    model.load_state_dict(weights)
    return model


class Log(TrainerCallback):
    """Writes a row of metrics.jsonl after every step; what logging takes is not counted."""

    def __init__(self, file, tokens: list[int]):
        self.file, self.tokens, self.started, self.seconds = file, tokens, 0.0, 0.0

    def on_train_begin(self, args, state, control, **_):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.started

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs:
            write_step(self.file, state.global_step, logs["loss"], self.tokens[state.global_step - 1] / self.seconds)
        self.started = time.perf_counter()


def settings_of(options: TrlOptions, steps: list):
    """trl's settings for these steps."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=f"{options.output_dir}/trainer",
        per_device_train_batch_size=len(steps[0][0]),
        gradient_accumulation_steps=len(steps[0]),
        num_train_epochs=1,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(options.warmup_ratio * len(steps)),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",  # the rows are in order already
        gradient_checkpointing=options.gradient_checkpointing,
        use_cpu=True,
        bf16=False,
        max_length=None,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the rows of a file, and write metrics.jsonl."""
    options = section(TrlOptions, read_command_line(PROGRAM, argv))
    from datasets import Dataset  # trl is an extra: --help works without it
    from peft import LoraConfig
    from trl import SFTTrainer

    given, output_dir = json.loads(Path(options.rows).read_text()), Path(options.output_dir)
    steps = in_order(given["steps"], options.order, options.seed)
    tokens = [sum(len(row["input_ids"]) for batch in step for row in batch) for step in steps]
    rows = [row for step in steps for batch in step for row in batch]
    lora = LoraConfig(
        r=options.lora_dim,
        lora_alpha=options.lora_alpha,
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / "metrics.jsonl").open("w") as file:
        trainer = SFTTrainer(
            model=load(options.mode, options.model_name_or_path),
            args=settings_of(options, steps),
            train_dataset=Dataset.from_list(rows),
            processing_class=MODES[options.mode].tokenizer_class.from_pretrained(options.model_name_or_path),
            peft_config=lora if options.train_type == "lora" else None,
            callbacks=[Log(file, tokens)],
        )
        trainer.train()


if __name__ == "__main__":
    run_program(main)
