"""The tokenizers and the data loop of 2023, rewritten as a baseline.

    pip install transformers==4.30.2 sentencepiece==0.1.99 'numpy<2'  # in an environment of its own
    python benchmarks/tokenizers_of_2023.py --mode glm2

Each is a slow `PreTrainedTokenizer`: transformers cuts a text at special tokens, sentencepiece makes its pieces as
strings, and every piece is looked up on its own. Nothing is slower than it was then, and under today's transformers,
where benchmarks/tokenization.py calls it, it is faster: the commands above measure it alone, under any version.
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
from benchmarks.command import benchmark, mode_flag, repeats_flag  # noqa: E402
from benchmarks.runs import GOLDEN  # noqa: E402
from errors import run_program  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class TokenizerOptions:
    """Which tokenizer is measured, and how often."""

    TITLE: ClassVar[str] = "tokenizer"

    mode: str = mode_flag("glm2")
    repeats: int = repeats_flag(5)


PROGRAM = benchmark(__file__, __doc__, TokenizerOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import sentencepiece  # noqa: E402
import transformers  # noqa: E402
from transformers import PreTrainedTokenizer  # noqa: E402

COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
BLANKS = range(80, 1, -1)  # lengths of runs of spaces that have a piece, the longest first


class Pieces:
    """The sentencepiece model, with ids for names that follow its pieces."""

    def __init__(self, path: str, names: tuple[str, ...] = ()):
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.named = {name: self.model.vocab_size() + i for i, name in enumerate(names)}

    def tokenize(self, text: str) -> list[str]:
        return self.model.EncodeAsPieces(text)

    def token_id(self, token: str) -> int:
        if token in self.named:
            return self.named[token]
        return self.model.PieceToId(token)


class SecondTokenizer(PreTrainedTokenizer):
    """ChatGLM2-6B's, and ChatGLM3-6B's with four roles."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    eos_token, unk_token, pad_token = "</s>", "<unk>", "<unk>"
    names = COMMANDS

    def __init__(self, vocab_file, **kwargs):
        self.pieces = Pieces(str(vocab_file), self.names)
        for name in ("eos_token", "unk_token", "pad_token", "bos_token"):
            kwargs.pop(name, None)
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.pieces.model.vocab_size() + len(self.names)

    @property
    def eos_token_id(self):
        return self.pieces.model.eos_id()

    @property
    def pad_token_id(self):
        return self.pieces.model.unk_id()

    @property
    def unk_token_id(self):
        return self.pieces.model.unk_id()

    def get_command(self, name):
        return self.pieces.named[name]

    def get_vocab(self):
        return {self.pieces.model.IdToPiece(i): i for i in range(self.pieces.model.vocab_size())} | self.pieces.named

    def _tokenize(self, text, **kwargs):
        return self.pieces.tokenize(text)

    def _convert_token_to_id(self, token):
        return self.pieces.token_id(token)

    def _convert_id_to_token(self, index):
        return self.pieces.model.IdToPiece(index)


class ThirdTokenizer(SecondTokenizer):
    names = COMMANDS + ROLES


class FirstTokenizer(PreTrainedTokenizer):
    """ChatGLM-6B's: line ends, tabs and runs of spaces are replaced one length after the other."""

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, num_image_tokens=0, **kwargs):
        self.pieces = Pieces(str(vocab_file))
        self.num_image_tokens = num_image_tokens
        special = {"bos_token": "<sop>", "eos_token": "<eop>", "mask_token": "[MASK]", "pad_token": "<pad>"}
        super().__init__(**{**kwargs, **special, "unk_token": "<unk>"})

    @property
    def vocab_size(self):
        return self.num_image_tokens + self.pieces.model.vocab_size()

    def get_vocab(self):
        return {self._convert_id_to_token(i): i for i in range(self.num_image_tokens, self.vocab_size)}

    def _tokenize(self, text, **kwargs):
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in BLANKS:
            text = text.replace(" " * length, f"<|blank_{length}|>")
        return self.pieces.tokenize(text)

    def _convert_token_to_id(self, token):
        if token.startswith("<image_") and token.endswith(">") and token[7:-1].isdigit():
            return int(token[7:-1])
        return self.pieces.token_id(token) + self.num_image_tokens

    def _convert_id_to_token(self, index):
        return self.pieces.model.IdToPiece(index - self.num_image_tokens)


TOKENIZERS = {"glm": FirstTokenizer, "glm2": SecondTokenizer, "glm3": ThirdTokenizer}


def read_one_by_one(path: Path, mode: str, tokenizer, max_len: int, max_src_len: int) -> list[dict]:
    """A file as rows of Python lists, a record after the other, as each rank did for itself; too long is not cut here.

    Raises ValueError for a record over the limits: what 2023 did then, and ours does, is not the same.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line.strip())
            ids, num_source, num_fixed = ROWS[mode](
                tokenizer, record["instruction"] + record["input"], record["output"]
            )
            if len(ids) > max_len or num_source > max_src_len:
                raise ValueError(f"a record of {len(ids)} ids")
            rows.append({"input_ids": ids, "labels": [-100] * num_fixed + ids[num_fixed:]})
    return rows


def first_row(tokenizer, question: str, answer: str) -> tuple[list[int], int, int]:
    """(ids, number of source ids, number of unsupervised ids) of ChatGLM-6B: all pieces become ids in one call."""
    source = tokenizer.tokenize(f"[Round {1}]\n问：{question}\n答：")
    target = tokenizer.tokenize(answer)
    ids = tokenizer.convert_tokens_to_ids(source + ["[gMASK]", "<sop>"] + target + ["<eop>"])
    return ids, len(source), ids.index(tokenizer.bos_token_id)


def second_row(tokenizer, question: str, answer: str) -> tuple[list[int], int, int]:
    """As `first_row`, of ChatGLM2-6B."""
    source = tokenizer.tokenize(f"[Round {1}]\n\n问：{question}\n\n答：")
    target = tokenizer.tokenize(answer)
    front = [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]
    ids = front + tokenizer.convert_tokens_to_ids(source + target + ["</s>"])
    return ids, len(source), len(source) + 2


def third_row(tokenizer, question: str, answer: str) -> tuple[list[int], int, int]:
    """As `first_row`, of ChatGLM3-6B, whose loop called `encode` for each of four parts."""
    source = [tokenizer.get_command("<|user|>")]
    source += tokenizer.encode("\n", add_special_tokens=False) + tokenizer.encode(question, add_special_tokens=False)
    target = [tokenizer.get_command("<|assistant|>")]
    target += tokenizer.encode("\n", add_special_tokens=False) + tokenizer.encode(answer, add_special_tokens=False)
    front = [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]
    return front + source + target + [tokenizer.eos_token_id], len(source), len(source) + 2


ROWS = {"glm": first_row, "glm2": second_row, "glm3": third_row}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the median of the processor time for a record."""
    options = section(TokenizerOptions, read_command_line(PROGRAM, argv))
    tokenizer_class, data = TOKENIZERS[options.mode], REPOSITORY / "data" / "spo_0.json"
    base = GOLDEN / options.mode / "base"
    tokenizer = tokenizer_class(str(base / tokenizer_class.vocab_files_names["vocab_file"]))
    times = []
    for _ in range(options.repeats):
        started = time.process_time()
        rows = read_one_by_one(data, options.mode, tokenizer, max_len=512, max_src_len=400)
        times.append(time.process_time() - started)
    print(
        f"{options.mode}, transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}: "
        f"{1e6 * sorted(times)[len(times) // 2] / len(rows):.1f} microseconds of a core a record"
    )


if __name__ == "__main__":
    run_program(main)
