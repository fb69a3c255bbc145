"""What benchmarks/serving.py and benchmarks/serving_load.py measure: servers, and generation without one.

with Server(command, port, log) as server:
    run_clients(server.url, server.model, questions, clients=4)
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from subprocess import Popen
from typing import Any, Self

import httpx
import psutil
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks import runs
from benchmarks.bases import VOCABULARY, make_base
from benchmarks.serving_clients import Answered, Question
from errors import UserError
from generation.answerer import Answerer
from generation.cache import batch_cache
from modes import MODES

LAYERS, HIDDEN = 28, 4096  # of the 6B models
START_SECONDS = 300
MODEL = "model"  # its name in our server


@dataclass
class Server:
    """A server in processes of its own, which can be paused, so that it takes no processor time from another.

    model: its name in requests.
    """

    command: list[str]
    port: int
    log: Path
    model: str
    threads: int
    process: Popen | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.log.unlink(missing_ok=True)
        self.process = process = runs.start(self.command, self.log, OMP_NUM_THREADS=str(self.threads))
        if not runs.wait_for(self._listens, lambda: process.poll() is not None, START_SECONDS, every=0.2):
            code = runs.finish(process, 0)
            text = self.log.read_text(encoding="utf-8", errors="replace")
            raise UserError(f"{self.command[0]} does not start: {runs.sentence_of(text, str(code))} (see {self.log}).")
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.resume()
            self.process.terminate()
            runs.finish(self.process, 60)

    def pause(self) -> None:
        """Stop its processes until `resume`."""
        assert self.process is not None
        runs.signal_all(self.process, SIGSTOP)

    def resume(self) -> None:
        """Continue its processes."""
        assert self.process is not None
        runs.signal_all(self.process, SIGCONT)

    def processor_seconds(self) -> float:
        """Processor time of its processes so far."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def _listens(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def our_server(base: Path, log: Path, threads: int, max_tokens: int, precision: str, *words: str) -> Server:
    """serve.py. max_tokens: of a prompt with its answer."""
    port = runs.free_port()
    given = {"model_path": base, "served_model_name": MODEL, "port": port, "precision": precision,
             "max_model_len": max_tokens}  # fmt: skip
    return Server([sys.executable, "serve.py", *runs.flags(given), *words], port, log, MODEL, threads)


def transformers_server(
    directory: Path, log: Path, threads: int, max_tokens: int, dtype: str, page: int, at_once: int
) -> Server:
    """`transformers serve` with continuous batching and a cache as large as ours.

    By default it takes most of the memory for the cache, and on a CPU the time of a step grows with it.

    Args:
        page: tokens of a cache block. at_once: number of answers that fit.
    """
    port = runs.free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    words = {
        "port": port, "dtype": dtype, "device": "cuda" if torch.cuda.is_available() else "cpu",
        "attn-implementation": "sdpa", "continuous-batching": True, "cb-block-size": page,
        "cb-num-blocks": -(-at_once * max_tokens // page), "cb-max-batch-tokens": 512,
    }  # fmt: skip
    return Server([program, "serve", str(directory), *runs.flags(words)], port, log, str(directory), threads)


def make_talking_base(directory: Path, mode: str, num_layers: int, hidden_size: int) -> None:
    """Make a random base of 6B's proportions that generates only tokens with text, and no end token.

    Servers show text: without any the time of the first token could not be measured.
    """
    share = VOCABULARY[mode] * hidden_size * num_layers // (HIDDEN * LAYERS)  # the output layer's share of the weights
    tokenizer_size = MODES[mode].tokenizer_class.from_pretrained(runs.GOLDEN / mode / "base").vocab_size
    vocab_size = -(-max(share, tokenizer_size) // 16) * 16
    make_base(directory, mode, num_layers, hidden_size, vocab_size, head_size=min(128, hidden_size // 4))
    keep_texts(directory, mode)


def keep_texts(directory: Path, mode: str) -> None:
    """Zero the output layer of tokens without visible text, whose logits then are never the largest."""
    tokenizer = MODES[mode].tokenizer_class.from_pretrained(directory)
    shown = torch.tensor([is_visible(text) for text in tokenizer.token_bytes()])
    config = MODES[mode].config_class.from_pretrained(directory)
    with torch.device("meta"):
        model = MODES[mode].model_class(config)
    output = model.get_output_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is output)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name][len(shown) :] = 0
            tensors[name][: len(shown)][~shown] = 0
            save_file(tensors, file, metadata={"format": "pt"})


def is_visible(text: bytes) -> bool:
    """Whether a token's bytes are whole characters, and none is whitespace."""
    try:
        return bool(text) and not any(character.isspace() for character in text.decode())
    except UnicodeDecodeError:
        return False


class FirstToken(BaseStreamer):
    """Notes when `generate` has its first token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Take the prompt, then each token."""
        if len(self.times) < 2:
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def prompt_of(answerer: Answerer, question: Question) -> list[int]:
    """The ids before the answer."""
    return answerer.prompt_ids({"messages": [{"role": "user", "content": question.text}], "ready": False})


def answer_alone(answerer: Answerer, questions: Sequence[Question]) -> list[Answered]:
    """Generate one answer after another, as predict.py does with --batch_size 1."""
    answers = []
    for question in questions:
        begun, first = time.perf_counter(), FirstToken()
        ids = torch.tensor([prompt_of(answerer, question)], device=answerer.model.device)
        with torch.inference_mode():
            output = answerer.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=batch_cache(1),
                generation_config=greedy(answerer, question.max_tokens),
                streamer=first,
            )
        given = output[0, ids.shape[1] :].tolist()
        text = answerer.mode.answer_text(answerer.tokenizer, given)
        answers.append(Answered(first.times[1] - begun, time.perf_counter() - begun, len(given), text))
    return answers


def greedy(answerer: Answerer, tokens: int) -> GenerationConfig:
    """Up to so many most likely tokens."""
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=answerer.mode.stop_ids(answerer.tokenizer),
        pad_token_id=answerer.tokenizer.pad_token_id,
    )
