"""Output in any encoding and into a closed pipe: no program ends by what it prints."""

import json
import os
import pty
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoints.position import Position
from checkpoints.write import BEST
from evaluation.evaluator import Verdict
from options.sections import OutputOptions
from parallel import ranks
from tests import launch
from tests.launch import GOLDEN, REPOSITORY
from training.after_step import make_after_step

ENCODINGS = ("gbk", "ascii", "latin-1", "utf-8")
# What no encoding but UTF-8 has all of, and half of a surrogate pair, which not even UTF-8 has
PROGRAM = """
import logging, sys
sys.path.insert(0, {root!r})
from errors import UserError, run_program
log = logging.getLogger()
log.addHandler(logging.StreamHandler(sys.stdout))
def main():
    for _ in range(2):
        print("水泵 😀 é \\ud800", flush=True)
        log.warning("水泵 😀 é \\ud800")
    open({done!r}, "w").close()
    if len(sys.argv) > 1:
        raise UserError("水泵 😀 é")
run_program(main)
"""


def start_with(reader: str, words: list[str], **changes: str):
    """Run Python with a standard output that nobody reads: "pipe" or "terminal"; standard error is kept."""
    if reader == "pipe":
        read, write = os.pipe()
    else:
        read, write = pty.openpty()
    os.close(read)
    try:
        encoding = changes.get("PYTHONIOENCODING", "utf-8")
        return launch.start([sys.executable, *words], stdout=write, encoding=encoding, **changes)
    finally:
        os.close(write)


@pytest.fixture
def program(tmp_path):
    """(a program that prints and then writes a file, the file)."""
    path, done = tmp_path / "program.py", tmp_path / "done"
    path.write_text(PROGRAM.format(root=str(REPOSITORY), done=str(done)))
    return path, done


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_that_the_encoding_lacks(encoding, fails, program):
    path, done = program
    result = launch.start([sys.executable, path, *["fail"] * fails], encoding=encoding, PYTHONIOENCODING=encoding)
    expected = "水泵 😀 é \ud800".encode(encoding, "replace").decode(encoding)
    assert result.stdout.splitlines() == [expected] * 4
    assert result.returncode == (2 if fails else 0) and done.is_file()
    assert "Traceback" not in result.stderr and result.stderr.startswith("error: ") == fails


