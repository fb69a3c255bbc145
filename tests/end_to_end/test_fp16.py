"""fp16 with DeepSpeed's own optimizers and scalers: what a loss scale does to resume states and to the end of a run."""

import json

import pytest

from tests import launch

SCRIPT = "tests/end_to_end/fp16_on_cpu.py"
STAGES = pytest.mark.parametrize("stage", [1, 3])


def run(output, stage, fp16, num_ranks=0, **changes):
    """(finished process, options) of a run whose DeepSpeed file has that fp16 section."""
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 10} if stage == 3 else {})}
    ds_file = output.parent / "ds.json"
    ds_file.write_text(json.dumps({"zero_optimization": zero, "fp16": {"enabled": True, **fp16}}))
    options = launch.train_options("glm2", "lora", output, ds_file=ds_file, num_train_epochs=1, save_state_step=1)
    return launch.fork([SCRIPT, *launch.flags({**options, **changes})], num_ranks)


@pytest.mark.slow
def test_the_gradient_at_stage_0_is_that_of_stage_1(tmp_path):
    """DeepSpeed 0.19 would divide by a scale that it never multiplied by, after a first step without gradients."""
    found = {}
    for stage in (0, 1, 3):
        output = tmp_path / str(stage) / "output"
        output.mkdir(parents=True)
        done = run(output, stage, {"initial_scale_power": 8}, max_steps=3)
        assert done.returncode == 0, done.stderr
        assert ("ZeRO stage 0 is overridden by stage 1" in done.stdout) is (stage == 0)
        found[stage] = [(row["loss"], row["grad_norm"]) for row in launch.metrics(output)]
    assert found[0] == found[1] and all(norm > 0.1 for _, norm in found[0])
    for one, other in zip(found[1], found[3], strict=True):  # adapters are in half precision there, too
        assert one == pytest.approx(other, rel=2e-2)


def states(output):
    return {
        json.loads(path.read_text())["step"]: json.loads(path.read_text())["loss_scaler"]
        for path in output.glob("state/*/state.json")
    }


@pytest.mark.slow
@STAGES
def test_a_fixed_loss_scale_is_resumed(stage, tmp_path):
    """No state of a scaler belongs to it; then a scale that is too large stops the run, and leaves the state."""
    output = tmp_path / "output"
    first = run(output, stage, {"loss_scale": 128}, max_steps=2)
    assert first.returncode == 0, first.stderr
    assert states(output) == {1: {}, 2: {}}
    stopped = run(output, stage, {"loss_scale": 2**30}, max_steps=4)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr
    assert "resumed from" in stopped.stdout
    assert "step 3: the gradient is not finite though every loss is" in stopped.stderr
    assert max(states(output)) == 2


@pytest.mark.slow
@STAGES
def test_an_overflow_at_the_smallest_scale_is_a_sentence(stage, tmp_path):
    """A scale that may fall does fall, silently; at the smallest one the step is not finite at any scale."""
    output = tmp_path / "output"
    fp16 = {"initial_scale_power": 32, "min_loss_scale": 2**30, "hysteresis": 1}
    stopped = run(output, stage, fp16, num_ranks=2)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr
    assert stopped.stderr.count("error: ") == 1
    assert "step 3: the gradient is not finite though every loss is" in stopped.stderr  # 2³², 2³¹, 2³⁰
    if stage == 3:
        return
    skipped = run(output, stage, fp16, num_ranks=2, on_nonfinite="skip", max_steps=5, resume_from_checkpoint="none")
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stdout.count("; skipped") == 3


@pytest.mark.slow
def test_nan_at_the_smallest_scale_leaves_a_state(poisoned, tmp_path):
    output = tmp_path / "output"
    fp16 = {"initial_scale_power": 4, "min_loss_scale": 16, "hysteresis": 1}
    stopped = run(output, 2, fp16, mode="glm3", model_name_or_path=poisoned)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr
    assert "the loss is nan on rank 0 in" in stopped.stderr and "samples.jsonl:4" in stopped.stderr
    (_, last) = sorted(states(output).items())[-1]
    assert last["cur_scale"] == 16
