"""Scores of answers against references, from 0 to 1.

    score(["triples_f1", "rougeL"], predictions, references)
    # {"triples_precision": …, "triples_recall": …, "triples_f1": …, "rouge1": …, "rouge2": …, "rougeL": …}

Both sides are normalized with Unicode NFKC first, and white space around them and before punctuation is removed:
ChatGLM-6B's tokenizer converts "？" to "?" and decodes "a ." as "a.", so a perfect answer would differ from its
reference. Output of a model is never executed: it is compared as text, or parsed as JSON or as a tool call. Every
function accepts empty answers; without records all scores are 0.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from modes import MODES

FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.S)
NOT_JSON = object()


# Replacements of transformers' `clean_up_tokenization`, which ChatGLM-6B's decoding calls.
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


def normalize(text: str) -> str:
    """NFKC, without surrounding white space and without spaces before punctuation.

    Repeated until nothing changes: decoding has applied CLEAN_UP to an answer once, but not to its reference.
    """
    text, before = unicodedata.normalize("NFKC", text), None
    while text != before:
        before = text
        for spaced, joined in CLEAN_UP:
            text = text.replace(spaced, joined)
    return text.strip()


def read_json(text: str) -> object:
    """The value of a JSON text, which may be in a ```json fence; NOT_JSON if it is invalid.

    Its texts (also keys) are normalized after parsing, because NFKC converts "＂" to quotation marks.
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
        return normalize(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _canonical(value: object) -> str:
    """A text that is equal for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def lines_of(text: str) -> set[str]:
    """The lines of an answer, stripped, without blank ones."""
    return {line.strip() for line in normalize(text).splitlines() if line.strip()}


def triple_sets(prediction: str, reference: str) -> tuple[set[str], set[str]]:
    """(triples of the prediction, triples of the reference), in the reference's format.

    The format is JSON if the reference is a JSON list of objects (or one object, or an empty list): each object is a
    triple, the order of its keys does not matter, and a prediction that is not JSON has none. Otherwise each line is a
    triple, as in `a_关系_b`.
    """
    expected = read_json(reference)
    expected = [expected] if isinstance(expected, dict) else expected
    if not isinstance(expected, list) or not all(isinstance(item, dict) for item in expected):
        return lines_of(prediction), lines_of(reference)
    predicted = read_json(prediction)
    if predicted is NOT_JSON:
        predicted = []
    predicted = predicted if isinstance(predicted, list) else [predicted]
    return {_canonical(item) for item in predicted}, {_canonical(item) for item in expected}


def triples(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact matches of triples: micro precision, recall and F1 over all records.

    A record's triples are a set, so neither order nor repetition counts; see `triple_sets` for the two formats. A ratio
    with a zero denominator is 0.
    """
    correct = num_predicted = num_expected = 0
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, expected = triple_sets(prediction, reference)
        correct += len(predicted & expected)
        num_predicted += len(predicted)
        num_expected += len(expected)
    return {
        "triples_precision": correct / max(num_predicted, 1),
        "triples_recall": correct / max(num_expected, 1),
        "triples_f1": 2 * correct / max(num_predicted + num_expected, 1),
    }


def json_valid(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The fraction of predictions that are a JSON list or object, fenced or not; references are ignored."""
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
    return frozenset([normalize(text)])


def labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Accuracy (the same set of labels) and macro-F1.

    Macro-F1 is the mean of the F1 of all labels in the references. A predicted label that is in no reference has no F1
    of its own (a model may invent any number); it counts as a miss of the right one. If the references have no labels
    (all are []), macro-F1 is the accuracy.
    """
    from scipy.sparse import lil_matrix  # imported here because scikit-learn takes a second
    from sklearn.metrics import f1_score

    pairs = [(labels_of(p), labels_of(r)) for p, r in zip(predictions, references, strict=True)]
    accuracy = sum(predicted == expected for predicted, expected in pairs) / max(len(pairs), 1)
    columns = {label: i for i, label in enumerate(sorted(set().union(*(expected for _, expected in pairs))))}
    if not columns:  # no records, or all references are []
        return {"label_accuracy": accuracy, "label_macro_f1": accuracy}
    # [records, labels + 1]: the last column, for labels that no reference has, is not in the mean
    predicted_labels, expected_labels = (lil_matrix((len(pairs), len(columns) + 1), dtype=int) for _ in range(2))
    for row, (predicted, expected) in enumerate(pairs):
        for label in predicted:
            predicted_labels[row, columns.get(label, len(columns))] = 1
        for label in expected:
            expected_labels[row, columns[label]] = 1
    macro_f1 = f1_score(
        expected_labels.tocsr(), predicted_labels.tocsr(), labels=range(len(columns)), average="macro", zero_division=0
    )
    return {"label_accuracy": accuracy, "label_macro_f1": float(macro_f1)}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-4 on characters (https://aclanthology.org/P02-1040): n-grams are counted over all records.

    sacrebleu's "char" tokenizer (white space does not count) and exponential smoothing. Orders for which the
    predictions are too short are skipped, so equal texts score 1 at any length.
    """
    from sacrebleu.metrics import BLEU

    predictions, references = _normalized(predictions, references)
    if not any(predictions) and not any(references):
        return {"bleu4": float(len(references) > 0)}
    metric = BLEU(tokenize="char", smooth_method="exp", effective_order=True, force=True)
    # force: no warning about texts that end in " ."; the mean of logarithms may be slightly above 100
    return {"bleu4": min(metric.corpus_score(predictions, [references]).score / 100, 1.0)}


class Characters:
    """A tokenizer for rouge_score, whose own drops all letters that are not ASCII."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        """The characters of a text, without white space."""
        return [character for character in text if not character.isspace()]


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F1 on characters (https://aclanthology.org/W04-1013), the mean over records.

    Equal texts score 1, also if they are empty or too short for the n-gram.
    """
    from rouge_score.rouge_scorer import RougeScorer  # imported here because it takes a second

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=Characters)
    totals = dict.fromkeys(names, 0.0)
    pairs = list(zip(*_normalized(predictions, references), strict=True))
    for prediction, reference in pairs:
        scores = None if prediction == reference else scorer.score(target=reference, prediction=prediction)
        for name in names:
            totals[name] += scores[name].fmeasure if scores else 1.0
    return {name: total / max(len(pairs), 1) for name, total in totals.items()}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The fraction of predictions that equal their reference, after normalization."""
    pairs = list(zip(*_normalized(predictions, references), strict=True))
    return {"exact_match": sum(prediction == reference for prediction, reference in pairs) / max(len(pairs), 1)}


def tool_of(text: str) -> tuple[str, object] | None:
    """(name, arguments) of an answer that calls a tool in the form of any generation; None for others.

    Any generation: one without tools can be trained to write another's calls as plain text. Arguments that cannot be
    parsed are replaced by the call's text, so that it equals only itself.
    """
    for grammar in (mode.calls for mode in MODES.values()):
        if grammar and (call := grammar.split(text)):
            name, code = call
            arguments = grammar.read_arguments(code)
            return normalize(name), normalize(code) if arguments is None else _clean(arguments)
    return None


def tools(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """tool_name: the fraction of records where the right tool is called, or none if none should be.

    tool_call: of the records where a tool is or should be called, the fraction with the right tool and arguments.
    Arguments are compared as Python values: 1 equals 1.0, and the order of keys does not matter. Without such records
    it is tool_name.
    """
    pairs = [(tool_of(p), tool_of(r)) for p, r in zip(predictions, references, strict=True)]
    names = sum((called and called[0]) == (expected and expected[0]) for called, expected in pairs) / max(len(pairs), 1)
    calls = [called == expected for called, expected in pairs if called or expected]
    return {"tool_name": names, "tool_call": sum(calls) / len(calls) if calls else names}


def _normalized(*sides: Iterable[str]) -> list[list[str]]:
    return [[normalize(text) for text in side] for side in sides]


# Score -> its function, which may compute several.
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
    """The named scores and those of the same function (precision and recall with F1), in the order of SCORES.

    Args:
        names: keys of SCORES.
        predictions: answers of a model.
        references: the right answers, one for each prediction.
    """
    wanted = set(names)
    assert wanted <= SCORES.keys() and len(predictions) == len(references)
    functions = dict.fromkeys(function for name, function in SCORES.items() if name in wanted)  # each function once
    return {name: value for function in functions for name, value in function(predictions, references).items()}


def score_by_task(
    name: str, predictions: Sequence[str], references: Sequence[str], tasks: Sequence[str] = ()
) -> dict[str, float]:
    """The named score with those of the same function, and "NAME/TASK" for each of several tasks.

    Args:
        tasks: the task of each prediction; empty without tasks.
    """
    figures = score([name], predictions, references)
    for task in dict.fromkeys(tasks) if len(set(tasks)) > 1 else ():
        chosen = [i for i, row_task in enumerate(tasks) if row_task == task]
        of_task = score([name], [predictions[i] for i in chosen], [references[i] for i in chosen])
        figures[f"{name}/{task}"] = of_task[name]
    return figures
