"""Create a tiny random base model in the exact official layout, to try everything on a laptop.

    python scripts/make_tiny_base.py --mode glm3 --output_dir tiny-glm3
    python scripts/make_tiny_base.py --mode glm --output_dir tiny-glm --hidden_size 64 --train_text my.json

It has config.json with the official keys, tokenizer files (trained here, on the sample sets or on --train_text) and
weights, by default in half precision. They are random and untrained: fine-tune the base with --train_type all.
"""

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, run_program  # noqa: E402
from flags import flag  # noqa: E402
from modes import GENERATIONS, MODES  # noqa: E402
from options.parser import Program, read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class BaseOptions:
    """The base to create."""

    TITLE: ClassVar[str] = "base"

    mode: str | None = flag(
        None, help="Generation of the layout.", zh="哪一代的布局。", choices=GENERATIONS, required="the generation"
    )
    output_dir: str = flag(
        "",
        help="Path to a directory that does not exist or is empty.",
        zh="不存在或为空的目录。",
        metavar="DIR",
        required="a directory that does not exist or is empty",
    )
    train_text: str | None = flag(
        None,
        help="Paths to files of records that the tokenizer is trained on, separated by commas (default: the sample "
        "sets).",
        zh="训练分词器的数据文件，用逗号分隔（默认是自带的样例数据）。",
        metavar="FILE",
        several=True,
    )
    vocab_size: int | None = flag(
        None,
        help="Number of sentencepiece pieces, bytes included (default: 1400 for glm, else 1300).",
        zh="sentencepiece 的词表大小，含字节（默认：glm 为 1400，其余为 1300）。",
        at_least=1,
    )
    hidden_size: int = flag(128, help="Hidden size.", zh="隐藏层大小。", at_least=1)
    num_layers: int = flag(4, help="Number of layers.", zh="层数。", at_least=1)
    num_attention_heads: int | None = flag(
        None,
        help="Number of attention heads (default: 2 for glm, else 4).",
        zh="注意力头数（默认：glm 为 2，其余为 4）。",
        at_least=1,
    )
    multi_query_group_num: int = flag(
        2, help="Number of key/value heads (glm2, glm3).", zh="键值头的个数（glm2、glm3）。", at_least=1
    )
    ffn_hidden_size: int | None = flag(
        None,
        help="Hidden size of the MLP (default: 4 times hidden_size for glm, else twice).",
        zh="MLP 的隐藏层大小（默认：glm 为 hidden_size 的 4 倍，其余为 2 倍）。",
        at_least=1,
    )
    seq_length: int = flag(2048, help="Maximum sequence length in the config.", zh="配置里的最大序列长度。", at_least=1)
    std: float = flag(0.08, help="Standard deviation of the random matrices.", zh="随机矩阵的标准差。", above=0)
    embedding_std: float | None = flag(
        None,
        help="Standard deviation of the word embeddings (default: 0.05 for glm, else 0.5).",
        zh="词嵌入的标准差（默认：glm 为 0.05，其余为 0.5）。",
        above=0,
    )
    output_std: float | None = flag(
        None,
        help="Standard deviation of the matrices that end attention and MLP (default: 0.5 for glm, else 0.08).",
        zh="注意力和 MLP 输出矩阵的标准差（默认：glm 为 0.5，其余为 0.08）。",
        above=0,
    )
    dtype: str = flag(
        "float16", help="Data type of the weights.", zh="权重的数据类型。", choices=("float16", "bfloat16", "float32")
    )
    shards: int = flag(2, help="Number of weight files.", zh="权重文件的个数。", at_least=1)
    format: str = flag("bin", help="Format of the weight files.", zh="权重文件的格式。", choices=("bin", "safetensors"))
    seed: int = flag(1234, help="Seed of the random weights.", zh="随机权重的种子。", at_least=0)


PROGRAM = Program(name="make_tiny_base.py", description=__doc__.split("\n")[0], sections=(BaseOptions,))

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import sentencepiece  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2  # noqa: E402

from conversation import messages_of  # noqa: E402
from data.records import read_records  # noqa: E402
from data.sources import split_paths  # noqa: E402
from files import write_json  # noqa: E402

