"""Write a GGUF file: the architecture `chatglm` of llama.cpp, whose tensors are the official ones under other names.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

from errors import UserError
from export.gguf_vocabulary import NAMES, read_vocabulary
from export.hf import layout_of
from modes.directory import Base, iterate_shards

# --quantize: (type of matrices, of the output layer, the file's type)
KINDS = {
    "f16": (Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, Kind.Q8_0, LlamaFileType.MOSTLY_Q5_1),
    "q4_0": (Kind.Q4_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
ROWS = 4096  # packed at a time
LARGEST = torch.finfo(torch.float16).max
WITHOUT_TRANSFORMER = "transformer."  # the gguf package knows the names after it


def write_file(
    file: Path, base: Base, keys: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], quantize: str
) -> None:
    """Write a model; see `export.gguf.write_gguf`.

    Args:
        keys: of its config.json in transformers.
    """
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.CHATGLM])
    add_model(writer, base, keys, quantize)
    add_tokenizer(writer, base)
    kinds = add_tensors(writer, base, quantize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        [opened] = writer.fout
        writer.write_padding(opened, opened.tell())
        for (expected, kind), (name, tensor) in zip(kinds.items(), without_tables(tensors), strict=True):
            assert name == expected, f"{name} comes where the base has {expected}"
            write_tensor(writer, opened, packed_rows(name, tensor, kind))
    finally:
        writer.close()


def add_model(writer: gguf.GGUFWriter, base: Base, keys: dict[str, Any], quantize: str) -> None:
    """Add the metadata of the model."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(base.generation.title)  # not the directory's name, in which llama.cpp looks for other models
    writer.add_file_type(KINDS[quantize][2])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(keys["max_position_embeddings"])
    writer.add_embedding_length(keys["hidden_size"])
    writer.add_feed_forward_length(keys["intermediate_size"])
    writer.add_block_count(keys["num_hidden_layers"])
    writer.add_head_count(keys["num_attention_heads"])
    writer.add_head_count_kv(keys["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(keys["rms_norm_eps"])
    writer.add_vocab_size(keys["vocab_size"])
    rope = keys["rope_parameters"]
    writer.add_rope_dimension_count(int(keys["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def add_tokenizer(writer: gguf.GGUFWriter, base: Base) -> None:
    """Add the vocabulary, the ids that end an answer, and the chat template."""
    vocabulary, tokenizer = read_vocabulary(base), base.make_tokenizer()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("chatglm-spm")
    writer.add_token_list(vocabulary.texts)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    # Three keys: the end of a sequence, of a turn, and of a message that another role continues.
    stops = base.generation.stop_ids(tokenizer)
    ends = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    assert len(stops) <= len(ends), "GGUF names three ids that end an answer"
    for end, stop in zip(ends, stops, strict=False):
        end(stop)
    writer.add_chat_template(base.generation.chat_template(NAMES["sop"], NAMES["</s>"], spaced_answers=True))


def gguf_names(base: Base) -> dict[str, str]:
    """Official name -> name in the file, of every tensor that the architecture can have."""
    config = base.make_config()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.CHATGLM, config.num_hidden_layers)
    return {
        name: names.get_name(name.removeprefix(WITHOUT_TRANSFORMER), (".weight", ".bias"))
        for name in layout_of(base).names(config)
    }


def add_tensors(writer: gguf.GGUFWriter, base: Base, quantize: str) -> dict[str, Kind]:
    """Add name, shape and type of every tensor. Returns official name -> type, in the order of the base's files."""
    names, kinds = gguf_names(base), {}
    for name, tensor in without_tables(pair for _, shard in iterate_shards(base) for pair in shard.items()):
        new = names[name]
        kind = kinds[name] = choose_kind(new, tensor.shape, quantize)
        block, size = GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(new, tensor.shape, np.dtype(np.float32), tensor.numel() // block * size, raw_dtype=kind)
    return kinds


def read_file(file: Path, base: Base) -> dict[str, torch.Tensor]:
    """Official name -> float32 tensor of a file that `write_file` wrote, dequantized."""
    official = {name: official for official, name in gguf_names(base).items()}
    return {
        official[tensor.name]: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in gguf.GGUFReader(file).tensors
    }


def write_tensor(writer: gguf.GGUFWriter, file: IO[bytes], parts: Iterable[np.ndarray]) -> None:
    """Write the next tensor in parts: the writer's own method takes it whole, which is 1 GB of an embedding."""
    size = 0
    for part in parts:
        part.tofile(file)
        size += part.nbytes
    writer.write_padding(file, size)


def without_tables(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Leave out the rotary table, which some official files hold."""
    return ((name, tensor) for name, tensor in tensors if not name.endswith("inv_freq"))


def choose_kind(name: str, shape: torch.Size, quantize: str) -> Kind:
    """Type of a tensor. Norms and biases are float32; the output layer is quantized to 8 bits or more, because its
    errors directly affect the logits; rows that are not whole blocks are float16."""
    if len(shape) == 1:
        return Kind.F32
    matrices, output, _ = KINDS[quantize]
    kind = output if name == "output.weight" else matrices
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else Kind.F16


def packed_rows(name: str, tensor: torch.Tensor, kind: Kind) -> Iterator[np.ndarray]:
    """A tensor's rows in a type of GGUF, ROWS at a time. Raises UserError if float16 overflows."""
    for rows in tensor.split(ROWS):
        rows = rows.float()
        if kind == Kind.F16 and not rows.abs().max() <= LARGEST:
            raise UserError(f"{name} has values that float16 cannot hold: use --quantize q8_0.")
        yield gguf.quantize(rows.numpy(), kind)
