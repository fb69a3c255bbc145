"""scores.py: scores computed by hand, both formats of triples, and arbitrary answers."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modes import MODES
from modes.glm3.calls import read_arguments, split_call
from scores import SCORES, read_json, score
from tests import golden

TRIPLES = "发动机_部件故障_水温高\n风扇_部件故障_低速转动"
OBJECTS = [{"头": "发动机", "关系": "故障", "尾": "水温高"}, {"头": "风扇", "关系": "故障", "尾": "低速"}]
AS_JSON = json.dumps(OBJECTS, ensure_ascii=False)
CALL = "get_weather\n```python\ntool_call(city='北京', days=3)\n```"


def one(name, prediction, reference):
    return score([name], [prediction], [reference])[name]


def test_triples_in_lines():
    predictions = ["风扇_部件故障_低速转动\n\n 发动机_部件故障_水温高 ", "a_b_c\na_b_c\nd_e_f\ng_h_i", "", "无"]
    references = [TRIPLES, "a_b_c\nx_y_z", "p_q_r", ""]
    # right 2 + 1, found 2 + 3 + 0 + 1, wanted 2 + 2 + 1 + 0
    scores = score(["triples_f1"], predictions, references)
    assert scores == pytest.approx({"triples_precision": 3 / 6, "triples_recall": 3 / 5, "triples_f1": 6 / 11})


@pytest.mark.parametrize(
    ("prediction", "precision", "recall"),
    [
        (AS_JSON, 1, 1),
        (f"```json\n{AS_JSON}\n```", 1, 1),
        (f"```\n{AS_JSON}\n```\n", 1, 1),
        (json.dumps([dict(reversed(item.items())) for item in reversed(OBJECTS)]), 1, 1),  # order, \u escapes
        (json.dumps(OBJECTS[0]), 1, 1 / 2),
        (json.dumps([OBJECTS[0], {**OBJECTS[1], "尾": "高速"}, "?"]), 1 / 3, 1 / 2),
        (AS_JSON[:-2], 0, 0),
        ("3", 0, 0),
        ("", 0, 0),
    ],
)
def test_triples_in_json(prediction, precision, recall):
    scores = score(["triples_f1"], [prediction], [AS_JSON])
    assert (scores["triples_precision"], scores["triples_recall"]) == pytest.approx((precision, recall))


def test_the_format_is_that_of_each_reference():
    assert one("triples_f1", AS_JSON, f"```json\n{AS_JSON}\n```") == 1
    assert score(["triples_f1"], [AS_JSON, TRIPLES], [AS_JSON, TRIPLES])["triples_f1"] == 1
    assert one("triples_f1", "[]", AS_JSON) == 0
    assert one("triples_f1", '["水果"]', '["水果"]') == 1  # a list of labels: a line like any other


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"json_valid"}))
def test_equal_texts_score_one_and_widths_do_not_matter(name):
    for reference in ("你是谁？", "水", AS_JSON, '["水果"]', "ａ_ｂ_ｃ", CALL):
        assert one(name, reference, reference) == 1
        assert one(name, f" {reference} \n", reference) == 1
    assert one(name, "你是谁?", "你是谁？") == 1
    assert one(name, "a_b_c", "ａ_ｂ_ｃ") == 1
    assert one(name, '[{"x": "?"}]', '[{"x": "？"}]') == 1


@pytest.mark.parametrize("name", SCORES)
def test_empty(name):
    assert score([name], [], [])[name] == 0
    no_call = name.startswith("tool")  # neither calls a tool
    assert one(name, "", "水果") == no_call
    assert one(name, "", AS_JSON) == no_call
    assert one(name, "", CALL) == 0
    both_empty = 0 if name.startswith(("triples", "json")) else 1
    assert one(name, "", "") == both_empty


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (AS_JSON, True),
        ("[]", True),
        ("```json\n{}\n```", True),
        ('{"a": NaN}', False),
        ("['水果']", False),
        ("3", False),
        ("水果", False),
        ("```json\n[]", False),
        ("[" * 100_000, False),
        ("[" + "9" * 5000 + "]", False),
        ('__import__("os").abort()', False),
        ("", False),
    ],
)
def test_json_validity(text, valid):
    assert one("json_valid", text, "x") == valid


def test_quotation_marks_within_json_stay_within():
    assert read_json('["说＂好＂"]') == ['说"好"']


def test_labels():
    references = ['["水果"]', "水果", '["手机"]', "手机", "洗护"]
    predictions = ["水果", '["手机"]', "手机", '["手机"]', "胡说"]
    # 水果: 1 of 1 found, 1 of 2 wanted: 2/3; 手机: 2 of 3 found, 2 of 2 wanted: 4/5; 洗护: 0
    expected = {"label_accuracy": 3 / 5, "label_macro_f1": (2 / 3 + 4 / 5 + 0) / 3}
    assert score(["label_accuracy"], predictions, references) == pytest.approx(expected)


def test_several_labels():
    scores = score(["label_macro_f1"], ['["b", "a"]', '["a", "c"]'], ['["a", "b"]', '["a", "b"]'])
    # a: 1; b: 1 of 1 found, 1 of 2 wanted
    assert scores == pytest.approx({"label_accuracy": 1 / 2, "label_macro_f1": (1 + 2 / 3) / 2})
    assert score(["label_macro_f1"], ["a\0", "[]"], ["a", "[]"]) == {"label_accuracy": 0.5, "label_macro_f1": 0.0}
    assert score(["label_macro_f1"], ["[]"], ["[]"])["label_macro_f1"] == 1


def test_bleu_of_the_corpus():
    # 甲乙丙丁 against 甲乙丙丁戊: all n-grams right, brevity exp(1 - 5/4)
    assert one("bleu4", "甲乙丙丁", "甲乙丙丁戊") == pytest.approx(math.exp(1 - 5 / 4))
    # 甲乙丙丁己 against 甲乙丙丁戊: 4/5, 3/4, 2/3, 1/2
    assert one("bleu4", "甲乙丙丁己", "甲乙丙丁戊") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # both at once: 8/9, 6/7, 4/5, 2/3 and exp(1 - 10/9), not the mean of the two
    both = score(["bleu4"], ["甲乙丙丁", "甲乙丙丁己"], ["甲乙丙丁戊"] * 2)["bleu4"]
    assert both == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25 * math.exp(1 - 10 / 9))


def test_rouge_of_characters():
    # 甲乙丙丁 against 甲丙乙丁戊: 4 of 4 and 5; no bigram; longest common subsequence 甲丙丁
    scores = score(["rougeL"], ["甲乙 丙丁"], ["甲丙乙丁戊"])
    assert scores == pytest.approx({"rouge1": 8 / 9, "rouge2": 0, "rougeL": 6 / 9})
    # 甲乙丙 against 甲乙丁: bigrams 1 of 2
    assert one("rouge2", "甲乙丙", "甲乙丁") == pytest.approx(1 / 2)
    assert score(["rouge1"], ["", "甲"], ["甲", "甲"])["rouge1"] == 1 / 2  # the mean over records


def call(arguments, name="get_weather"):
    return f"{name}\n```python\n{arguments}\n```"


@pytest.mark.parametrize(
    ("prediction", "name", "whole"),
    [
        (CALL, 1, 1),
        (call('tool_call(days = 3.0, city="\\u5317京",)'), 1, 1),
        (f"  {CALL}\n", 1, 1),
        (CALL.removesuffix("\n```"), 1, 1),  # the end of the fence is no part of the call
        (call("tool_call(city='北京', days=4)"), 1, 0),
        (call("tool_call(city='北京')"), 1, 0),
        (call("tool_call(city='北京', days=3, hours=1)"), 1, 0),
        (call("tool_call('北京', 3)"), 1, 0),
        (call("tool_call(city='北京', **{'days': 3})"), 1, 1),
        (call("tool_call(city='北京', **{'city': '北京', 'days': 3})"), 1, 0),
        (call("tool_call(**['city', 'days'])"), 1, 0),
        (call("tool_call(**{'city': '北京', 3: 3})"), 1, 0),
        (call("tool_call(city='北京', days=3, days=3)"), 1, 0),
        (call("tool_call(city='北京', days=int('3'))"), 1, 0),
        (call("tool_call(city='北京', days=3"), 1, 0),
        (call("get_weather(city='北京', days=3)"), 1, 0),
        (call("tool_call(city='北京', days=3)\ntool_call(city='北京', days=3)"), 1, 0),
        (call("tool_call(city='北京', days=3)", "get_time"), 0, 0),
        ("北京今天晴。", 0, 0),
        ("代码如下：\n```python\nprint(1)\n```", 0, 0),
        ("", 0, 0),
    ],
)
def test_tool_calls(prediction, name, whole):
    assert score(["tool_call"], [prediction], [CALL]) == {"tool_name": name, "tool_call": whole}


def test_no_call_is_an_answer_too():
    scores = score(["tool_name"], ["你好", "再见", CALL, CALL], ["您好", CALL, "您好", CALL])
    assert scores == {"tool_name": 2 / 4, "tool_call": 1 / 3}  # what has nothing to do with tools is no right call
    assert score(["tool_call"], ["你好"], ["您好"]) == {"tool_name": 1, "tool_call": 1}


def test_arguments_are_compared_as_values():
    wanted = call("tool_call(where={'b': [1, 2.5], 'a': None}, ok=True)")
    assert one("tool_call", call("tool_call(ok=True, where={'a': None, 'b': [1.0, 2.5]})"), wanted) == 1
    assert one("tool_call", call("tool_call(ok=True, where={'a': None, 'b': [2.5, 1]})"), wanted) == 0
    assert one("tool_call", call("tool_call(q='你是谁?')"), call("tool_call(q='你是谁？')")) == 1
    assert one("tool_call", call("print(1)", "interpreter"), call("print(1)", "interpreter")) == 1
    assert one("tool_call", call("print(2)", "interpreter"), call("print(1)", "interpreter")) == 0
    assert split_call(call("tool_call()", "get weather: now")) == ("get weather: now", "tool_call()")
    assert read_arguments("tool_call()") == {}


@pytest.mark.parametrize(
    "value",
    [
        "[" * 100_000,
        "-" * 3000 + "1",
        "-" * 200_000 + "1",
        "1+" * 200_000 + "1",
        "x." * 100_000 + "x",
        "9" * 5000,
        "not " * 50_000 + "1",
        "{[]: 1}",
        "{{}: 1}",
        "'\0'",
        "'\ud800'",
        "lambda: 1",
        "__import__('os').abort()",
        "(yield)",
        "1_0l",
    ],
)
def test_hostile_calls_are_never_run(value, recwarn):
    assert read_arguments(f"tool_call(a={value})") is None
    assert score(["tool_call"], [call(f"tool_call(a={value})")], [CALL]) == {"tool_name": 1, "tool_call": 0}
    assert not recwarn.list


def test_names():
    names = [*SCORES]
    assert set(score(names, ["a"], ["b"])) == set(names)


text = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "a_b_c\nd_e_f", AS_JSON, "```json\n[]\n```", "[[]]", CALL, '[{"a": [1, null, {"b": "ﬁ"}]}]', "\0"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
    st.text(max_size=20).map(lambda content: call(f"tool_call(a={content})")),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zs", "Mn", "So"]), max_size=10),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(text, text), max_size=5))
def test_anything_gets_a_score_from_0_to_1(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    scores = score(SCORES, predictions, references)
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values()), scores
    assert all(math.isclose(scores[n], v) for n in SCORES for v in [score([n], predictions, references)[n]])


@pytest.mark.parametrize(
    "text", ["Hello , world .", "a  . b", "x .", "I do n't , you 're", "a '  ' b", "问 ？ 答 ！", "x  ,  ."]
)
def test_what_chatglm_6b_cleans_up_costs_no_score(text):
    """A perfect answer of ChatGLM-6B equals its reference in every score, with the text that its tokenizer decodes."""
    tokenizer = golden.tokenizer("glm")
    answer = MODES["glm"].answer_text(tokenizer, tokenizer.encode_texts([text])[0])
    for name in ("exact_match", "label_accuracy", "bleu4", "rougeL"):
        assert score([name], [answer], [text])[name] == 1, name
    quoted = json.dumps([text], ensure_ascii=False)
    answer = MODES["glm"].answer_text(tokenizer, tokenizer.encode_texts([quoted])[0])
    assert score(["label_accuracy"], [answer], [quoted])["label_accuracy"] == 1
