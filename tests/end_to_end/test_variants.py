"""LoRA variants and ways to freeze, on two ranks: trained, resumed to the last bit, merged, predicted from."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoints.resume import read_state, state_directories
from generation.models import load_answerer
from merge_lora import main as merge_main
from modes import MODES
from tests import launch, losses


def on_two_ranks(*words):
    """Run a program; what it prints."""
    result = launch.fork(words, 2)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rewind(output, step):
    """Leave the directory as a run that was killed right after the state of `step`."""
    for directory in state_directories(output / "state"):
        if read_state(directory).position.step > step:
            shutil.rmtree(directory)
    lines = (output / "metrics.jsonl").read_text().splitlines(keepends=True)
    (output / "metrics.jsonl").write_text("".join(lines[:step]))


def weights(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(model, mode):
    with safe_open(launch.GOLDEN / mode / "expected.safetensors", "pt") as golden, torch.no_grad():
        return model.eval()(input_ids=golden.get_tensor("padded.input_ids")).logits


@pytest.mark.slow
@pytest.mark.parametrize("case", losses.VARIANTS)
def test_trained_resumed_merged_predicted(case, tmp_path):
    mode, train_type, _, _ = losses.VARIANTS[case]
    output, base_dir = tmp_path / "output", launch.GOLDEN / mode / "base"
    options = losses.variant_options(case, output)
    on_two_ranks("train.py", *launch.flags(options))
    whole, checkpoint = launch.losses(output), output / "epoch-3-step-9"
    assert len(whole) == 9 and sum(whole[-3:]) < sum(whole[:3])
    losses.assert_as_recorded(case, output)
    before = weights(checkpoint)
    rewind(output, 6)
    shutil.rmtree(checkpoint)
    assert "after step 6" in on_two_ranks("train.py", *launch.flags(options))
    assert launch.losses(output) == whole
    after = weights(checkpoint)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)

    merged = tmp_path / "merged"
    merge_main(["--ori_model_dir", str(base_dir), "--model_dir", str(checkpoint), "--output_dir", str(merged)])
    model_class = MODES[mode].model_class
    expected = logits(load_answerer(checkpoint).model, mode)
    merged_model = model_class.from_pretrained(merged, dtype=torch.float32)
    base_model = model_class.from_pretrained(base_dir, dtype=torch.float32)
    assert (logits(merged_model, mode) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits(base_model, mode) - expected).abs().max() > 1e-3 * expected.abs().max()
    if train_type == "lora":  # plain peft needs nothing of ours
        assert torch.equal(logits(PeftModel.from_pretrained(base_model, checkpoint), mode), expected)
    if mode == "glm":
        tied = weights(merged)
        assert torch.equal(tied["lm_head.weight"], tied["transformer.word_embeddings.weight"])


@pytest.mark.slow
def test_adalora_allocates_ranks_alike_on_every_rank(tmp_path):
    """From 6 a layer, over all layers together, to 2 a layer on average; more in some layers than in others."""
    on_two_ranks("tests/end_to_end/adalora_ranks.py", tmp_path)
    first, second = (json.loads((tmp_path / f"rank-{i}.json").read_text()) for i in range(2))
    assert first == second  # although each rank had data of its own
    totals = [sum(layers.values()) for layers in first]
    layers = len(first[0])
    assert layers == 16 and totals[0] == 6 * layers
    assert totals == sorted(totals, reverse=True)
    assert totals[5:] == [2 * layers] * 5  # steps 6 to 10: the last 40 % of the run
    assert len(set(first[-1].values())) > 1
    assert first[-1] == first[5]  # the pattern stays


@pytest.mark.slow
def test_the_split_of_a_step_does_not_change_adalora(tmp_path):
    """4×1, 1×4 and 2 ranks × 2: the regulariser is shared out like the loss, and the same ranks stay."""
    adapters, curves = [], []
    for name, batch, accumulation, num_ranks in (("4x1", 4, 1, 0), ("1x4", 1, 4, 0), ("2 ranks", 1, 2, 2)):
        options = launch.train_options("glm2", "lora", tmp_path / name, learning_rate=1e-2, num_train_epochs=3)
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        options |= {"lora_variant": "adalora", "adalora_target_r": 2}
        launch.train(options, num_ranks)
        curves.append(launch.losses(tmp_path / name))
        adapters.append(weights(launch.newest_checkpoint(tmp_path / name)))
    for curve, adapter in zip(curves[1:], adapters[1:], strict=True):
        assert curve == pytest.approx(curves[0], rel=1e-5)
        for name, tensor in adapters[0].items():
            assert adapter[name].shape == tensor.shape
            assert (adapter[name] - tensor).abs().max() <= 2e-4, name
