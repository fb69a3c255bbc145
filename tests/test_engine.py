"""Which layers are recomputed, which tensors decay, and that nothing below the lowest trained tensor runs backward."""

from dataclasses import replace

import pytest
import torch

from memory.activations import read_sizes
from memory.checkpointing import layers_to_recompute
from memory.estimate import estimate
from memory.setup import Setup
from memory.step import largest_batch
from methods import METHODS
from modes import MODES
from parameters import parameters_of
from tests.launch import GOLDEN
from tests.prepared import OPTIONS, build
from training.engine import checkpoint_blocks, make_schedule, parameter_groups
from training.summary import count_parameters, describe_trained


def run(model):
    input_ids = torch.arange(100, 140)[None]
    loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


class Recorder:
    """Counts, per block, forward passes and whether its output takes part in backward."""

    def __init__(self, blocks):
        self.forwards = [0] * len(blocks)
        self.in_graph = [False] * len(blocks)
        for i, block in enumerate(blocks):
            block.input_layernorm.register_forward_hook(lambda *_, i=i: self.note(i))
            block.register_forward_hook(lambda _module, _input, output, i=i: self.graph(i, output))

    def note(self, i):
        self.forwards[i] += 1

    def graph(self, i, output):
        self.in_graph[i] = output.requires_grad


@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
@pytest.mark.parametrize(
    ("method", "options", "lowest"),
    [
        ("freeze", {"freeze_module_name": ("layers.2.", "layers.3.")}, 2),
        ("freeze", {"freeze_module_name": ("layers.3.",)}, 3),
        ("freeze", {"freeze_module_name": ("final_layernorm",)}, 4),
        ("freeze", {"freeze_module_name": ("word_embeddings",)}, 0),
        ("lora", OPTIONS["lora"], 0),
        ("lora", {**OPTIONS["lora"], "lora_module_name": ("layers.2.mlp.dense_h_to_4h",)}, 2),
        ("ptuning", OPTIONS["ptuning"], 0),
        ("all", {}, 0),
    ],
)
def test_only_what_backward_needs_is_recomputed(mode, method, options, lowest):
    model = build(mode, method, **options).train()
    for asked in (0, 1, 99):
        count = min(asked, 4 - lowest)
        assert checkpoint_blocks(model, model.blocks, asked) == count
        recorder = Recorder(model.blocks)
        run(model)
        assert recorder.forwards == [1] * lowest + [2] * count + [1] * (4 - lowest - count)
        assert recorder.in_graph == [i >= lowest for i in range(4)]


@pytest.mark.parametrize("mode", ["glm", "glm3"])
@pytest.mark.parametrize("method", METHODS)
def test_recomputing_changes_no_value(mode, method):
    """Losses and weights of five steps, to 1e-6 (on CPUs to the last bit); LoRA and the prefix have dropout."""
    options = OPTIONS[method] | ({"lora_dropout": 0.1} if method == "lora" else {})

    def train(layers):
        model = build(mode, method, **options).train()
        if layers == "auto":
            layers = halfway(model, gated=MODES[mode].gated)
        recomputed.append(checkpoint_blocks(model, model.blocks, layers))
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, 1e-3))
        torch.manual_seed(1)  # the same dropout
        losses = []
        for _ in range(5):
            losses.append(run(model))
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(losses), [p.detach() for p in model.parameters() if p.requires_grad]

    recomputed = []
    losses, weights = train(0)
    assert losses[-1] < losses[0]
    for layers in (1, "auto", 4):
        others, moved = train(layers)
        assert torch.allclose(others, losses, rtol=1e-6, atol=0)
        for one, other in zip(weights, moved, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-6)
    if method != "freeze":  # which trains one layer: nothing to choose from
        assert recomputed[:2] == [0, 1] and 1 < recomputed[2] < recomputed[3] == 4


def halfway(model, gated):
    """As many layers as auto recomputes where half of what that can save must be saved."""
    parameters = parameters_of(model)
    batch = largest_batch([40] * 64, [1] * 64, 64)
    setup = Setup(
        precision="fp32", stage=1, ranks=1, batch=batch, lora_dropout=True, on_gpu=False, reduce_bucket_size=1000
    )
    sizes = read_sizes(model.config, gated=gated)
    none, every = (estimate(parameters, sizes, replace(setup, recomputed=n)).gpu_peak for n in (0, 3))
    return layers_to_recompute(parameters, sizes, setup, (none + every) // 2)[0]


def test_vectors_do_not_decay():
    model = build("glm2", "all")
    decayed, undecayed = parameter_groups(model, 0.1, 1e-3)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in undecayed["params"]} == {1}
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(model.parameters()))
    assert len(parameter_groups(build("glm2", "lora", **OPTIONS["lora"]), 0.1, 1e-3)) == 1


def test_groups_are_small():
    model = build("glm2", "all")
    unsplit, small = parameter_groups(model, 0.1, 1e-3), parameter_groups(model, 0.1, 1e-3, largest=20_000)
    sizes = [[parameter.numel() for parameter in group["params"]] for group in small]
    assert all(sum(of_group) <= 20_000 or len(of_group) == 1 for of_group in sizes) and len(small) > 4
    for decay in (0.1, 0.0):  # the same parameters in the same order
        flat, cut = (
            [p for g in groups if g["weight_decay"] == decay for p in g["params"]] for groups in (unsplit, small)
        )
        assert all(ours is theirs for ours, theirs in zip(flat, cut, strict=True))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0]),
        ("constant", [0, 0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_schedules(name, rates):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(name, warmup_steps=2, total_steps=6)(optimizer)
    seen = []
    for _ in rates:
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates, abs=1e-6)


def test_the_trained_set_is_counted_and_named():
    model = build("glm2", "freeze", freeze_module_name=("layers.1.", "layers.3.", "final_layernorm"))
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == (trained, total)
    text = describe_trained(model)
    assert "transformer.encoder.layers.*.mlp.dense_4h_to_h.weight [64, 112] (layers 1, 3): 14,336" in text
    assert "transformer.encoder.final_layernorm.weight [64]: 64" in text
    assert f"trained parameters: {trained:,} of {total:,}" in text


def test_shapes_without_memory():
    config = MODES["glm2"].config_class.from_pretrained(GOLDEN / "glm2" / "base")
    with torch.device("meta"):
        model = MODES["glm2"].model_class(config)
    assert count_parameters(model)[1] == 447552
