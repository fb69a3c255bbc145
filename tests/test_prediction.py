"""predict.py: answers in batches are those of one record after the other, whatever the model is made of."""

import json

import pytest
import torch

import predict
from generation import models
from generation.answerer import Answerer, answer, answer_rows
from generation.models import load_answerer
from generation.prediction import answer_prompts, generation_config
from generation.request import Request
from methods import METHODS
from modes import MODES
from modes.directory import fingerprint, read_base
from options.predict import GenerationOptions
from tests.launch import GOLDEN, REPOSITORY
from tests.prepared import OPTIONS, checkpoint_of
from tests.quantized import make_release

LORA = {"lora_dim": 4, "lora_alpha": 16, "lora_dropout": 0.1, "lora_module_name": ("query_key_value",)}
RECORDS = [json.loads(line) for line in (REPOSITORY / "data" / "spo_1.json").read_text().splitlines()[:9]]


def one_by_one(answerer, **options):
    config = generation_config(answerer.mode, answerer.tokenizer, options_of(**options), options.get("num_beams", 1))
    return [answer(answerer, [answerer.prompt_ids(record)], config)[0] for record in RECORDS]


def in_batches(answerer, **options):
    prompts = [answerer.prompt_ids(record) for record in RECORDS]
    pairs = answer_prompts(answerer, prompts, options_of(**options), frozenset())
    answers = {i: text for indices, texts in pairs for i, text in zip(indices, texts, strict=True)}
    return [answers[i] for i in range(len(RECORDS))]


def options_of(**options):
    return GenerationOptions(max_new_tokens=10, batch_size=4, **options)


def forward_shapes(answerer):
    """(rows, tokens) of everything that goes through the model from now on."""
    shapes = []
    embedding = answerer.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("mode", MODES)
def test_the_instruction_is_computed_once(mode):
    answerer = load_answerer(GOLDEN / mode / "base")
    alone = one_by_one(answerer)
    shapes = forward_shapes(answerer)
    assert in_batches(answerer) == alone
    lengths = sorted(len(answerer.prompt_ids(record)) for record in RECORDS)
    prefills = [shape for shape in shapes if shape[1] > 1]
    if mode == "glm":  # its prompts see themselves in both directions
        assert prefills == [(4, lengths[-1]), (4, lengths[-5]), (1, lengths[0])]
    else:
        (rows, shared), *batches = prefills
        assert rows == 1 and shared > 20
        assert batches == [(4, lengths[-1] - shared), (4, lengths[-5] - shared), (1, lengths[0] - shared)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"num_beams": 2}])
def test_penalties_and_beams(mode, options):
    answerer = load_answerer(GOLDEN / mode / "base")
    assert in_batches(answerer, **options) == one_by_one(answerer, **options)


@pytest.mark.parametrize("mode", MODES)
def test_sampled_answers_depend_on_the_seed_alone(mode):
    answerer = load_answerer(GOLDEN / mode / "base")
    answerer.model.double()
    options = {"do_sample": True, "temperature": 1.2, "top_k": 20}
    answers = in_batches(answerer, **options)
    prompts = [answerer.prompt_ids(record) for record in RECORDS]
    alone = dict(
        (indices[0], texts[0])
        for start in range(len(prompts))
        for indices, texts in answer_prompts(
            answerer, prompts, options_of(**options), frozenset(range(len(prompts))) - {start}
        )
    )
    assert [alone[i] for i in range(len(prompts))] == answers != in_batches(answerer, **options, seed=5)


@pytest.mark.parametrize("mode", MODES)
def test_the_next_prompt_takes_the_place_of_an_ended_answer(mode):
    """Steps of four rows: 9 answers of 1 to 9 tokens take fewer than batches that wait for their longest."""
    answerer = load_answerer(GOLDEN / mode / "base")
    stop = frozenset()
    prompt = answerer.prompt_ids(RECORDS[0])
    requests = [Request(prompt + [20 + i, 5], 1 + i, stop) for i in range(9)]
    shapes = forward_shapes(answerer)
    assert sorted(i for i, _ in answer_rows(answerer, requests, batch_size=4)) == list(range(9))
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert sum(steps) == sum(range(9)) and max(steps) <= 4  # the first token comes with the prompt


@pytest.mark.parametrize("mode", MODES)
def test_lora(mode):
    answerer = load_answerer(GOLDEN / mode / "base")
    plain = one_by_one(answerer)
    torch.manual_seed(0)
    model = METHODS["lora"](**LORA).prepare(answerer.model).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted = Answerer(answerer.mode, answerer.tokenizer, model, {})
    alone = one_by_one(adapted)
    assert in_batches(adapted) == alone != plain


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_bases(mode, bits, tmp_path):
    make_release(mode, bits, tmp_path / "base")
    answerer = load_answerer(tmp_path / "base")
    assert in_batches(answerer) == one_by_one(answerer)


@pytest.mark.parametrize("mode", MODES)
def test_a_file_is_answered_in_its_order(mode, tmp_path):
    records = tmp_path / "records.json"
    records.write_text("\n".join(json.dumps(record) for record in RECORDS))
    flags = ["--model_path", str(GOLDEN / mode / "base"), "--max_new_tokens", "6", "--test_path", str(records)]
    order = []
    for batch_size in (1, 4, 16):
        output = tmp_path / f"{batch_size}.jsonl"
        predict.main([*flags, "--batch_size", str(batch_size), "--output_path", str(output)])
        order.append([json.loads(line) for line in output.read_text().splitlines()])
    assert order[0] == order[1] == order[2]
    assert [answer["instruction"] for answer in order[0]] == [record["instruction"] for record in RECORDS]
    assert [answer["input"] for answer in order[0]] == [record["input"] for record in RECORDS]


EMBEDDING = {"prefix_layers": "embedding", "prefix_projection": False}
WHOLE = {"modules_to_save": ["output_layer"]}
LOADED = [  # method, its options, bits of the base
    *((method, {}, 0) for method in METHODS),
    *(("lora", options, 0) for options in ({"lora_variant": "dora"}, {"lora_variant": "adalora"}, WHOLE)),
    ("ptuning", EMBEDDING, 0),
    ("ptuning", {}, 4),
    ("lora", WHOLE, 8),
]


@pytest.mark.parametrize(("method", "changes", "bits"), LOADED)
def test_everything_is_loaded_to_the_device_that_answers(method, changes, bits, tmp_path, monkeypatch):
    """Not to the CPU first. Meta stands for a GPU: a device that is not the CPU, and has room for everything."""
    checkpoint = checkpoint_of("glm2", method, OPTIONS[method] | changes, tmp_path / "checkpoint")
    release = None
    if bits:
        release, record = tmp_path / "release", checkpoint / "checkpoint.json"
        make_release("glm2", bits, release)
        content = json.loads(record.read_text())
        content["base"]["fingerprint"] = fingerprint(read_base(release))
        record.write_text(json.dumps(content))
    device, load, before = torch.device("meta"), METHODS[method].load, []

    def load_into(self, model, directory):
        before.append(places(model))
        return load(self, model, directory)

    monkeypatch.setattr(models, "choose_device", lambda *_: device)
    monkeypatch.setattr(METHODS[method], "load", load_into)
    after = places(load_answerer(checkpoint, release, "fp32").model)
    assert before == [{device}] and after == {device}


def places(model):
    """Where parameters and buffers are."""
    return {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
