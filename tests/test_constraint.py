"""generation/constraint.py: whatever a model's logits, a constrained answer is valid, and decoded as constrained."""

import json
import random

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modes import MODES
from modes.glm.tokenization import ChatGLMTokenizer
from tests import golden

pytest.importorskip("llguidance")
from generation.constraint import Rewritten, Vocabulary, fixed_texts  # noqa: E402

WIDTH = 2432  # logits of the golden models
NAMES = ["城市", "name", "<n>", "a b", "é'", 'quo"te', "n"]
TEXTS = ["晴", "<n", "it's", "a\\b", "", "🌧️", "x\ny"]


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return MODES[request.param]


VOCABULARIES = {
    name: Vocabulary(golden.tokenizer(name), mode.stop_ids(golden.tokenizer(name)), WIDTH)
    for name, mode in MODES.items()
}


def generate(mode, constraint, seed, most=600):
    """Ids of an answer of a model with random logits, which prefers to end and dislikes whitespace and brackets."""
    tokenizer = golden.tokenizer(mode.name)
    texts = VOCABULARIES[mode.name].texts
    preference = torch.tensor([-2.0 if not text.strip() or text.strip()[-1:] in b"[{" else 0.0 for text in texts])
    preference[[i for i, text in enumerate(texts) if text[-1:] in (b'"', b"]", b"}")]] = 2.0
    preference[mode.stop_ids(tokenizer)] = 4.0
    generator, ids = torch.Generator().manual_seed(seed), []
    while len(ids) < most:
        allowed = constraint.allowed()
        assert allowed.shape == (WIDTH,) and allowed.dtype == torch.bool and allowed.any()
        logits = torch.randn(WIDTH, generator=generator) + preference
        token = logits.masked_fill(~allowed, -torch.inf).argmax().item()
        if token in mode.stop_ids(tokenizer):
            return ids
        ids.append(token)
        constraint.accept(token)
    return None


def finite(number):
    """A number of JSON; the validator takes infinity, as which Python reads 1e999, for null."""
    return max(-1e300, min(1e300, float(number)))


def schemas(depth=2):
    """Random schemas without annotations."""
    fixed = st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}])
    bounded = st.builds(lambda least: {"type": "integer", "minimum": least, "maximum": least + 9}, st.integers(-9, 99))
    texts = st.builds(lambda least: {"type": "string", "minLength": least, "maxLength": least + 4}, st.integers(0, 3))
    patterns = st.sampled_from(["^[a-z]{2,5}$", "^(晴|雨)天?$", "^\\d{4}-\\d{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    )
    enums = st.lists(st.sampled_from([*TEXTS, 1, None, True]), min_size=1, unique_by=repr).map(
        lambda values: {"enum": values}
    )
    leaves = st.one_of(fixed, bounded, texts, patterns, enums)
    if not depth:
        return leaves
    inner = schemas(depth - 1)
    arrays = st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 2},
                       inner, st.integers(0, 1))  # fmt: skip
    unions = st.lists(inner, min_size=2, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(leaves, arrays, unions, objects(inner))


def objects(inner):
    """Random schemas of objects."""

    def build(properties, number):
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:number],
            "additionalProperties": False,
        }

    names = st.sampled_from([name for name in NAMES if name != "<n>"])
    return st.builds(build, st.dictionaries(names, inner, min_size=1, max_size=4), st.integers(0, 4))


def test_bytes_of_tokens_are_those_of_decode(mode):
    tokenizer = golden.tokenizer(mode.name)
    texts = tokenizer.token_bytes()
    before = tokenizer.encode_texts(["好"])[0]
    silent = {index for index, text in enumerate(texts) if not text}
    assert len(texts) == tokenizer.vocab_size and set(mode.stop_ids(tokenizer)) <= silent
    for index, text in enumerate(texts):
        decoded = tokenizer.decode([*before, index])
        if index in silent:
            assert decoded.strip("\u2047 ") in ("好", f"好{tokenizer.convert_ids_to_tokens(index)}")
        else:
            assert decoded == "好" + text.decode(errors="replace")
    assert {bytes([value]) for value in range(256)} <= set(texts)
    bytewise = [texts.index(bytes([value])) for value in "天气 🌧️".encode()]
    assert tokenizer.decode([*before, *bytewise]) == "好天气 🌧️"


def test_image_tokens_and_commands_have_no_text():
    tokenizer = ChatGLMTokenizer(golden.base_path("glm") / "ice_text.model", num_image_tokens=100)
    assert tokenizer.token_bytes() == [b""] * 100 + golden.tokenizer("glm").token_bytes()
    assert tokenizer.token_bytes()[tokenizer.gmask_token_id] == b""


def test_all_that_decode_replaces_is_known():
    """Texts of short tokens, which spell what a tokenizer rewrites."""
    tokenizer = golden.tokenizer("glm")
    texts = tokenizer.token_bytes()
    by_byte = [texts.index(bytes([value])) for value in range(128)]
    for text in tokenizer.rewritten:
        assert tokenizer.decode([by_byte[ord(char)] for char in "x" + text]) != "x" + text
    pick = random.Random(0)
    letters = "<n>|tab_blk 12.?!,'tmsver"
    for _ in range(2000):
        text = "x" + "".join(pick.choices(letters, k=8))
        changed = tokenizer.decode([by_byte[ord(char)] for char in text]) != text
        assert changed == any(replaced in text for replaced in tokenizer.rewritten)


