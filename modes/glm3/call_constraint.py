"""The grammar of ChatGLM3's tool calls, for constrained decoding: Python as `write_call` writes it.

    calls_of_tools([{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": …}}}])
    # start: " "? (call_0)   call_0: "get_weather\\n ```python\\ntool_call(" … ")\\n```"   …

The text is in llguidance's Lark syntax. Of a tool's JSON schema it enforces types, enum, const, properties, required,
additionalProperties, items, anyOf and references; other keywords, such as pattern and minimum, are not enforced.
Arguments are in the order of the schema.
"""

import json
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

# Python literals. Without zero bytes and halves of surrogate pairs; numbers are finite.
TERMINALS = (
    r"""STRING: /'([^'\\\r\n\x00]|\\(['"\\nrt]|x[0-9a-f]{2}|u[0-9a-ce-f][0-9a-f]{3}))*'/"""
    r""" | /"([^"\\\r\n\x00]|\\["\\nrt])*"/""",
    r"INTEGER: /-?(0|[1-9][0-9]{0,18})/",
    r"NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,17})?(e[+-]?[0-9]{1,2})?/",
)
SIMPLE = {
    "string": "STRING",
    "integer": "INTEGER",
    "number": "NUMBER",
    "boolean": '("True" | "False")',
    "null": '"None"',
}
LISTS = ("required", "enum", "anyOf", "oneOf")
KINDS: dict[str, type | tuple[type, ...]] = {"properties": dict, **dict.fromkeys(LISTS, list), "type": (str, list)}
MAY_BE_EMPTY = ("properties", "required")
DEPTH = 4  # of lists and dicts in a value of any type; deep ones cannot be parsed


def calls_of_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """The grammar of an answer that calls one of some tools.

    Args:
        tools: {"name", "parameters"?}; the name is a word.

    Raises:
        ValueError: parameters that are no JSON schema of an object, or a reference to nothing; one sentence.
    """
    rules: dict[str, str] = {}
    for tool in tools:
        literals = Literals(tool["name"], tool.get("parameters") or {}, rules)
        begin, end = quoted(f"{tool['name']}\n ```python\ntool_call("), quoted(")\n```")
        rules[f"call_{len(rules)}"] = f"{begin} {literals.arguments()} {end}"
    calls = " | ".join(name for name in rules if name.startswith("call_"))
    lines = [f'start: " "? ({calls})', *(f"{name}: {rule}" for name, rule in rules.items()), *any_values()]
    return "\n".join([*lines, *TERMINALS])


def is_parameter_name(name: str) -> bool:
    """Whether a name is a valid argument name in Python, and is parsed back unchanged."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def quoted(text: str) -> str:
    """A text as a terminal."""
    return json.dumps(text)


def any_values() -> list[str]:
    """Rules any_0 (a value that is no list or dict) to any_DEPTH."""
    lines = [f"any_0: {' | '.join(SIMPLE.values())}"]
    for depth in range(1, DEPTH + 1):
        inner = f"any_{depth - 1}"
        lines.append(f"any_{depth}: any_0 | {list_of(inner)} | {dict_of(inner)}")
    return lines


def list_of(value: str) -> str:
    """A list of values."""
    return f'"[" ({value} (", " {value})*)? "]"'


def dict_of(value: str) -> str:
    """A dict of values with any names."""
    return f'"{{" (STRING ": " {value} (", " STRING ": " {value})*)? "}}"'


class Literals:
    """Expressions for the values of one tool's schema; adds the rules that they need to `rules`."""

    def __init__(self, tool: str, parameters: Mapping[str, Any], rules: dict[str, str]):
        self.tool = tool
        self.parameters = parameters
        self.rules = rules
        self.references: dict[str, str] = {}  # reference -> its rule

    def arguments(self) -> str:
        """The arguments between the parentheses of a call; as in `write_call`, odd names are in a dict at the end."""
        root = self.resolve(self.parameters) if "$ref" in self.parameters else self.parameters
        if root.get("type", "object") != "object":
            raise ValueError(f"The parameters of {self.tool!r} are of another type than object.")
        self.check(root)
        properties, required = root.get("properties", {}), root.get("required", [])
        plain = [name for name in properties if is_parameter_name(name)]
        odd = {name: properties[name] for name in properties if name not in plain}
        items = [(f"{quoted(name + '=')} {self.value(properties[name])}", name in required) for name in plain]
        if odd:
            needed = [name for name in odd if name in required]
            items.append((f'"**" {self.dict_with(odd, needed)}', bool(needed)))
        return self.listed(items)

    def value(self, schema: Any) -> str:
        """A value of a schema."""
        if not isinstance(schema, Mapping):
            return f"any_{DEPTH}"
        self.check(schema)
        if "$ref" in schema:
            return self.referenced(schema)
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return f"({' | '.join(quoted(repr(value)) for value in values)})"
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return f"({' | '.join(self.value(option) for option in schema[key])})"
        kinds = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else None)
        if isinstance(kinds, list):
            return f"({' | '.join(self.value({**schema, 'type': kind}) for kind in kinds)})"
        if kinds == "array":
            return list_of(self.value(schema.get("items")))
        if kinds == "object":
            return self.dict_of_schema(schema)
        return SIMPLE.get(str(kinds), f"any_{DEPTH}")

    def dict_of_schema(self, schema: Mapping[str, Any]) -> str:
        """A dict with a schema's properties, or with any names if it lists none."""
        if schema.get("properties"):
            return self.dict_with(schema["properties"], schema.get("required", []))
        further = schema.get("additionalProperties")
        return '"{" "}"' if further is False else dict_of(self.value(further))

    def dict_with(self, properties: Mapping[str, Any], required: Sequence[str]) -> str:
        """A dict with these names, in this order."""
        items = [
            (f"{quoted(f'{name!r}: ')} {self.value(schema)}", name in required) for name, schema in properties.items()
        ]
        return f'"{{" {self.listed(items)} "}}"'

    def listed(self, items: Sequence[tuple[str, bool]]) -> str:
        """Items in order with commas between them.

        Args:
            items: (expression, whether it is required)
        """
        starts: list[str] = []  # the list from each item that can be its first
        rest = ""
        for item, needed in reversed(items):
            if needed:
                starts = []
            starts.append(f"{item} {rest}")
            rest = self.rule(f'", " {item} {rest}' if needed else f'(", " {item})? {rest}')
        optional = not any(needed for _, needed in items)
        return f"({' | '.join(starts)}){'?' if optional else ''}" if items else ""

    def check(self, schema: Mapping[str, Any]) -> None:
        """Raise ValueError unless keywords have values of their type."""
        for key, kind in KINDS.items():
            value = schema.get(key)
            if key in schema and not (isinstance(value, kind) and (value or key in MAY_BE_EMPTY)):
                raise ValueError(f"The parameters of {self.tool!r} have an invalid value of {key!r}.")

    def rule(self, expression: str, name: str = "") -> str:
        """Add a rule; returns its name."""
        name = name or f"rest_{len(self.rules)}"
        self.rules[name] = expression
        return name

    def referenced(self, schema: Mapping[str, Any]) -> str:
        """The rule of a referenced schema, which may contain a reference to itself."""
        pointer = str(schema["$ref"])
        if pointer not in self.references:
            name = f"value_{len(self.rules)}"
            self.references[pointer] = self.rule("", name)
            self.rules[name] = self.value(self.resolve(schema))
        return self.references[pointer]

    def resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema that a reference names."""
        found: Any = self.parameters
        for key in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or found is schema:
            raise ValueError(f"The parameters of {self.tool!r} have no {schema['$ref']!r}.")
        return found
