"""The Modelfile of Ollama beside a GGUF file: `ollama create NAME -f Modelfile`."""

import json
from collections.abc import Sequence
from pathlib import Path

import modes

LONGEST = 8192  # context that Ollama allocates keys and values for, unless a user changes the Modelfile
TEMPLATE = "ollama_template.txt"  # in the generation's folder, without the line end at its end


def modelfile(mode: str, gguf_file: str, stops: Sequence[str], context: int) -> str:
    """The content of a Modelfile.

    Args:
        mode: generation of the model. gguf_file: name of the file beside it.
        stops: texts that end an answer. context: maximum sequence length.
    """
    template = (Path(modes.__file__).parent / mode / TEMPLATE).read_text(encoding="utf-8").removesuffix("\n")
    lines = [
        f"FROM ./{gguf_file}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {min(context, LONGEST)}",
    ]
    return "\n".join(lines) + "\n"
