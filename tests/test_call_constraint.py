"""modes/glm3/call_constraint.py: whatever a model's logits, a constrained answer calls a tool as its schema says."""

import json

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modes import MODES
from modes.glm3.call_constraint import calls_of_tools
from tests import golden
from tests.test_constraint import VOCABULARIES, WIDTH, finite

MODE, TOKENIZER, VOCABULARY = MODES["glm3"], golden.tokenizer("glm3"), VOCABULARIES["glm3"]
CALLS = MODE.calls
CLOSING = (b'"', b"'", b"]", b"}", b")")
PREFERENCE = torch.tensor([3.0 if text[-1:] in CLOSING else 0.0 for text in VOCABULARY.texts])
NAMES = ["city", "from", "城市", "a b", "it's", "days", 'quo"te', "n"]


def generate(grammar, seed, most=400):
    """Ids of an answer of a model with random logits; None for one that is too long."""
    constraint, ids = VOCABULARY.lark(grammar), []
    generator = torch.Generator().manual_seed(seed)
    while len(ids) < most:
        logits = torch.randn(WIDTH, generator=generator) + PREFERENCE
        token = logits.masked_fill(~constraint.allowed(), -torch.inf).argmax().item()
        if token in MODE.stop_ids(TOKENIZER):
            return ids
        ids.append(token)
        constraint.accept(token)
    return None


def schemas(depth=2):
    """Random schemas of one argument."""
    kinds = st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind})
    enums = st.lists(st.sampled_from(["晴", "it's", 'a"b', 1, 2.5, None, True, [1, "x"], {"k": "v"}, "x\ny", "🌧️"]),
                     min_size=1, max_size=4).map(lambda values: {"enum": values})  # fmt: skip
    leaves = st.one_of(kinds, enums, st.just({}), st.just({"type": ["integer", "null"]}), st.just({"const": "c"}))
    if not depth:
        return leaves
    inner = schemas(depth - 1)
    arrays = inner.map(lambda items: {"type": "array", "items": items})
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    maps = inner.map(lambda values: {"type": "object", "additionalProperties": values})
    return st.one_of(leaves, arrays, unions, maps, objects(inner))


def objects(inner):
    """Random schemas of objects."""
    return st.builds(
        lambda properties, skip: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[skip::2],
            "additionalProperties": False,
        },
        st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=4),
        st.integers(0, 3),
    )


def checked(tools, ids):
    """(name, arguments) of a call, which fit the tools."""
    text = MODE.answer_text(TOKENIZER, ids)
    name, code = CALLS.split(text)
    arguments = CALLS.read_arguments(code)
    (schema,) = [tool.get("parameters") for tool in tools if tool["name"] == name]
    jsonschema_rs.validate(schema, json.loads(json.dumps(arguments), parse_float=finite))
    return name, arguments


@settings(max_examples=150, deadline=None)
@given(st.lists(objects(schemas()), min_size=1, max_size=3), st.integers(0, 2**31))
def test_random_tools(parameters, seed):
    tools = [{"name": name, "parameters": schema} for name, schema in zip(["get_weather", "查询", "x-1"], parameters,
                                                                         strict=False)]  # fmt: skip
    ids = generate(calls_of_tools(tools), seed)
    if ids is not None:
        checked(tools, ids)


def test_what_training_writes_is_allowed():
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "number"}},
                       "more": {}, "from": {"type": "object"}},
        "required": ["city"],
    }  # fmt: skip
    grammar = calls_of_tools([{"name": "get_weather", "parameters": parameters}, {"name": "now"}])
    calls = [
        {"name": "now", "arguments": {}},
        {"name": "get_weather", "arguments": {"city": "北京 it's"}},
        {"name": "get_weather", "arguments": {"city": 'a"b\'c\n\t\\\x1b\u200b', "from": {}}},
        {"name": "get_weather", "arguments": {"city": "", "days": [1, 1e-07, -2.5, 1e16], "more": [None, {"k": [True]}],
                                              "from": {"a": 1, "b": "x"}}},
    ]  # fmt: skip
    for call in calls:
        record = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "", "call": call}],
                  "ready": False}  # fmt: skip
        row = MODE.encode(TOKENIZER, record, 1000, 1000)
        answer = [label for label in row["labels"] if label != -100][1:-1]  # between <|assistant|> and the end
        constraint = VOCABULARY.lark(grammar)
        for token in answer:
            assert constraint.allowed()[token], (call, TOKENIZER.decode(answer), TOKENIZER.decode([token]))
            constraint.accept(token)
        assert constraint.allowed().nonzero().flatten().tolist() == sorted(MODE.stop_ids(TOKENIZER))
        text = MODE.answer_text(TOKENIZER, answer)
        assert CALLS.read_arguments(CALLS.split(text)[1]) == call["arguments"]


def test_references_of_a_schema_to_itself():
    tree = {"type": "object", "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                                             "size": {"type": "integer"}},
            "required": ["left", "size"], "additionalProperties": False}  # fmt: skip
    tools = [{"name": "plant", "parameters": {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}}]
    depths = set()
    for seed in range(12):
        ids = generate(calls_of_tools(tools), seed)
        if ids is not None:
            depths.add(json.dumps(checked(tools, ids)[1]).count("left"))
    assert len(depths) > 1


@pytest.mark.parametrize(
    "parameters, error",
    [
        ({"type": "array"}, "The parameters of 'f' are of another type than object."),
        ({"properties": []}, "The parameters of 'f' have an invalid value of 'properties'."),
        ({"properties": {"a": {"enum": []}}}, "The parameters of 'f' have an invalid value of 'enum'."),
        ({"properties": {"a": {"anyOf": {}}}}, "The parameters of 'f' have an invalid value of 'anyOf'."),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}}, "The parameters of 'f' have no '#/$defs/x'."),
        ({"properties": {"a": {"$ref": "https://example.com/x"}}}, "The parameters of 'f' have no 'https://"),
    ],
)
def test_parameters_that_are_no_schema(parameters, error):
    with pytest.raises(ValueError) as raised:
        calls_of_tools([{"name": "f", "parameters": parameters}])
    assert str(raised.value).startswith(error)