def test_tokens_that_complete_a_rewritten_text():
    rewritten = Rewritten([b"n", b">", b"n>x", b"<n>", b">>", b"<"], ("<n>",))
    assert rewritten.after(b"") == rewritten.after(b"n") == [3]
    assert sorted(rewritten.after(b"a<")) == [2, 3] and sorted(rewritten.after(b"a<n")) == [1, 3, 4]


def test_objects_of_random_logits(mode):
    vocabulary, tokenizer, ended = VOCABULARIES[mode.name], golden.tokenizer(mode.name), 0
    for seed in range(30):
        ids = generate(mode, vocabulary.json_object(), seed)
        if ids is not None:
            assert type(json.loads(mode.answer_text(tokenizer, ids))) is dict
            ended += 1
    assert ended > 20


@settings(max_examples=150, deadline=None)
@given(schema=objects(schemas()), seed=st.integers(0, 2**31))
def test_random_schemas(schema, seed):
    for name, mode in MODES.items():
        ids = generate(mode, VOCABULARIES[name].json_schema(schema), seed)
        if ids is not None:
            text = mode.answer_text(golden.tokenizer(name), ids)
            jsonschema_rs.validate(schema, json.loads(text, parse_float=finite))


def test_an_answer_may_begin_as_the_tokenizer_begins_texts(mode):
    vocabulary, tokenizer = VOCABULARIES[mode.name], golden.tokenizer(mode.name)
    for text in ('{"城市": "北京", "n": [1, 2]}', '{\n  "城市": "北京",\n  "n": []\n}', '\n{"n": 1}'):
        constraint = vocabulary.json_object()
        for token in tokenizer.encode_texts([text])[0]:
            assert constraint.allowed()[token]
            constraint.accept(token)
        assert constraint.allowed().nonzero().flatten().tolist() == sorted(mode.stop_ids(tokenizer))


def test_whitespace_ends():
    """A model that likes nothing more gets on with the object."""
    vocabulary = VOCABULARIES["glm3"]
    blank = [i for i, text in enumerate(vocabulary.texts) if text and not text.strip()]
    for opened in b"{[":
        constraint = vocabulary.json_schema({"type": "object" if opened == ord("{") else "array"})
        constraint.accept(vocabulary.texts.index(bytes([opened])))
        for _ in range(40):
            allowed = [i for i in blank if constraint.allowed()[i]]
            if not allowed:
                break
            constraint.accept(allowed[-1])
        assert not allowed


def test_forced_text_is_the_tokenizers_own(mode):
    vocabulary, tokenizer = VOCABULARIES[mode.name], golden.tokenizer(mode.name)
    constraint = vocabulary.json_schema({"const": "请问北京的天气"})
    for token in tokenizer.encode_texts(["请"])[0][:-1] + [vocabulary.texts.index(b'"')]:
        constraint.accept(token)
    only = constraint.allowed().nonzero().flatten().tolist()
    after = tokenizer.encode_texts(["\n请问北京的天气"])[0][vocabulary.line_end]
    assert only == [after]


def test_each_request_has_its_own_state(mode):
    vocabulary = VOCABULARIES[mode.name]
    first, second = vocabulary.json_object(), vocabulary.json_object()
    first.accept(vocabulary.texts.index(b"{"))
    assert not first.allowed().equal(second.allowed()) and second.allowed().equal(vocabulary.json_object().allowed())


@pytest.mark.parametrize(
    "schema, cause",
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "object", "dependentSchemas": {}}, 'Unimplemented keys: ["dependentSchemas"]'),
        ({"type": "object", "properties": 3}, "properties must be an object"),
        ({"type": "string", "pattern": "(?=a)"}, "regex parse error: error: look-around"),
        ({"$ref": "#/$defs/x"}, "Pointer '/$defs/x' does not exist"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum (5) is greater than maximum (1)"),
    ],
)
def test_an_unusable_schema_is_one_sentence(schema, cause, capfd):
    with pytest.raises(ValueError) as error:
        VOCABULARIES["glm3"].json_schema(schema)
    text = str(error.value)
    assert text.startswith("The schema cannot be used: ") and cause in text and text.endswith(".")
    assert "\n" not in text and capfd.readouterr() == ("", "")


def test_a_text_that_cannot_be_spelled():
    schema = {"type": "object", "properties": {"a": {"items": {"enum": ["x", {"b": "1 <n>"}]}}}}
    assert '[null, ["x", {"b": "1 <n>"}]]' in fixed_texts(schema) and "a" in fixed_texts(schema)
    with pytest.raises(
        ValueError, match=r"^The schema has the text '<n>', which the model's tokenizer cannot spell\.$"
    ):
        VOCABULARIES["glm"].json_schema(schema)
    assert VOCABULARIES["glm3"].json_schema(schema) and VOCABULARIES["glm"].json_schema({"description": "<n>"})
