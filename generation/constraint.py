"""Constrained decoding: masks of the tokens with which an answer stays JSON, or another grammar, through llguidance.

    vocabulary = Vocabulary(tokenizer, mode.stop_ids(tokenizer), config.vocab_size)      # once per model
    constraint = vocabulary.json_schema({"type": "object", "properties": {"城市": {"type": "string"}}})
    logits[~constraint.allowed()] = -inf                                                 # [v]
    constraint.accept(token)

The text of such an answer (`Mode.answer_text`) is valid once an end token is chosen.
"""

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
import torch

from modes.tokenizer import Tokenizer

JSON_OBJECT = {"type": "object"}
# Between the tokens of JSON: a line end with indentation, or spaces. Unlimited, a model could write it for ever.
WHITESPACE = r"\n( {0,32}|\t{0,8})| {1,2}"
# A space that the tokenizer puts in front of a text, and an empty first line, such as ChatGLM3's without a tool's name.
BEFORE_JSON = r"( \n?|\n) ?"
COMPILED = 64  # number of grammars kept


class Vocabulary:
    """The texts of a tokenizer's tokens, from which constraints choose. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], width: int):
        """Prepare a tokenizer, which takes about a second for 130,000 tokens.

        Args:
            stop_ids: tokens that end an answer.
            width: number of logits [v]. Ids without text and those after the vocabulary are never allowed.
        """
        texts = tokenizer.token_bytes()[:width]
        self.texts = texts + [b""] * (width - len(texts))
        for index in stop_ids:
            self.texts[index] = b""
        self.encode = tokenizer.encode_texts
        self.line_end = len(self.encode(["\n"], num_threads=1)[0])
        self.rewritten = Rewritten(self.texts, tokenizer.rewritten)
        source = llguidance.TokenizerWrapper(_Source(self, min(stop_ids)))
        self.tokens = llguidance.LLTokenizer(source, eos_token=sorted(stop_ids))
        self.compiled = lru_cache(COMPILED)(self._compile)

    def json_object(self) -> "GrammarConstraint":
        """Any JSON object."""
        return self.json_schema(JSON_OBJECT)

    def json_schema(self, schema: Mapping[str, Any]) -> "GrammarConstraint":
        """JSON that a schema describes; the order of an object's keys is that of its properties.

        Raises:
            ValueError: the schema is invalid or has an unsupported keyword; one sentence.
        """
        for text in self.rewritten.texts:
            if any(text in fixed for fixed in fixed_texts(schema)):
                raise ValueError(f"The schema has the text {text!r}, which the model's tokenizer cannot spell.")
        options = {"whitespace_pattern": WHITESPACE}
        inner = json.dumps({**schema, "x-guidance": options})
        grammar = f"start: BEFORE? json\nBEFORE: /{BEFORE_JSON}/\njson: %json {inner}"
        if self.compiled(grammar).is_error():
            alone = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_json_schema(dict(schema)))
            first, *others = (alone or self.compiled(grammar).get_error()).splitlines()
            detail = " " + others[-1] if others and others[-1].startswith("error:") else ""  # of a pattern
            raise ValueError(f"The schema cannot be used: {first.rstrip('.')}{detail}.")
        return self.lark(grammar)

    def lark(self, grammar: str) -> "GrammarConstraint":
        """A grammar in llguidance's Lark syntax, such as `CallGrammar.constraint`.

        Raises:
            ValueError: the grammar is invalid or too large; one sentence.
        """
        matcher = self.compiled(grammar)
        if matcher.is_error():
            raise ValueError(f"The grammar cannot be used: {matcher.get_error().splitlines()[0].rstrip('.')}.")
        return GrammarConstraint(self, matcher.deep_copy())

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self.tokens, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)


class _Source:
    """What llguidance reads of a tokenizer."""

    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, vocabulary: Vocabulary, eos_token_id: int):
        self.vocabulary = vocabulary
        self.tokens = vocabulary.texts
        self.eos_token_id = eos_token_id

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text within an answer; the grammar allows only these where it leaves no choice of text."""
        known = self.vocabulary
        ids = known.encode(["\n" + text.decode()], num_threads=1)[0][known.line_end :]
        if b"".join(self.tokens[index] for index in ids) == text:
            return ids
        return known.tokens.greedy_tokenize(text.decode())  # a text that the tokenizer normalizes


class Rewritten:
    """Which tokens would complete a text that the tokenizer's `decode` replaces by another.

    As an example, ChatGLM-6B decodes the tokens "<", "n" and ">" to a line end, which is invalid in a JSON string.
    """

    def __init__(self, tokens: list[bytes], texts: tuple[str, ...]):
        self.texts = texts
        spelled = [text.encode() for text in texts]
        self.longest = max(map(len, spelled), default=0)
        self.rests: dict[bytes, list[bytes]] = {}  # begun text -> rests that complete one
        for text in spelled:
            for i in range(1, len(text)):
                self.rests.setdefault(text[:i], []).append(text[i:])
        self.tokens = tokens
        self.with_text = [i for i, token in enumerate(tokens) if any(text in token for text in spelled)]
        self.completing = lru_cache(None)(self._completing)

    def _completing(self, begun: bytes) -> list[int]:
        """Ids of tokens that complete a begun text."""
        rests = tuple(self.rests[begun])
        return [i for i, token in enumerate(self.tokens) if token.startswith(rests)]

    def after(self, end: bytes) -> list[int]:
        """Ids of tokens that, after a text with this end, complete a text that is replaced."""
        begun = (end[-length:] for length in range(1, min(self.longest, len(end) + 1)))
        return self.with_text + [i for text in begun if text in self.rests for i in self.completing(text)]


class GrammarConstraint:
    """The state of one answer; see `generation.request.Constraint`."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher):
        self.vocabulary = vocabulary
        self.matcher = matcher
        self.end = b""  # of the text, as much as `Rewritten` needs

    def allowed(self) -> torch.Tensor:
        """The tokens that may come next: bool [v], on the CPU; with the end tokens where the answer may end."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=len(self.vocabulary.texts), bitorder="little").view(bool)
        replaced = self.vocabulary.rewritten.after(self.end)
        if replaced:
            kept = mask.copy()
            kept[replaced] = False
            mask = kept if kept.any() else mask  # a pattern may leave no other text
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        """Append a token, which was allowed."""
        self.matcher.consume_token(token)
        self.end = (self.end + self.vocabulary.texts[token])[-self.vocabulary.rewritten.longest :]


def fixed_texts(schema: object) -> list[str]:
    """Texts that a schema prescribes: names of properties, and the texts of "const" and "enum"."""
    if isinstance(schema, list):
        return [text for part in schema for text in fixed_texts(part)]
    if not isinstance(schema, Mapping):
        return []
    properties = schema.get("properties")
    names = list(properties) if isinstance(properties, Mapping) else []
    given = json.dumps([schema.get("const"), schema.get("enum")], ensure_ascii=False)
    return [*names, given, *(text for part in schema.values() for text in fixed_texts(part))]