def test_errors_that_the_user_chose_stay(program):
    result = launch.start([sys.executable, program[0]], PYTHONIOENCODING="ascii:ignore")
    assert result.returncode == 0 and result.stdout.splitlines()[0] == "   "


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("reader", ["pipe", "terminal"])
def test_nobody_reads(reader, unbuffered, fails, program):
    path, done = program
    result = start_with(reader, [path, *["fail"] * fails], PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == (2 if fails else 0) and done.is_file()
    assert result.stderr == ("error: 水泵 😀 é\n" if fails else "")


@pytest.mark.parametrize("stream", [">&-", "2>&-"])
def test_a_stream_that_is_closed_from_the_start(stream, program):
    result = launch.start(["sh", "-c", f'exec "$0" "$1" {stream}', sys.executable, program[0]])
    assert result.returncode == 0 and program[1].is_file() and "Traceback" not in result.stderr


def programs(place: Path) -> dict[str, tuple[list, list[Path]]]:
    """Program -> (its command line, files that it writes); `place` has a name that few encodings have."""
    base, records, lora = GOLDEN / "glm2" / "base", place / "records.jsonl", place / "lora"
    train = launch.train_options(
        "glm2", "lora", place / "run", train_path=records, dev_path=records, eval_metric="rougeL", max_steps=1
    )
    ask = ["predict.py", "--model_path", base, "--max_new_tokens", "4"]
    answers = place / "answers.jsonl"
    merge = ["merge_lora.py", "--ori_model_dir", base, "--model_dir", lora, "--output_dir", place / "merged"]
    samples = place / "samples"
    tiny = ["scripts/make_tiny_base.py", "--mode", "glm2", "--hidden_size", "32", "--output_dir", place / "tiny"]
    convert = ["scripts/convert_data.py", records, "--to", "instruction", "--output_path", place / "converted.jsonl"]
    kept = ("best/checkpoint.json", "best_predictions.jsonl", "evaluation.json", "state")
    return {
        "convert": (convert, [place / "converted.jsonl"]),
        "samples": (["scripts/make_samples.py", "--output_dir", samples], [samples / "samples" / "tool_calls.json"]),
        "tiny base": (tiny, [place / "tiny" / "config.json"]),
        "question": ([*ask, "--instruction", "水泵 😀"], []),
        "file": ([*ask, "--test_path", records, "--output_path", answers, "--metrics", "rougeL"], [answers]),
        "merge": (merge, [place / "merged" / "config.json"]),
        "dry run": (["train.py", *launch.flags({**train, "dry_run": True})], []),
        "two ranks": (["train.py", *launch.flags(train)], [place / "run" / name for name in kept]),
    }


SLOW = ("tiny base", "question", "file", "merge", "dry run", "two ranks")


@pytest.fixture
def place(tmp_path, untrained_checkpoints):
    """A directory named 水泵😀 with records whose texts hold what GBK lacks, and a LoRA checkpoint."""
    directory = tmp_path / "水泵😀"
    directory.mkdir()
    texts = ("水泵 😀 é", "发动机 ← –")
    lines = [json.dumps({"instruction": "抽取：", "input": text, "output": text}) for text in texts]
    (directory / "records.jsonl").write_text("\n".join(lines))
    shutil.copytree(untrained_checkpoints / "lora", directory / "lora")
    return directory


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["convert", "samples"])
def test_programs_in_other_encodings(name, encoding, place):
    words, written = programs(place)[name]
    result = launch.start([sys.executable, *words], encoding=encoding, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert "?" in result.stdout or encoding == "utf-8"
    assert all(path.exists() for path in written)


@pytest.mark.parametrize("name", ["convert", "samples", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_programs_in_another_encoding_into_a_closed_pipe(name, place):
    """Each of the two would end the program that prints first and saves later."""
    words, written = programs(place)[name]
    if name in SLOW:
        num_ranks = 2 if name == "two ranks" else 0
        result = launch.fork(words, num_ranks, is_read=False, PYTHONIOENCODING="gbk")
    else:
        result = start_with("pipe", words, PYTHONIOENCODING="gbk")
    assert result.returncode == 0, result.stderr
    assert not any(word in result.stderr for word in ("Traceback", "BrokenPipe", "Logging error"))
    assert all(path.exists() for path in written)


PROGRAMS = [
    *REPOSITORY.glob("*.py"),
    *(path for name in ("benchmarks", "scripts") for path in REPOSITORY.glob(f"{name}/**/*.py")),
]


@pytest.mark.parametrize(
    "path", [path for path in PROGRAMS if '__name__ == "__main__"' in path.read_text()], ids=lambda path: path.name
)
def test_every_program_protects_its_output(path):
    text = path.read_text()
    assert "import protect_output" in text or "run_program(" in text


def test_an_evaluation_is_saved_before_it_is_shown(monkeypatch):
    """Whatever printing does, checkpoint and resume state of the step are there."""
    order = []
    monkeypatch.setattr(ranks, "say", lambda *lines: order.append(lines))
    after_step = make_after_step(
        SimpleNamespace(write_evaluation=order.append),
        lambda name, *_: order.append(name),
        lambda *_, **__: order.append("state"),
        lambda step, epoch: Verdict({"step": step}, True, False, ("evaluation at step 2",)),
        SimpleNamespace(check=lambda: None),
        order.append,
        options=OutputOptions(),
        eval_step=1,
        samples_per_epoch=8,
        total_steps=2,
    )
    assert after_step(Position(step=2, epoch=1, samples=4)).ends
    assert order == [{"step": 2}, BEST, "step 2: saving", "epoch-1-step-2", "state", ("evaluation at step 2",)]