SAMPLES = ["data/spo_0.json", "data/samples/reviews_train.json"]
HUB_NAMES = {"glm": "THUDM/chatglm-6b", "glm2": "THUDM/chatglm2-6b", "glm3": "THUDM/chatglm3-6b"}
TOKENIZER_FILES = {"glm": "ice_text.model", "glm2": "tokenizer.model", "glm3": "tokenizer.model"}
# Ids 4 to 92 of the official ChatGLM-6B vocabulary without its 20,000 image tokens.
GLM_PIECES = [
    "<n>",
    "<|tab|>",
    *(f"<|blank_{i}|>" for i in range(2, 81)),
    *("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"),
]
GLM_COMMANDS = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]"}
# Initialization with which a model of this size trains fastest. ChatGLM-6B multiplies its residual by sqrt(56) and ties
# its embeddings: its layers need larger outputs, and large embeddings would make its logits huge.
# The vocabulary is just large enough for the words of the sample sets: a larger one has pieces of two words each.
VOCAB_SIZE = {"glm": 1400, "glm2": 1300, "glm3": 1300}
HEADS = {"glm": 2, "glm2": 4, "glm3": 4}
EMBEDDING_STD = {"glm": 0.05, "glm2": 0.5, "glm3": 0.5}
OUTPUT_STD = {"glm": 0.5, "glm2": 0.08, "glm3": 0.08}
COMMANDS = 16  # ids of ChatGLM2's and 3's commands and roles after the pieces, rounded up
VOCAB_MULTIPLE = 64


def train_tokenizer(mode: str, paths: list[str], vocab_size: int) -> bytes:
    """A serialized sentencepiece model of the records' texts, with the special pieces of the mode."""
    template = re.sub(r"<\|\w+\|>", "", MODES[mode].template)  # roles are ids after the pieces, never text
    texts = []
    for path in paths:
        for _, record in read_records(path, require_output=False):
            questions, answers = [], []
            for message in messages_of(MODES[mode].written(record)):
                (answers if message["role"] == "assistant" else questions).append(message["content"])
            texts += [template.format(instruction=question, input="") for question in questions] + (answers or [""])
    if mode == "glm":
        special = {"pad_id": 3, "user_defined_symbols": GLM_PIECES}
    else:
        special = {"pad_id": -1, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    lines = [line for text in texts for line in text.split("\n") if line]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines + sorted(set("".join(texts)) - {"\n"})),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            required_chars="▁",
            add_dummy_prefix=False,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            num_threads=1,
            minloglevel=2,
            **special,
        )
    except RuntimeError as error:
        raise UserError(f"--vocab_size {vocab_size} does not suit the text of {paths[0]} ({error}).") from None
    # The official space before every text is enabled only now: it stays a separate piece, so a word is the same piece
    # at the start of an answer and inside its question, which a model this small needs to copy it.
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.add_dummy_prefix = True
    return proto.SerializeToString()


