"""Every mode × method: trained by two real ranks, saved, merged, predicted from."""

import json

import pytest
import torch
from safetensors import safe_open

import predict
from generation.models import load_answerer
from merge_lora import main as merge_main
from modes import MODES
from modes.directory import fingerprint, read_base
from tests import launch, losses


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "method", "ds_file"), losses.MATRIX)
def test_trained_saved_merged_predicted(mode, method, ds_file, tmp_path):
    output, base_dir = tmp_path / "output", launch.GOLDEN / mode / "base"
    launch.train(losses.matrix_options(mode, method, ds_file, output), num_ranks=2)

    curve = launch.losses(output)  # five samples on two ranks: three steps per epoch
    assert len(curve) == 9
    assert sum(curve[-3:]) < 0.98 * sum(curve[:3])
    losses.assert_as_recorded(losses.matrix_name(mode, method, ds_file), output)
    assert (output / "loss.png").stat().st_size > 1000
    assert list((output / "tensorboard").glob("events*"))
    assert sorted(path.name for path in output.glob("epoch-*")) == [f"epoch-{e}-step-{3 * e}" for e in (1, 2, 3)]

    checkpoint = output / "epoch-3-step-9"
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    assert (record["mode"], record["train_type"], record["step"]) == (mode, method, 9)
    assert record["base"]["fingerprint"] == fingerprint(read_base(base_dir))
    saved = sum(tensor.numel() for tensor in saved_tensors(checkpoint))
    model = load_answerer(checkpoint).model
    assert saved == expected_values(method, model)

    merged = tmp_path / "merged"
    merge_main(["--ori_model_dir", str(base_dir), "--model_dir", str(checkpoint), "--output_dir", str(merged)])
    assert (merged / "config.json").is_file() and (merged / "tokenizer_config.json").is_file()
    assert not list(merged.glob("*.bin")) and read_base(merged).mode == mode
    merged_model = MODES[mode].model_class.from_pretrained(merged, dtype=torch.float32).eval()
    base_model = MODES[mode].model_class.from_pretrained(base_dir, dtype=torch.float32).eval()
    with safe_open(launch.GOLDEN / mode / "expected.safetensors", "pt") as golden:
        input_ids = golden.get_tensor("padded.input_ids")
    expected = logits(model, input_ids)
    assert (logits(merged_model, input_ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits(base_model, input_ids) - expected).abs().max() > 1e-2 * expected.abs().max()

    answers = []
    for model_path in (checkpoint, merged):
        path = tmp_path / f"{model_path.name}.jsonl"
        test = ["--test_path", str(launch.GOLDEN / "samples.jsonl"), "--output_path", str(path)]
        predict.main(["--model_path", str(model_path), "--max_new_tokens", "12", "--batch_size", "2", *test])
        answers.append([json.loads(line) for line in path.read_text().splitlines()])
    assert answers[0] == answers[1]
    samples = [json.loads(line) for line in (launch.GOLDEN / "samples.jsonl").read_text().splitlines()]
    assert [{key: line[key] for key in samples[0]} for line in answers[0]] == samples
    assert all(isinstance(line["prediction"], str) for line in answers[0])


@pytest.mark.slow
def test_losses_of_a_prefix_of_embeddings(tmp_path):
    launch.train(losses.embedding_options(tmp_path / "output"), num_ranks=2)
    losses.assert_as_recorded(losses.EMBEDDING, tmp_path / "output")


def saved_tensors(checkpoint):
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            yield from (opened.get_tensor(name) for name in opened.keys())  # noqa: SIM118


def expected_values(method, model):
    """How many values a checkpoint of the method must hold: what was trained and nothing else."""
    part = {"freeze": "layers.3.", "ptuning": "prefix_encoder.", "lora": "lora_", "all": ""}[method]
    return sum(parameter.numel() for name, parameter in model.named_parameters() if part in name)
