"""Scores of answers against references, from 0 to 1.

    score(["triples_f1", "rougeL"], predictions, references)
    # {"triples_precision": …, "triples_recall": …, "triples_f1": …, "rouge1": …, "rouge2": …, "rougeL": …}

Both sides are normalised with Unicode NFKC first, and white space around them and before punctuation is dropped:
ChatGLM-6B's tokenizer turns "？" into "?" and decodes "a ." as "a.", so a perfect answer would differ from its
reference. Nothing that a model wrote is ever
executed: it is compared as text, or read as JSON or as a call of literals. Every function is safe on empty answers; of
no records all scores are 0.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from evaluation.calls import arguments_of, split_call

FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.S)
NOT_JSON = object()


# What transformers' `clean_up_tokenization` replaces, which ChatGLM-6B's decoding calls.
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


def normalise(text: str) -> str:
    """NFKC, without white space around it, without spaces before punctuation.

    Replaced until nothing changes: a decoded answer has been through one round already, its reference through none.
    """
    text, before = unicodedata.normalize("NFKC", text), None
    while text != before:
        before = text
        for found, kept in CLEAN_UP:
            text = text.replace(found, kept)
    return text.strip()


def read_json(text: str) -> object:
    """The value of a JSON text, which may stand in a ```json fence; NOT_JSON if there is none.

    The texts within (also keys) are normalised after parsing, because NFKC makes quotation marks of "＂".
    """
    text = text.strip()
    fenced = FENCE.fullmatch(text)
    try:
        return _clean(json.loads(fenced[1] if fenced else text, parse_constant=_refuse))
    except (ValueError, RecursionError):  # not JSON; a number of thousands of digits; thousands of brackets
        return NOT_JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _clean(value: object) -> object:
    if isinstance(value, str):
        return normalise(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _canonical(value: object) -> str:
    """One text for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def lines_of(text: str) -> set[str]:
    """The lines of an answer, without blank ones and without space around them."""
    return {line.strip() for line in normalise(text).splitlines() if line.strip()}


def triple_sets(prediction: str, reference: str) -> tuple[set[str], set[str]]:
    """(what the prediction holds, what the reference holds), in the format of the reference.

    A reference that is a JSON list of objects (or one object, or an empty list) makes it JSON: each object is a
    triple, the order of its keys does not matter, and a prediction that is not JSON holds none. Otherwise each line is
    a triple, as in `a_关系_b`.
    """
    wanted = read_json(reference)
    wanted = [wanted] if isinstance(wanted, dict) else wanted
    if not isinstance(wanted, list) or not all(isinstance(item, dict) for item in wanted):
        return lines_of(prediction), lines_of(reference)
    found = read_json(prediction)
    if found is NOT_JSON:
        found = []
    found = found if isinstance(found, list) else [found]
    return {_canonical(item) for item in found}, {_canonical(item) for item in wanted}


def triples(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact matches of triples: micro precision, recall and F1 over all records.

    A record's triples are a set, so neither order nor repetition counts; see `triple_sets` for the two formats. A
    ratio without anything to divide by is 0.
    """
    right = found = wanted = 0
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, expected = triple_sets(prediction, reference)
        right += len(predicted & expected)
        found += len(predicted)
        wanted += len(expected)
    return {
        "triples_precision": right / max(found, 1),
        "triples_recall": right / max(wanted, 1),
        "triples_f1": 2 * right / max(found + wanted, 1),
    }


def json_valid(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of predictions that are a JSON list or object, fenced or not; the references do not matter."""
    assert len(predictions) == len(references)
    valid = sum(isinstance(read_json(prediction), list | dict) for prediction in predictions)
    return {"json_valid": valid / max(len(predictions), 1)}


def labels_of(text: str) -> frozenset[str]:
    """The labels of an answer: the items of a JSON list such as ["水果"], or the text as one label."""
    value = read_json(text)
    if isinstance(value, str):
        return frozenset([value])
    if isinstance(value, list):
        return frozenset(item if isinstance(item, str) else _canonical(item) for item in value)
    return frozenset([normalise(text)])


def labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Accuracy (the same set of labels) and macro-F1.

    Macro-F1 is the plain mean of the F1 of every label that occurs in the references. A predicted label that occurs
    in none has no F1 of its own (a model may invent any number of them); it counts as a miss of the right one. Where
    the references hold no label at all (they are all []), it is the accuracy.
    """
    from scipy.sparse import lil_matrix  # here: scikit-learn takes a second to import
    from sklearn.metrics import f1_score

    pairs = [(labels_of(p), labels_of(r)) for p, r in zip(predictions, references, strict=True)]
    accuracy = sum(predicted == expected for predicted, expected in pairs) / max(len(pairs), 1)
    columns = {label: i for i, label in enumerate(sorted(set().union(*(expected for _, expected in pairs))))}
    if not columns:  # no records, or all references are []
        return {"label_accuracy": accuracy, "label_macro_f1": accuracy}
    # [records, labels + 1]: the last column, for labels unknown to the references, takes no part in the mean
    found, wanted = (lil_matrix((len(pairs), len(columns) + 1), dtype=int) for _ in range(2))
    for row, (predicted, expected) in enumerate(pairs):
        for label in predicted:
            found[row, columns.get(label, len(columns))] = 1
        for label in expected:
            wanted[row, columns[label]] = 1
    macro_f1 = f1_score(wanted.tocsr(), found.tocsr(), labels=range(len(columns)), average="macro", zero_division=0)
    return {"label_accuracy": accuracy, "label_macro_f1": float(macro_f1)}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-4 on characters (https://aclanthology.org/P02-1040), of the whole corpus: n-grams are counted over all
    records, then precision and brevity are taken once.

    sacrebleu's "char" tokenizer (white space does not count) and exponential smoothing; an order of which the
    predictions are too short to hold any n-gram is left out, so equal texts score 1 however short they are.
    """
    from sacrebleu.metrics import BLEU

    predictions, references = _normalised(predictions, references)
    if not any(predictions) and not any(references):
        return {"bleu4": float(len(references) > 0)}
    metric = BLEU(tokenize="char", smooth_method="exp", effective_order=True, force=True)
    # force: no warning about texts that end in " ."; the mean of logarithms may round to just above 100
    return {"bleu4": min(metric.corpus_score(predictions, [references]).score / 100, 1.0)}


class Characters:
    """A tokenizer for rouge_score, whose own drops every letter that is not ASCII."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        """The characters of a text but white space."""
        return [character for character in text if not character.isspace()]


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F1 on characters (https://aclanthology.org/W04-1013), the mean over records.

    Equal texts score 1, also where they are too short for the n-gram or empty.
    """
    from rouge_score.rouge_scorer import RougeScorer  # here: it takes a second to import

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=Characters)
    totals = dict.fromkeys(names, 0.0)
    pairs = list(zip(*_normalised(predictions, references), strict=True))
    for prediction, reference in pairs:
        found = None if prediction == reference else scorer.score(target=reference, prediction=prediction)
        for name in names:
            totals[name] += found[name].fmeasure if found else 1.0
    return {name: total / max(len(pairs), 1) for name, total in totals.items()}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their reference, normalised."""
    pairs = list(zip(*_normalised(predictions, references), strict=True))
    return {"exact_match": sum(prediction == reference for prediction, reference in pairs) / max(len(pairs), 1)}


def tool_of(text: str) -> tuple[str, object] | None:
    """(name, keyword arguments) of an answer that calls a tool, see evaluation/calls.py; None of one that does not.

    Instead of arguments that cannot be read there is the call's text, so that it equals only itself.
    """
    call = split_call(text)
    if call is None:
        return None
    arguments = arguments_of(call[1])
    return normalise(call[0]), normalise(call[1]) if arguments is None else _clean(arguments)


def tools(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """tool_name: the share of records where the same tool is called, or none where none should be.

    tool_call: of the records where one is or should be called, the share where it is the right one and gets the right
    arguments, which are values that Python holds equal: 1 is 1.0, and the order of keys does not matter. Where there is
    no such record, it is tool_name.
    """
    pairs = [(tool_of(p), tool_of(r)) for p, r in zip(predictions, references, strict=True)]
    names = sum((found and found[0]) == (wanted and wanted[0]) for found, wanted in pairs) / max(len(pairs), 1)
    calls = [found == wanted for found, wanted in pairs if found or wanted]
    return {"tool_name": names, "tool_call": sum(calls) / len(calls) if calls else names}


def _normalised(*sides: Iterable[str]) -> list[list[str]]:
    return [[normalise(text) for text in side] for side in sides]


# Every score -> the function that makes it; a function may make several.
SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], dict[str, float]]] = {
    "triples_f1": triples,
    "triples_precision": triples,
    "triples_recall": triples,
    "json_valid": json_valid,
    "label_accuracy": labels,
    "label_macro_f1": labels,
    "bleu4": bleu,
    "rouge1": rouge,
    "rouge2": rouge,
    "rougeL": rouge,
    "exact_match": exact_match,
    "tool_name": tools,
    "tool_call": tools,
}


def score(names: Iterable[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The named scores, and those that come along with them (precision and recall beside F1), in the order of SCORES.

    Args:
        names: keys of SCORES.
        predictions: answers of a model.
        references: what they should be, as many.
    """
    wanted = set(names)
    assert wanted <= SCORES.keys() and len(predictions) == len(references)
    functions = dict.fromkeys(function for name, function in SCORES.items() if name in wanted)  # each one once
    return {name: value for function in functions for name, value in function(predictions, references).items()}


def score_by_task(
    name: str, predictions: Sequence[str], references: Sequence[str], tasks: Sequence[str] = ()
) -> dict[str, float]:
    """The named score with those that come along, and "NAME/TASK" for each of several tasks.

    Args:
        tasks: the task of each prediction; empty for no tasks.
    """
    figures = score([name], predictions, references)
    for task in dict.fromkeys(tasks) if len(set(tasks)) > 1 else ():
        chosen = [i for i, one in enumerate(tasks) if one == task]
        of_task = score([name], [predictions[i] for i in chosen], [references[i] for i in chosen])
        figures[f"{name}/{task}"] = of_task[name]
    return figures
