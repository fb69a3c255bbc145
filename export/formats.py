"""The formats of merge_lora.py: what each checks before weights are read, writes, and compares afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkpoints.merging import Merge, merged_tensors
from export.adapter import check_adapter, verify_adapter, write_adapter
from export.gguf import check_gguf, verify_gguf, write_gguf
from export.hf import check_hf, verify_hf, write_hf
from export.official import check_official, verify_official, write_official
from options.merge import MergeOptions


@dataclass(frozen=True)
class Format:
    """One format.

    check: raises UserError if the model cannot be written in it; reads no weights.
    write: writes the files into a directory; returns the bytes of the weights.
    verify: loads what was written; returns a line with figures, or raises UserError if it is another model.
    content: what is written. use: a command that uses it, with {directory}.
    """

    check: Callable[[Merge, MergeOptions], None]
    write: Callable[[Merge, Path, MergeOptions], int]
    verify: Callable[[Merge, MergeOptions], str]
    content: str
    use: str


def check_architecture_and_gguf(merge: Merge, options: MergeOptions) -> None:
    """What transformers has a class for, and llama.cpp an architecture and a tokenizer."""
    check_hf(merge, options)
    check_gguf(merge.base)


FORMATS = {
    "official": Format(
        check=check_official,
        write=write_official,
        verify=verify_official,
        content="merged model",
        use="python predict.py --model_path {directory} --instruction ...",
    ),
    "hf": Format(
        check=check_hf,
        write=write_hf,
        verify=verify_hf,
        content="merged model for transformers",
        use="python predict.py --model_path {directory} --instruction ...",
    ),
    "adapter": Format(
        check=check_adapter,
        write=write_adapter,
        verify=verify_adapter,
        content="adapter",
        use="vllm serve HF_BASE --enable-lora --max-lora-rank RANK --lora-modules NAME={directory}",
    ),
    "gguf": Format(
        check=check_architecture_and_gguf,
        write=lambda merge, directory, options: write_gguf(
            merge.base, merged_tensors(merge), directory, options.quantize
        ),
        verify=verify_gguf,
        content="GGUF model",
        use="llama-server -m {directory}/*.gguf\nwith Ollama: ollama create NAME -f {directory}/Modelfile",
    ),
}
