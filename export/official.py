"""--format official: the layout of the published models, which this toolkit reads, and engines with remote code.

Nothing is lost in it. `quantization_bit` makes it that of the official int8 and int4 releases.
"""

from collections.abc import Iterator
from pathlib import Path

from checkpoints.merging import Merge, merged_config, merged_tensors
from checkpoints.side_files import copy_beside
from export.perplexity import compare_perplexity, perplexity
from export.quantized import check_quantizable, config_changes, quantized
from export.verify import compare, merged_model, merged_outputs, outputs_of, prompts_of, stops_of, written_model
from files import read_json, write_json
from modes.directory import Base
from options.merge import MergeOptions
from shards import parse_size, write_shards
from version import VERSION

TOKENIZER_CONFIG = "tokenizer_config.json"
QUANTIZED_SHARD_BYTES = 10**9  # at most: while a shard fills up, a file of the base is in memory as well


def check_official(merge: Merge, options: MergeOptions) -> None:
    """Check that the model can be quantized; adds notes about what engines will miss in the result.

    Raises:
        UserError: it cannot.
    """
    if options.quantization_bit:
        check_quantizable(merge.base, options.quantization_bit)
    merge.notes.extend(missing_for_engines(merge.base))


def missing_for_engines(base: Base) -> Iterator[str]:
    """One sentence for each thing that engines look for and the base does not have."""
    if base.hf:
        yield (
            f"warning: {base.path} has no official *.py, which engines with remote code need: copy them from the "
            "published model, or use --format hf."
        )
        return
    absent = [name for name in code_files(base) if not (base.path / name).is_file()]
    if absent:
        yield (
            f"warning: {base.path} has no {', '.join(absent)}, which engines with remote code need: copy them from the "
            "published model."
        )
    if base.generation.hf and "_name_or_path" not in base.config:
        yield (
            f"warning: config.json in {base.path} has no _name_or_path, which llama.cpp's converter looks for: use "
            "--format gguf."
        )


def code_files(base: Base) -> list[str]:
    """The files of remote code that the base's JSON files name."""
    named = [config.get("auto_map") for config in (base.config, read_tokenizer_config(base.path))]
    values = [value for names in named if isinstance(names, dict) for value in names.values()]
    # a value is a class, or a list of classes and null
    classes = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return sorted({f"{name.partition('.')[0]}.py" for name in classes if isinstance(name, str)})


def read_tokenizer_config(directory: Path) -> dict:
    """The content of tokenizer_config.json; {} if there is none."""
    file = directory / TOKENIZER_CONFIG
    return read_json(file, "download it again") if file.is_file() else {}


def write_official(merge: Merge, directory: Path, options: MergeOptions) -> int:
    """Write tensors by official name, and the base's other files; returns the bytes of the weights."""
    tensors, changes, largest = merged_tensors(merge), merged_config(merge), parse_size(options.max_shard_size)
    if options.quantization_bit:
        tensors = quantized(tensors, merge.base, options.quantization_bit)
        changes |= config_changes(options.quantization_bit)
        largest = min(largest, QUANTIZED_SHARD_BYTES)
    size = write_shards(tensors, directory, "model", largest)
    copy_beside(merge.base, directory, changes)
    add_chat_template(merge.base, directory)
    return size


def add_chat_template(base: Base, directory: Path) -> None:
    """Add a chat template to tokenizer_config.json, unless the base has one."""
    if not (directory / "chat_template.jinja").is_file():
        config = {"chat_template": base.generation.chat_template(), **read_tokenizer_config(directory)}
        write_json(directory / TOKENIZER_CONFIG, config)


def verify_official(merge: Merge, options: MergeOptions) -> str:
    """Compare logits with the merged model's; of a quantized model, whose logits differ, perplexities."""
    written, base = written_model(merge)
    if not options.quantization_bit:
        outputs = outputs_of(written, prompts_of(merge), stops_of(merge))
        return compare(merged_outputs(merge), outputs, merge.output_dir, f"chatglm-finetuning {VERSION}")
    before, after = perplexity(merged_model(merge), base), perplexity(written, base)
    return compare_perplexity(before, after, merge.output_dir, f"int{options.quantization_bit}")