def make_config(options: BaseOptions, num_pieces: int) -> dict:
    """config.json as on the hub, with this model's sizes."""
    names = ["ChatGLMConfig", "ChatGLMForConditionalGeneration"]
    common = {
        "_name_or_path": HUB_NAMES[options.mode],
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": f"configuration_chatglm.{names[0]}",
            "AutoModel": f"modeling_chatglm.{names[1]}",
            "AutoModelForSeq2SeqLM": f"modeling_chatglm.{names[1]}",
        },
        "torch_dtype": options.dtype,
        "num_layers": options.num_layers,
        "hidden_size": options.hidden_size,
        "num_attention_heads": options.num_attention_heads,
        "layernorm_epsilon": 1e-05,
        "use_cache": True,
    }
    if options.mode == "glm":
        vocab_size = -(-num_pieces // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        ids = {f"{name}_token_id": 4 + GLM_PIECES.index(piece) for name, piece in GLM_COMMANDS.items()}
        return common | ids | {
            "pad_token_id": 3,
            "vocab_size": vocab_size,
            "max_sequence_length": options.seq_length,
            "inner_hidden_size": options.ffn_hidden_size or 4 * options.hidden_size,
            "position_encoding_2d": True,
            "transformers_version": "4.23.1",
        }  # fmt: skip
    config = common | {
        "padded_vocab_size": -(-(num_pieces + COMMANDS) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        "seq_length": options.seq_length,
        "ffn_hidden_size": options.ffn_hidden_size or 2 * options.hidden_size,
        "kv_channels": options.hidden_size // options.num_attention_heads,
        "multi_query_attention": True,
        "multi_query_group_num": options.multi_query_group_num,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "bias_dropout_fusion": True,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "fp32_residual_connection": False,
        "tie_word_embeddings": False,
        "original_rope": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "transformers_version": "4.27.1" if options.mode == "glm2" else "4.30.2",
    }
    return config | ({"classifier_dropout": None} if options.mode == "glm3" else {})


def make_tokenizer_config(mode: str) -> dict:
    """tokenizer_config.json as on the hub."""
    config = {
        "name_or_path": HUB_NAMES[mode],
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    if mode == "glm":
        tokens = {"bos": "<sop>", "eos": "<eop>", "end": "</s>", "gmask": "[gMASK]", "mask": "[MASK]"}
        config |= {f"{name}_token": piece for name, piece in (tokens | {"pad": "<pad>", "unk": "<unk>"}).items()}
        config["num_image_tokens"] = 0
    return config


def make_weights(mode: str, config: dict, options: BaseOptions) -> dict[str, torch.Tensor]:
    """Random weights by official name; norms are 1 and biases 0, as in the model's initialization."""
    stds = {
        "word_embeddings.weight": options.embedding_std or EMBEDDING_STD[mode],
        "dense.weight": options.output_std or OUTPUT_STD[mode],
        "dense_4h_to_h.weight": options.output_std or OUTPUT_STD[mode],
    }
    model = MODES[mode].model_class(MODES[mode].config_class(**config))
    generator = torch.Generator().manual_seed(options.seed)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied: both names are in official files
            weights[name] = weights["transformer.word_embeddings.weight"].clone()
            continue
        if tensor.ndim > 1:
            std = next((stds[end] for end in stds if name.endswith(end)), options.std)
            tensor = torch.randn(tensor.shape, generator=generator) * std
        weights[name] = tensor.to(getattr(torch, options.dtype))
    return weights


def save_weights(directory: Path, weights: dict[str, torch.Tensor], shards: int, file_format: str) -> None:
    """`shards` files of about the same number of tensors, and their index."""
    stem, end = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}[file_format]
    names, weight_map = list(weights), {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.{end}"
        tensors = {name: weights[name] for name in part}
        if file_format == "bin":
            torch.save(tensors, directory / file)
        else:
            save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    write_json(directory / f"{stem}.{end}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def parse_options(argv: Sequence[str] | None = None) -> BaseOptions:
    """The command line, with the defaults of the generation.

    Raises:
        UserError: all its problems.
    """
    options = section(BaseOptions, read_command_line(PROGRAM, argv))
    return replace(
        options,
        train_text=options.train_text or ",".join(str(ROOT / name) for name in SAMPLES),
        vocab_size=options.vocab_size or VOCAB_SIZE[options.mode],
        num_attention_heads=options.num_attention_heads or HEADS[options.mode],
    )


def make_base(options: BaseOptions) -> None:
    """Write the base directory. Raises UserError for invalid options or directories."""
    heads, groups = options.num_attention_heads, options.multi_query_group_num
    if options.hidden_size % heads or options.hidden_size // heads % 4:
        raise UserError(
            f"--hidden_size {options.hidden_size} must be --num_attention_heads {heads} times a multiple of 4."
        )
    if options.mode != "glm" and heads % groups:
        raise UserError(f"--multi_query_group_num {groups} must divide --num_attention_heads {heads}.")
    directory = Path(options.output_dir)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"--output_dir {directory} exists already and is not empty; name another or remove it.")
    tokenizer = train_tokenizer(options.mode, split_paths(options.train_text), options.vocab_size)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).get_piece_size()
    config = make_config(options, pieces)
    weights = make_weights(options.mode, config, options)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / TOKENIZER_FILES[options.mode]).write_bytes(tokenizer)
    write_json(directory / "tokenizer_config.json", make_tokenizer_config(options.mode))
    save_weights(directory, weights, options.shards, options.format)
    write_json(directory / "config.json", config)
    size = sum(tensor.numel() for name, tensor in weights.items() if name != "lm_head.weight")
    print(f"{directory}: {options.mode}, {size:,} random parameters in {options.dtype}, {pieces} pieces")


if __name__ == "__main__":
    run_program(lambda: make_base(parse_options()))
