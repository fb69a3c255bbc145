"""Compare tokenizer.json and the chat template of --format hf with sentencepiece, on random texts and conversations.

python benchmarks/tokenizer_json.py
python benchmarks/tokenizer_json.py --bases chatglm3-6b --num 20000000

Prints a line for each base: how many ids and texts differ, in which time. A difference ends it with exit code 1.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.command import benchmark, seed_flag, size_flag  # noqa: E402
from benchmarks.runs import GOLDEN  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, and how often."""

    TITLE: ClassVar[str] = "comparison"

    bases: tuple[str, ...] = flag(
        tuple(str(GOLDEN / mode / "base") for mode in ("glm2", "glm3")),
        help="Comma-separated base directories.",
        zh="基座目录，用逗号分隔。",
        metavar="DIR",
    )
    num: int = size_flag(1_000_000, "Number of random texts for each base.", "每个基座用多少条随机文本。")
    chats: int = size_flag(10_000, "Number of random conversations for each base.", "每个基座用多少段随机对话。")
    seed: int = seed_flag(0)


PROGRAM = benchmark(__file__, __doc__, ComparisonOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

from transformers import AutoTokenizer  # noqa: E402

from benchmarks.random_chats import alphabet, random_chat, random_text  # noqa: E402
from data.formats import Columns, normalize  # noqa: E402
from export.tokenizer_json import special_tokens, write_tokenizer  # noqa: E402
from export.vocabulary import read_pieces  # noqa: E402
from modes.directory import Base, read_base  # noqa: E402
from modes.text import encodable  # noqa: E402

CHUNK = 10_000  # texts encoded at a time
LONG = 10**6  # ids: nothing is truncated


class Comparison:
    """A base's tokenizer, and that of transformers which is written for it."""

    def __init__(self, base: Base, seed: int):
        self.generation, self.ours = base.generation, base.make_tokenizer()
        with tempfile.TemporaryDirectory() as directory:
            write_tokenizer(base, Path(directory))
            self.fast = AutoTokenizer.from_pretrained(directory)
        self.draw = random.Random(seed)
        self.parts = alphabet(read_pieces(base), [*special_tokens(self.ours), *self.ours.markers])

    def different_texts(self, num: int) -> Iterator[str]:
        """Those of `num` random texts whose ids or decoded ids differ."""
        for start in range(0, num, CHUNK):
            texts = [random_text(self.draw, self.parts) for _ in range(min(CHUNK, num - start))]
            ours = self.ours.encode_texts(texts)
            sent = [encodable(text) for text in texts]
            fast = self.fast(sent, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            decoded = self.fast.batch_decode(ours)
            for text, expected, ids, back in zip(sent, ours, fast, decoded, strict=True):
                if ids != expected or back != self.ours.sp_model.decode(expected):
                    yield text

    def different_chats(self, num: int) -> Iterator[Any]:
        """Those of `num` random conversations whose ids differ; half of them end with an answer."""
        texts = [encodable(random_text(self.draw, self.parts, 5)) for _ in range(num)]
        for i in range(num):
            answered = bool(i % 2)
            messages, tools = random_chat(self.draw, texts, self.generation.calls is not None, answered)
            value = {"messages": messages, **({"tools": tools} if tools else {})}
            record = normalize(value, "a conversation", Columns(), require_output=answered)
            if answered:
                expected = self.generation.encode(self.ours, record, LONG, LONG)["input_ids"]
            else:
                expected = self.generation.prompt_ids(self.ours, record)
            ids = self.fast.apply_chat_template(
                messages, tools=tools, add_generation_prompt=not answered, return_dict=False
            )
            if ids != expected:
                yield value


def main(argv: Sequence[str] | None = None) -> None:
    """Compare every base, and print a line for each; exit with 1 after a difference."""
    options = section(ComparisonOptions, read_command_line(PROGRAM, argv))
    differences = 0
    for path in options.bases:
        start = time.perf_counter()
        comparison = Comparison(read_base(path), options.seed)
        texts = list(comparison.different_texts(options.num))
        chats = list(comparison.different_chats(options.chats))
        print(
            f"{path}: {len(texts):,} of {options.num:,} texts and {len(chats):,} of {options.chats:,} conversations "
            f"differ; {time.perf_counter() - start:.0f} s"
        )
        for example in (texts + chats)[:5]:
            print(f"  {example!r}")
        differences += len(texts) + len(chats)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    run_program(main)
