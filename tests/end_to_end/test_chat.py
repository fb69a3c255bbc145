"""chat.py as a user meets it: in a terminal and in a pipe."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from generation.answerer import Answerer, answer
from generation.prediction import generation_config
from modes import MODES
from options.predict import AnswerOptions
from tests import golden, prepared
from tests.launch import GOLDEN, REPOSITORY, environment, start
from tests.terminals import Terminal

pytestmark = pytest.mark.slow


def chat(*flags, model_path=GOLDEN / "glm2" / "base"):
    return [sys.executable, "chat.py", "--model_path", model_path, *flags]


def pipe(command, lines, encoding="utf-8", **changes):
    """Run chat.py with lines in standard input."""
    return subprocess.run(
        [str(word) for word in command], input="\n".join(lines).encode(encoding), capture_output=True, cwd=REPOSITORY,
        env=environment(**changes), timeout=200,
    )  # fmt: skip


def predicted(mode, messages, max_new_tokens):
    """The answer of predict.py's code to a conversation."""
    tokenizer = golden.tokenizer(mode)
    answerer = Answerer(MODES[mode], tokenizer, golden.shared_model(mode), {})
    config = generation_config(MODES[mode], tokenizer, AnswerOptions(max_new_tokens=max_new_tokens))
    return answer(answerer, [answerer.prompt_ids({"messages": messages, "ready": False})], config)[0]


def test_a_terminal(tmp_path):
    """Ctrl-C stops the answer, and the prompt is back within 100 ms; the next turn equals an uninterrupted one."""
    file = tmp_path / "chat.jsonl"
    terminal = Terminal(
        chat("--max_new_tokens", "20000"), environment(XDG_STATE_HOME=str(tmp_path), TERM="xterm"), REPOSITORY
    )
    try:
        terminal.wait_for("ChatGLM2-6B", timeout=200)
        terminal.wait_for(">>>")
        delays = []
        for _ in range(3):  # other processes may delay one
            terminal.enter("你好")
            terminal.wait_for_more(200)
            terminal.type("\x03")
            stopped = time.monotonic()
            terminal.wait_for("Stopped")
            terminal.wait_for(">>>")
            delays.append(time.monotonic() - stopped)
            time.sleep(0.3)
        assert min(delays) < 0.1, delays
        terminal.enter("/set max_new_tokens 12")
        terminal.wait_for("max_new_tokens is 12.")
        terminal.enter("/verbose on")
        terminal.wait_for("is on")
        terminal.enter("为什么？")
        assert "of them cached" in terminal.wait_for("peak memory")
        terminal.enter(f"/save {file}")
        terminal.wait_for("Saved 8 messages")
        terminal.enter("/set max_new_tokens 20000")
        terminal.wait_for("20000.")
        terminal.wait_for(">>>")
        terminal.enter("还有呢？")
        terminal.wait_for_more(200)
        terminal.type("\x03")
        terminal.wait_for("Stopped")
        terminal.wait_for(">>>")
        terminal.type("\x04")  # while the thread may still compute
        assert terminal.finish() == 0 and "Traceback" not in terminal.output
    finally:
        terminal.close()
    messages = json.loads(file.read_text())["messages"]
    assert len(messages) == 8 and all(message["content"] for message in messages)
    assert messages[7]["content"] == predicted("glm2", messages[:7], 12)


@pytest.mark.parametrize(("encoding", "questions"), [("gbk", ("你好", "再见")), ("ascii", ("hello", "bye"))])
def test_a_pipe_in_any_encoding(encoding, questions):
    """What the encoding lacks is a question mark."""
    result = pipe(chat("--max_new_tokens", "8"), questions, encoding, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    messages, shown = [], ""
    for question in questions:
        messages.append({"role": "user", "content": question})
        text = predicted("glm2", messages, 8)
        messages.append({"role": "assistant", "content": text})
        shown += text + "\n"
    assert result.stdout == shown.encode(encoding, "replace")
    assert b"Traceback" not in result.stderr


def test_ctrl_c_ends_a_pipe():
    process = subprocess.Popen(
        [str(word) for word in chat("--max_new_tokens", "20000")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment(PYTHONUNBUFFERED="1"),
    )  # fmt: skip
    process.stdin.write("你好\n再见\n".encode())
    process.stdin.flush()
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130 and b"Traceback" not in errors and b"Stopped" in errors


def test_an_error_in_a_pipe_ends_it():
    result = pipe(chat(), ["/adapter x", "你好"])
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"error: There is no adapter x: choose one of base." in result.stderr


def test_every_problem_of_a_command_line_at_once(tmp_path):
    flags = ["--lora", "a=x", "--lora", "a=y", "--lora", "base=z", "--top_p", "2", "--base_model", "x", "--do_sampel"]
    result = start([sys.executable, "chat.py", *flags])
    assert result.returncode == 2 and result.stdout == ""
    expected = ("two adapters of the name a", "--lora base is the name", "--top_p 2.0", "--model_path is missing")
    for words in (*expected, "mutually exclusive", "--do_sampel is an unknown option: did you mean --do_sample?"):
        assert words in result.stderr, result.stderr


def test_adapters_that_are_missing_are_named_together(tmp_path):
    lora = prepared.checkpoint_of("glm2", "lora", prepared.OPTIONS["lora"], tmp_path / "lora", noise=0.1)
    result = pipe(chat("--lora", f"a={lora},b={tmp_path}/no", "--lora", f"c={GOLDEN}/glm3/base"), ["你好"])
    assert result.returncode == 2 and b"/no" in result.stderr and b"--lora c=" in result.stderr
    assert torch.cuda.is_available() or b"Traceback" not in result.stderr


def test_interrupting_the_start():
    """Ctrl-C while modules are imported prints no traceback."""
    process = subprocess.Popen(
        [str(word) for word in chat()], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=environment(),
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=200)[1]
    assert process.returncode in (-signal.SIGINT, 130)
