"""Each command of a chat, on tiny models; a list of lines is the user."""

import json
import sys

import pytest
import torch

from chatting import commands, settings
from chatting.chat import Chat
from chatting.models import Models, find_chat
from chatting.screen import Screen
from chatting.session import Session
from data.formats import ANY, normalize
from errors import UserError
from modes import MODES
from options.chat import parse_chat
from tests import golden, prepared

TOOLS = [{"name": "get_weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}]
COUNT = "import json,sys; call = json.load(sys.stdin); print(call['name'], len(call['arguments']['city']))"


def make_chat(lines, *flags, mode="glm3", interactive=False):
    """A chat whose user writes these lines."""
    options, problems, _ = parse_chat(
        ["--model_path", str(golden.base_path(mode)), "--max_new_tokens", "6", *map(str, flags)]
    )
    assert problems == []
    found = find_chat(options)
    rest = iter(lines)

    def read_line(prompt, is_reply=False):
        line = next(rest, None)
        if line is None:
            raise EOFError
        return line

    session = Session(found.model.mode, options.conversation.system or "", found.trained.get("source_prefix") or "")
    models = Models(found, "fp32", torch.device("cpu"))
    return Chat(session, models, Screen(read_line, interactive), options.answers, options.conversation.verbose)


def talk(lines, *flags, **keywords):
    """A chat after these lines."""
    chat = make_chat(lines, *flags, **keywords)
    commands.converse(chat)
    return chat


def texts(chat):
    return [message["content"] for message in chat.session.messages]


@pytest.fixture
def lora(tmp_path):
    """A LoRA checkpoint of ChatGLM3 that changes the answers."""
    return prepared.checkpoint_of("glm3", "lora", prepared.OPTIONS["lora"], tmp_path / "tuned", noise=0.3)


def test_answers_alone_are_on_standard_output(capsys):
    chat = talk(["你好", "", "再见"])
    output = capsys.readouterr()
    assert output.out == "".join(f"{text}\n" for text in texts(chat)[1::2])
    assert len(texts(chat)) == 4 and "max_new_tokens" in output.err


def test_several_lines_are_one_question(capsys):
    assert texts(talk(['"""a', "b", 'c"""']))[0] == "a\nb\nc"
    assert texts(talk(['"""', "a", "", "b", '"""']))[0] == "a\n\nb"
    assert texts(talk(['"""a"""']))[0] == "a"


def test_several_lines_without_an_end(capsys):
    with pytest.raises(UserError, match="no end"):
        talk(['"""a', "b"])


def test_conversation_commands(capsys):
    chat = talk(["一", "二", "/undo"])
    assert texts(chat)[0] == "一" and len(texts(chat)) == 2
    assert texts(talk(["一", "二", "/clear"])) == texts(talk(["一", "clear"])) == []
    once = talk(["一"])
    again = talk(["一", "/regenerate"])
    assert texts(once) == texts(again)
    sampled = talk(["/set temperature 2", "/set top_p 1", "一", "/regenerate"])
    first = talk(["/set temperature 2", "/set top_p 1", "一"])
    assert texts(sampled)[0] == "一" and texts(sampled) != texts(first), "another seed"
    for line in ("stop", "/exit", "STOP ", "exit", "/bye"):
        assert texts(talk([line, "一"])) == []


def test_system_text(capsys):
    plain, with_system = talk(["一"]), talk(["/system 你是诗人。", "一"])
    assert with_system.session.record()["messages"][0] == {"role": "system", "content": "你是诗人。"}
    assert texts(plain) != texts(with_system) == texts(talk(["一"], "--system", "你是诗人。"))
    assert texts(talk(["/system 你是诗人。", "/system", "/system off", "一"])) == texts(plain)
    assert "你是诗人。" in capsys.readouterr().err


def test_settings(capsys):
    chat = talk(["/set", "/set max_new_tokens 3", "一", "/set temperature 0.5", "/set seed 7", "/set"])
    assert len(texts(chat)) == 2 and chat.options.max_new_tokens == 3
    assert (chat.options.do_sample, chat.options.temperature, chat.options.seed) == (True, 0.5, 7)
    before, after = capsys.readouterr().err.split("max_new_tokens is 3.")
    assert not talk(["/set temperature 0.5", "/set temperature 0"]).options.do_sample
    assert "0 (greedy)" in before and "0 (greedy)" not in after
    assert all(name in before and name in after for name in settings.NAMES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set top_p 2", "/set top_p 2.*at most 1"),
        ("/set temperature -1", "/set temperature -1 is out of bounds"),
        ("/set temperature nan", "temperature"),
        ("/set top_k x", "/set top_k: 'x'"),
        ("/set num_beams 2", "/set num_beams is unknown: choose one of temperature"),
        ("/set top_p", "no value"),
        ("/undo", "ask one first"),
        ("/regenerate", "ask one first"),
        ("/adapter x", "no adapter x: choose one of base"),
        ("/compare 你好", "nothing to compare"),
        ("/compare on", "nothing to compare"),
        ("/save", "name of a file"),
        ("/save a", "does not end with an answer"),
        ("/load /none/x.jsonl", "/none/x.jsonl"),
        ("/tools /none/x.json", "/none/x.json cannot be read"),
        ("/tools setup.cfg", "is not JSON"),
        ('/tools setup.cfg "a', "cannot be split"),
        ("/usr/bin 是什么", "/usr/bin is an unknown command"),
        ("描述 <image>", "place for an image"),
    ],
)
def test_errors(line, words, capsys):
    with pytest.raises(UserError, match=words):
        talk([line])
    chat = talk([line, "一"], interactive=True)
    assert "error: " in capsys.readouterr().out and texts(chat)[0] == "一"


def test_generations_without_tools(tmp_path):
    with pytest.raises(UserError, match="ChatGLM2-6B calls no tools"):
        talk([f"/tools {tmp_path}"], mode="glm2")


def test_save_and_load(tmp_path, capsys):
    file = tmp_path / "my chats.jsonl"
    chat = talk(["一", f"/save {file}", "/clear", f"/load {file}", "二", f"/save {file}"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(line["messages"]) for line in lines] == [2, 4]
    assert lines[1]["messages"] == chat.session.messages
    assert texts(chat) == texts(talk(["一", "二"]))


def test_adapters_answer_and_are_compared(lora, capsys):
    base = texts(talk(["一"]))
    alone = talk(["一"], "--model_path", lora)
    assert alone.models.names == ["tuned", "base"] and alone.prompt == "tuned>>> "
    tuned = texts(alone)
    assert tuned != base
    chat = talk(["一", "/adapter base", "/undo", "一"], "--lora", f"a={lora}", "--lora", f"b={lora}")
    assert texts(chat) == base and chat.models.names == ["a", "b", "base"]
    assert texts(talk(["一"], "--lora", f"a={lora}")) == tuned
    capsys.readouterr()
    compared = talk(["/compare 一"], "--model_path", lora)
    assert capsys.readouterr().out == f"base: {base[1]}\ntuned: {tuned[1]}\n"
    assert texts(compared) == tuned and not compared.comparing
    shown = talk(["/compare on", "一", "/compare off"], "--model_path", lora, interactive=True)
    assert texts(shown) == tuned


def test_adapters_share_the_weights_of_the_base(lora):
    models = make_chat([], "--lora", f"a={lora}", "--lora", f"b={lora}").models
    parameters = [{id(p) for p in models.get(name).answerer.model.parameters()} for name in models.names]
    base = parameters[-1]
    assert all(base < with_adapter for with_adapter in parameters[:-1])


def test_a_prefix_is_compared_with_its_base(tmp_path, capsys):
    prefix = prepared.checkpoint_of("glm2", "ptuning", prepared.OPTIONS["ptuning"], tmp_path / "prefix", noise=0.5)
    chat = talk(["/compare 一"], "--model_path", prefix, mode="glm2")
    base, tuned = texts(talk(["一"], mode="glm2")), texts(talk(["一"], "--model_path", prefix))
    assert texts(chat) == tuned != base
    assert f"base: {base[1]}\nprefix: {tuned[1]}\n" in capsys.readouterr().out


def test_verbose(capsys):
    talk(["一", "/verbose on", "二"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "tokens/s" in line]
    assert len(lines) == 1 and "of them cached" in lines[0] and "peak memory" in lines[0]


def test_two_way_prompts_are_explained_once(capsys):
    talk(["一", "二", "三"], mode="glm")
    assert capsys.readouterr().err.count("bidirectional") == 1


def test_a_conversation_that_exceeds_the_limit(capsys):
    chat = talk(["一" * 20, "二" * 20, "三" * 20], "--max_src_len", "70", mode="glm2")
    assert capsys.readouterr().err.count("oldest turns are left out") == 1 and len(texts(chat)) == 6


def test_a_conversation_longer_than_the_context(capsys):
    talk(["一" * 2500, "二"], "--max_new_tokens", "1", mode="glm2")
    assert capsys.readouterr().err.count("exceeds the 2,048 tokens") == 1


def test_help_lists_every_command(capsys):
    talk(["/help"])
    shown = capsys.readouterr().err
    assert [name for name in commands.COMMANDS if name not in shown] == []


CONVERSATION = [
    {"role": "user", "content": "北京天气？"},
    {"role": "assistant", "metadata": "get_weather", "content": "```python\ntool_call(city='北京')\n```"},
]
RESULTS = ("晴，25 度", "get_weather 2")


def learn_to_call(model):
    """Train all of a model to call the tool, and to answer 晴天 after its result."""
    mode, optimizer = MODES["glm3"], torch.optim.AdamW(model.parameters(), lr=5e-3)
    answers = [
        [*CONVERSATION, {"role": "observation", "content": result}, {"role": "assistant", "content": "晴天"}]
        for result in RESULTS
    ]
    records = [
        normalize({"messages": messages, "tools": TOOLS}, "", ANY, require_output=True)
        for messages in (CONVERSATION, *answers)
    ]
    rows = [mode.encode(golden.tokenizer("glm3"), record, 600, 500) for record in records]
    for _ in range(100):
        losses = [
            model(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss for r in rows
        ]
        loss = sum(losses) / len(losses)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            return
    raise AssertionError(f"the loss is still {loss}")


@pytest.fixture(scope="module")
def calling():
    """The parameters of a model that calls tools."""
    model = golden.load_model("glm3")
    learn_to_call(model)
    return model.state_dict()


@pytest.mark.parametrize("how", ["user", "command", "refused", "failed", "left"])
def test_tools(how, calling, tmp_path, capsys):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    program = COUNT if how != "failed" else "import sys; sys.exit('out of order')"
    (tmp_path / "run.py").write_text(program)
    with_command = f" {sys.executable} {tmp_path / 'run.py'}"
    lines = {
        "user": [f"/tools {file}", "北京天气？", RESULTS[0]],
        "command": [f"/tools {file}{with_command}", "北京天气？", "y"],
        "refused": [f"/tools {file}{with_command}", "北京天气？", "n", RESULTS[0]],
        "failed": [f"/tools {file}{with_command}", "北京天气？", "yes", RESULTS[0]],
        "left": [f"/tools {file}", "北京天气？"],
    }[how]
    chat = make_chat(lines, "--max_new_tokens", "90")
    chat.models.get("base").answerer.model.load_state_dict(calling)
    commands.converse(chat)
    output = capsys.readouterr()
    assert chat.session.messages[1] == CONVERSATION[1]
    assert "get_weather" in output.err and "tool_call(city='北京')" in output.err
    assert ("out of order" in output.err) == (how == "failed")
    if how == "left":
        assert len(chat.session.messages) == 2 and "without a result" in output.err
        return
    result = RESULTS[how == "command"]
    assert chat.session.messages[2:] == [
        {"role": "observation", "content": result}, {"role": "assistant", "content": "晴天"},
    ]  # fmt: skip
    assert output.out.strip() == "晴天"


def test_a_call_that_is_unreadable_is_not_passed_to_a_command(calling, tmp_path, capsys):
    """The model writes a call of something else, which `read_arguments` refuses."""
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    chat = make_chat(["我写"], "--max_new_tokens", "90")
    chat.models.get("base").answerer.model.load_state_dict(calling)
    commands.run(chat, f"/tools {file} {sys.executable} -c 1/0")
    chat.session.ask("北京天气？")
    assert chat._result(("get_weather", "print(1)")) == "我写"
    assert "unreadable" in capsys.readouterr().err


def test_a_checkpoint_in_a_directory_called_base(tmp_path, capsys):
    base = prepared.checkpoint_of("glm3", "lora", prepared.OPTIONS["lora"], tmp_path / "base", noise=0.3)
    chat = talk(["一"], "--model_path", base)
    assert chat.models.names == ["tuned", "base"] and texts(chat) != texts(talk(["一"]))


def test_a_checkpoint_cannot_take_adapters(lora):
    with pytest.raises(UserError, match="--lora needs a base"):
        make_chat([], "--model_path", lora, "--lora", f"a={lora}")
