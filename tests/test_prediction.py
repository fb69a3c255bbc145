"""predict.py: answers in batches are those of one record after the other, whatever the model is made of."""

import json

import pytest
import torch
from transformers import GenerationConfig

import predict
from generation import models
from generation.answerer import Answerer, answer, answer_all
from generation.models import load_answerer
from methods import METHODS
from modes import MODES
from modes.directory import fingerprint, read_base
from tests.launch import GOLDEN, REPOSITORY
from tests.prepared import OPTIONS, checkpoint_of
from tests.quantized import make_release

LORA = {"lora_dim": 4, "lora_alpha": 16, "lora_dropout": 0.1, "lora_module_name": ("query_key_value",)}
RECORDS = [json.loads(line) for line in (REPOSITORY / "data" / "spo_1.json").read_text().splitlines()[:9]]


def one_by_one(answerer, generation):
    return [answer(answerer, [answerer.prompt_ids(record)], generation)[0] for record in RECORDS]


def in_batches(answerer, generation, batch_size=4):
    answers = dict(answer_all(answerer, RECORDS, generation, batch_size))
    return [answers[i] for i in range(len(RECORDS))]


def generation_of(answerer, **options):
    return GenerationConfig(max_new_tokens=10, pad_token_id=answerer.tokenizer.pad_token_id, **options)


def forward_shapes(answerer):
    """(rows, tokens) of everything that goes through the model from now on."""
    shapes = []
    embedding = answerer.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("mode", MODES)
def test_the_instruction_is_computed_once(mode):
    answerer = load_answerer(GOLDEN / mode / "base")
    generation = generation_of(answerer)
    alone = one_by_one(answerer, generation)
    shapes = forward_shapes(answerer)
    assert in_batches(answerer, generation) == alone
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
    generation = generation_of(answerer, **options)
    assert in_batches(answerer, generation) == one_by_one(answerer, generation)


@pytest.mark.parametrize("mode", MODES)
def test_lora(mode):
    answerer = load_answerer(GOLDEN / mode / "base")
    generation = generation_of(answerer)
    plain = one_by_one(answerer, generation)
    torch.manual_seed(0)
    model = METHODS["lora"](**LORA).prepare(answerer.model).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted = Answerer(answerer.mode, answerer.tokenizer, model, {})
    alone = one_by_one(adapted, generation)
    assert in_batches(adapted, generation) == alone != plain


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_bases(mode, bits, tmp_path):
    make_release(mode, bits, tmp_path / "base")
    answerer = load_answerer(tmp_path / "base")
    generation = generation_of(answerer)
    assert in_batches(answerer, generation) == one_by_one(answerer, generation)


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
