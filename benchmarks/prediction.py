"""Records per second of predict.py against a loop over `chat` as in 2023: one record after the other.

python benchmarks/prediction.py --mode glm3 --repeats 3 --output benchmarks/results/prediction_glm3.json

A random base of the asked shape, float32 on a CPU, answers the first records of data/spo_1.json. Both sides write as
many tokens (random weights produce no end token), with the same model and a cache of keys and values. The loop has
today's model and so none of what the official one spent besides: the ratio is what batches, the prompt's common
beginning and the cache with room bring.

Prints both speeds and the median of the paired ratios. Below it the ratio that no batch can go beyond: all
multiplications that the answers need at the speed of one product of large matrices, in processor time. JSON last.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from benchmarks.bases import make_base  # noqa: E402
from benchmarks.command import benchmark, mode_flag, output_flag, repeats_flag, size_flag  # noqa: E402
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class PredictionOptions:
    """The model, its questions, and how they are answered."""

    TITLE: ClassVar[str] = "prediction"

    mode: str = mode_flag("glm3")
    num_layers: int = size_flag(8, "Number of layers.", "层数。")
    hidden_size: int = size_flag(512, "Hidden size.", "隐藏层大小。")
    test_path: str = flag(
        str(REPOSITORY / "data" / "spo_1.json"),
        help="Path to a file of records.",
        zh="数据文件的路径。",
        metavar="FILE",
    )
    records: int = size_flag(64, "Number of records.", "记录数。")
    batch_size: int = size_flag(16, "Number of prompts per batch.", "每批的提示词数。")
    new_tokens: int = size_flag(32, "Number of tokens per answer.", "每个回答的 token 数。")
    repeats: int = repeats_flag(3)
    output: str = output_flag()


PROGRAM = benchmark(__file__, __doc__, PredictionOptions)

if __name__ == "__main__":
    run_program(lambda: read_command_line(PROGRAM))  # before torch is loaded

import torch  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

from benchmarks.pairs import alternate, report, seconds  # noqa: E402
from data.records import read_records  # noqa: E402
from generation.answerer import Answerer, answer_rows  # noqa: E402
from generation.cache import count_shared  # noqa: E402
from generation.models import load_answerer  # noqa: E402
from generation.request import Request  # noqa: E402


def chat(answerer: Answerer, record: dict, generation: GenerationConfig) -> str:
    """One question, one answer: prompt, transformers' generation as it is, text."""
    ids = torch.tensor([answerer.prompt_ids(record)], device=answerer.model.device)
    with torch.inference_mode():
        output = answerer.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=generation
        )
    return answerer.mode.answer_text(answerer.tokenizer, output[0, ids.shape[1] :].tolist())


def multiplications(model: torch.nn.Module, lengths: list[int], num_shared: int, new_tokens: int) -> float:
    """Multiplications and additions of all linear layers for all answers; attention, a few per cent, left out.

    Args:
        lengths: ids of each prompt. num_shared: how many of them are computed once.
    """
    in_blocks = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    positions = num_shared + sum(length - num_shared + new_tokens - 1 for length in lengths)
    output_layer = model.get_output_embeddings().weight.numel() * new_tokens * len(lengths)
    return 2.0 * (positions * in_blocks + output_layer)


def matrix_speed(size: int = 2048, repeats: int = 5) -> float:
    """Multiplications and additions of a float32 product of square matrices in a second of a core, best of several."""
    left, right = torch.randn(2, size, size)
    return 2 * size**3 / min(seconds(lambda: left @ right)[1] for _ in range(repeats))


def main(argv: Sequence[str] | None = None) -> None:
    """Time both sides, print their speeds, and report the result."""
    options = section(PredictionOptions, read_command_line(PROGRAM, argv))
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        make_base(base, options.mode, options.num_layers, options.hidden_size, 8192)
        answerer = load_answerer(base, precision="fp32")
    generation = GenerationConfig(
        min_new_tokens=options.new_tokens,
        max_new_tokens=options.new_tokens,
        do_sample=False,
        eos_token_id=answerer.mode.stop_ids(answerer.tokenizer),
        pad_token_id=answerer.tokenizer.pad_token_id,
    )
    records = [record for _, record in islice(read_records(options.test_path), options.records)]
    prompts = [answerer.prompt_ids(record) for record in records]
    num_shared = count_shared(prompts) if options.mode != "glm" else 0  # ChatGLM-6B's prompts see themselves whole

    def one_by_one() -> list[str]:
        return [chat(answerer, record, generation) for record in records]

    def in_batches() -> dict[int, str]:
        requests = [Request(ids, options.new_tokens, frozenset()) for ids in prompts]
        return dict(answer_rows(answerer, requests, options.batch_size))

    batched = in_batches()  # this also warms up both sides
    equal = sum(chat(answerer, records[i], generation) == batched[i] for i in range(min(len(records), 8)))
    if not equal:
        sys.exit("none of the first answers is the same on both sides")
    result = alternate(in_batches, one_by_one, options.repeats)
    speeds = {name: round(len(records) / statistics.median(result[name]), 2) for name in ("ours", "other")}
    work = multiplications(answerer.model, [len(ids) for ids in prompts], num_shared, options.new_tokens)
    speed = matrix_speed()
    least = work / speed
    bound = round(statistics.median(result["other_cpu"]) / least, 1)
    print(
        f"{options.mode}: ours {speeds['ours']} records/s, one by one {speeds['other']}: {result['ratio']} times as "
        f"fast ({result['ratio_cpu']} in processor time); {equal} of the first 8 answers are the same"
    )
    print(
        f"  {work / 1e9:.0f} GFLOP at {speed / 1e9:.0f} GFLOP/s of a core in a matrix product: no less than "
        f"{least:.1f} s of a core, 1/{bound} of one by one"
    )
    shapes = {"prompt_tokens": sum(map(len, prompts)), "shared_tokens": num_shared}
    limit = {"gflop": round(work / 1e9, 1), "matrix_gflop_per_second": round(speed / 1e9, 1), "ratio_bound": bound}
    settings = {name: value for name, value in asdict(options).items() if name != "output"}
    settings |= {"test_path": Path(options.test_path).name, **shapes}
    settings |= {"records_per_second": speeds, "equal_of_first_8": equal}
    report({"benchmark": "prediction", **settings, **limit, **result}, options.output)


if __name__ == "__main__":
    run_program(main)
