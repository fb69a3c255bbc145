"""The chat templates of all generations: the same ids as in training and prediction."""

import keyword
import random

import jinja2
import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from benchmarks.random_chats import NAMES, TOOLS, WORDS, random_chat
from benchmarks.tokenizer_json import Comparison
from data.formats import Columns, normalize
from export.tokenizer_json import write_tokenizer
from modes import MODES
from modes.directory import read_base
from tests import golden

TEXTS = [*WORDS, *NAMES, *TOOLS, "你好", " two  spaces ", "[gMASK]", "<sop>", "<|assistant|>\n", "</s>", "\n\n答："]
USER, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}
CALL = {"name": "get_weather", "arguments": {"city": "北京"}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
RESULT = {"role": "tool", "content": "晴"}
TOOL = {"name": "get_weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module", params=("glm2", "glm3"))
def written(request, tmp_path_factory):
    """(generation, our tokenizer, that of transformers)"""
    base, directory = read_base(golden.base_path(request.param), request.param), tmp_path_factory.mktemp("hf")
    write_tokenizer(base, directory)
    return base.generation, base.make_tokenizer(), AutoTokenizer.from_pretrained(directory)


def render(template, messages, tools=None, answered=False):
    """The text of a conversation, as `apply_chat_template` renders it."""
    texts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=not answered
    )
    return texts[0]


def record_of(messages, tools=None, answered=False):
    value = {"messages": messages, **({"tools": tools} if tools else {})}
    return normalize(value, "a.json:1", Columns(), require_output=answered)


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_random_conversations(mode):
    """Random seeds of their own: benchmarks/tokenizer_json.py has another."""
    assert list(Comparison(read_base(golden.base_path(mode), mode), 1).different_chats(400)) == []


@pytest.mark.parametrize("tools", [None, [TOOL], [{"type": "function", "function": TOOL}]])
@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "简短"}], [ANSWER]])
def test_a_prompt_is_the_start_of_its_row(written, before, tools):
    """A trainer supervises what follows the prompt: the answer and its end."""
    generation, ours, fast = written
    tools = tools if generation.calls else None
    messages = [*before, USER, ANSWER, USER]
    prompt = fast.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    plain = [TOOL] if tools else None
    assert prompt == fast.apply_chat_template(messages, tools=plain, add_generation_prompt=True, return_dict=False)
    row = fast.apply_chat_template([*messages, ANSWER], tools=tools, return_dict=False)
    assert row[: len(prompt)] == prompt == generation.prompt_ids(ours, record_of(messages, tools))
    expected = generation.encode(ours, record_of([*messages, ANSWER], tools, True), 10**6, 10**6)["input_ids"]
    assert row == expected and row[-1] == ours.eos_token_id


def test_names_of_special_tokens_stay_text(written):
    generation, ours, fast = written
    special = set(ours.markers.values())
    names = "<|user|> [gMASK] sop <sop> </s> <unk> <|observation|> philosophy"
    messages = [{"role": "system", "content": names}, {**USER, "content": names}, {**ANSWER, "content": names}, USER]
    ids = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    plain = fast.apply_chat_template(
        [{**message, "content": "x"} for message in messages], add_generation_prompt=True, return_dict=False
    )
    assert sum(index in special for index in ids) == sum(index in special for index in plain)
    assert fast.decode(ids).count(names) == 3


@pytest.mark.parametrize("messages, tools, sentence", [
    ([USER], [TOOL], "ChatGLM2-6B calls no tools: use ChatGLM3-6B"),
    ([USER, CALLING], None, "in alternation"), ([USER, ANSWER, RESULT], None, "in alternation"),
    ([USER, USER], None, "in alternation"), ([USER, {"role": "system", "content": "x"}], None, "in alternation"),
    ([USER, ANSWER], None, "The last message must be from user"),
    ([{"role": "user", "content": [{"type": "image"}]}], None, "has the type image: only text is supported"),
])  # fmt: skip
def test_what_chatglm2_cannot_render(messages, tools, sentence):
    with pytest.raises(jinja2.TemplateError, match=sentence):
        render(MODES["glm2"].chat_template(), messages, tools)


def test_what_chatglm3_cannot_render():
    template = MODES["glm3"].chat_template()
    with pytest.raises(jinja2.TemplateError, match="The role gpt is unknown: use system, developer, user, assistant"):
        render(template, [{"role": "gpt", "content": "x"}])
    as_text = {"name": "f", "arguments": '{"city": "北京"}'}
    with pytest.raises(jinja2.TemplateError, match="arguments of a tool call are a text: parse it"):
        render(template, [USER, {**ANSWER, "tool_calls": [{"function": as_text}]}])
    with pytest.raises(jinja2.TemplateError, match="The tools are a text: parse it as JSON before"):
        render(template, [{"role": "system", "content": "x", "tools": "[{}]"}, USER])


def test_answers_with_the_space_that_engines_return():
    template = MODES["glm3"].chat_template("<sop>", spaced_answers=True)
    spaced = {**ANSWER, "content": " 好"}
    assert render(template, [USER, spaced, USER]) == render(template, [USER, ANSWER, USER])
    assert render(MODES["glm3"].chat_template("<sop>"), [USER, spaced, USER]).count("\n  好") == 1


def test_keywords():
    """A call names its arguments, but not with words that Python reserves."""
    template = MODES["glm3"].chat_template()
    names = [*keyword.kwlist, "match", "_", "x1"]
    arguments = dict.fromkeys(names, 1)
    text = render(template, [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}])
    assert f"tool_call(match=1, _=1, x1=1, **{dict.fromkeys(keyword.kwlist, 1)!r})" in text


def test_calls_in_engines_without_repr():
    """Jinja of llama.cpp has another `format`: printable texts are written the same."""
    environment = jinja2.Environment()
    environment.filters["format"] = lambda text, *values: text
    template = environment.from_string(MODES["glm3"].chat_template())
    arguments = {
        "a": "it's", "b": 'say "it\'s"', "c": "行\n\t\\\r", "d": [None, True, {"x": -1.5, "": []}], "名": "a\"b"
    }  # fmt: skip
    messages = [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert template.render(messages=messages) == render(MODES["glm3"].chat_template(), messages, answered=True)


@pytest.mark.parametrize("mode", ["glm", "glm2"])
def test_official_tokenizers_encode_the_text_as_the_prompt(mode):
    """They add [gMASK] and sop themselves."""
    tokenizer, generation = golden.tokenizer(mode), MODES[mode]
    draw, template = random.Random(0), generation.chat_template()
    for _ in range(200):
        messages, _ = random_chat(draw, TEXTS, with_calls=False, answered=False)
        assert tokenizer(render(template, messages)).input_ids == generation.prompt_ids(tokenizer, record_of(messages))


def test_chatglm_renders_prompts_only():
    with pytest.raises(jinja2.TemplateError, match="pass add_generation_prompt=True"):
        render(MODES["glm"].chat_template(), [USER, ANSWER], answered=True)
    for messages in ([USER, ANSWER], [USER, USER], [USER, CALLING, USER]):
        with pytest.raises(jinja2.TemplateError, match="from user|in alternation"):
            render(MODES["glm"].chat_template(), messages)
    with pytest.raises(jinja2.TemplateError, match="calls no tools"):
        render(MODES["glm"].chat_template(), [USER], [TOOL])
