"""The layout of a batch, and the layers that run for it, must not change training: twelve steps of each method.

The losses agree within 1e-5 of their size (float32: the order of summation is all that differs; Adam carries it on).
"""

from functools import partial

import pytest
import torch

from data.collate import collate
from data.features import FeatureDataset
from data.loading import plan_epoch
from data.tokenize import TokenizedDataset, tokenize_file
from methods import METHODS
from modes import MODES
from parameters import parameters_of
from tests import golden
from training.engine import checkpoint_blocks
from training.features import first_trained_block, write_features

TOLERANCE = 1e-5
OPTIONS = {
    "freeze": {"freeze_module_name": ["layers.3."]},
    "ptuning": {"pre_seq_len": 6, "prefix_projection": True, "prefix_layers": "all"},
    "lora": {
        "lora_dim": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_module_name": ["query_key_value", "dense_h_to_4h"],
    },
    "all": {},
}
ROW_LENGTH = 400
COMMON = "你现在是一个信息抽取模型,请抽取关系。"


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.fixture(scope="module")
def dataset(mode, tmp_path_factory):
    """The golden records, and more with a common instruction."""
    directory = tmp_path_factory.mktemp(mode.name)
    lines = (golden.ROOT / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    lines += [f'{{"instruction": "{COMMON}", "input": "第{i}句", "output": "{"甲_乙" * (i + 1)}"}}' for i in range(15)]
    path = directory / "records.json"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    encode = partial(mode.encode_batch, golden.tokenizer(mode.name), max_len=256, max_src_len=160)
    return TokenizedDataset(tokenize_file(path, encode, directory / "cache", key="k"))


def prepare(mode, method):
    config = mode.config_class.from_pretrained(golden.base_path(mode.name))
    METHODS[method](**OPTIONS[method]).configure(config)
    model = mode.model_class.from_pretrained(golden.base_path(mode.name), config=config, dtype=torch.float32)
    torch.manual_seed(0)
    return METHODS[method](**OPTIONS[method]).prepare(model).eval()  # no dropout


def padded(samples):
    """The batch of everyone else: a rectangle."""
    width = max(len(sample["input_ids"]) for sample in samples)
    rows = lambda name, value: torch.stack(  # noqa: E731
        [
            torch.nn.functional.pad(torch.as_tensor(one[name]), (0, width - len(one[name])), value=value)
            for one in samples
        ]
    )
    return {"input_ids": rows("input_ids", 3), "labels": rows("labels", -100)}


def curve(model, dataset, make_batch, *, epochs=6, **changes):
    """The loss of every step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.1)
    losses = []
    for epoch in range(epochs):
        sizes = {"micro_batch_size": 1, "accumulation": 2, "world_size": 1, "rank": 0, **changes}
        for step in plan_epoch(
            dataset.lengths, dataset.supervised, epoch=epoch, seed=0, row_length=ROW_LENGTH, **sizes
        ):
            optimizer.zero_grad()
            total = 0.0
            for members in step.micro_batches:
                batch = make_batch([dataset[i] for i in members])
                loss = model(**batch, num_items_in_batch=step.num_items, use_cache=False).loss
                loss.backward()
                total += loss.item()
            optimizer.step()
            losses.append(total)
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_and_shared_prompts_learn_what_padded_rows_learn(mode, method, dataset):
    """Three curves over the same samples per step: padded rows; end to end; end to end with common prompts once."""
    layout = partial(mode.layout, mode.config_class.from_pretrained(golden.base_path(mode.name)))
    expected = curve(prepare(mode, method), dataset, padded)
    assert len(expected) >= 12 and expected[-1] < expected[0]
    for share_prompts in (False, True):
        found = curve(prepare(mode, method), dataset, partial(collate, layout=layout, share_prompts=share_prompts))
        assert found == pytest.approx(expected, rel=TOLERANCE)


def test_kept_features_learn_what_all_layers_learn(mode, dataset, tmp_path):
    """Freeze of the upper layer: the lower ones run once for each sample, and never again."""
    config = mode.config_class.from_pretrained(golden.base_path(mode.name))
    collate_fn = partial(collate, layout=partial(mode.layout, config))
    expected = curve(prepare(mode, "freeze"), dataset, collate_fn)
    model = prepare(mode, "freeze")
    parameters = parameters_of(model)
    first_block = first_trained_block(parameters)
    assert first_block == 3
    kept = FeatureDataset(dataset, tmp_path / "features.bin", config.hidden_size, torch.float32)
    batches = [[i, i + 1] for i in range(0, len(dataset), 2)]
    assert len(dataset) == 20
    arguments = {"first_block": first_block, "layout": collate_fn.keywords["layout"], "share_prompts": True}
    write_features(model, torch.device("cpu"), kept, batches, **arguments)
    for block in model.blocks[:first_block]:
        block.forward = None  # whoever calls it fails
    found = curve(model, kept, partial(collate_fn, first_block=first_block))
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("recomputed", [0, 4])
@pytest.mark.parametrize(
    ("method", "changes"),
    [("freeze", {}), ("lora", {"lora_module_name": ["layers.3.mlp.dense_h_to_4h"]})],
)
def test_layers_below_the_first_trained_block_one_run_without_autograd(mode, method, changes, recomputed, dataset):
    """Freeze of layer 3, LoRA on layer 3: what comes out of layers 0 to 2 has no graph, checkpointed or not."""
    model = mode.model_class.from_pretrained(golden.base_path(mode.name), dtype=torch.float32)
    model = METHODS[method](**{**OPTIONS[method], **changes}).prepare(model)
    if recomputed:
        checkpoint_blocks(model, model.blocks, recomputed)
    in_graph = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: in_graph.append(output.requires_grad))
    batch = collate([dataset[0], dataset[1]], partial(mode.layout, model.config))
    model.train()(**batch, use_cache=False).loss.backward()
    assert in_graph[:4] == [False, False, False, True]
