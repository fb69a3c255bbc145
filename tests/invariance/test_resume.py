"""A run that was interrupted and resumed is the run that was left alone; kills are in end_to_end/test_kill_proof.py."""

import json
import shutil
import signal

import psutil
import pytest
from safetensors.torch import load_file

from checkpoints.resume import begin_states, check_identity, newest_state, read_state, state_directories
from errors import UserError
from tests import launch

CASES = [
    ("glm2", "lora", "ds_zero2_no_offload.json"),
    ("glm", "all", "ds_zero3_offload.json"),
    ("glm3", "ptuning", "ds_zero2_offload.json"),
    ("glm", "freeze", "ds_zero3_no_offload.json"),
]


def options_of(mode, train_type, output, **changes):
    """Three epochs of three steps on two ranks, with dropout, a state after every step."""
    return launch.train_options(
        mode, train_type, output, num_train_epochs=3, learning_rate=3e-3, lora_dropout=0.1, save_state_step=1, **changes
    )


def rewind(output, step):
    """Leave the directory as a run that was killed right after the state of `step`."""
    for directory in state_directories(output / "state"):
        if read_state(directory).position.step > step:
            shutil.rmtree(directory)
    lines = (output / "metrics.jsonl").read_text().splitlines(keepends=True)
    (output / "metrics.jsonl").write_text("".join(lines[:step]))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "train_type", "ds_file"), CASES)
def test_to_the_last_bit_in_the_middle_of_an_epoch(mode, train_type, ds_file, tmp_path):
    output = tmp_path / "output"
    options = options_of(mode, train_type, output, ds_file=ds_file, save_total_limit=9)
    launch.train(options, num_ranks=2)
    whole, weights = launch.losses(output), weights_of(output / "epoch-3-step-9")
    rewind(output, 4)
    shutil.rmtree(output / "epoch-3-step-9")
    assert "after step 4" in launch.train(options, num_ranks=2).stdout
    assert launch.losses(output) == whole and len(whole) == 9
    resumed = weights_of(output / "epoch-3-step-9")
    assert resumed.keys() == weights.keys()
    assert all((resumed[name] == tensor).all() for name, tensor in weights.items())

    again = launch.train(options, num_ranks=2)  # nothing is left to do, and nothing is done
    assert "finished run of 9 steps" in again.stdout and launch.losses(output) == whole


@pytest.mark.slow
def test_within_a_fraction_of_an_epoch(tmp_path):
    """For every schedule see tests/test_steps.py."""
    output = tmp_path / "output"
    options = options_of("glm3", "lora", output, lr_scheduler_type="polynomial", warmup_steps=3, save_total_limit=9)
    options["num_train_epochs"] = 1.5
    assert "optimizer steps: 8 (5 per epoch), 3 of them warm-up" in launch.train(options).stdout
    whole = [(line["loss"], line["lr"]) for line in launch.metrics(output)]
    assert len(whole) == 8 and (output / "epoch-2-step-8").is_dir()
    rewind(output, 6)
    assert "after step 6" in launch.train(options).stdout
    assert [(line["loss"], line["lr"]) for line in launch.metrics(output)] == whole


def weights_of(checkpoint):
    return {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.slow
def test_on_another_number_of_ranks(tmp_path):
    """2 ranks × 1, then 1 rank × 2 accumulated at another ZeRO stage, then 2 ranks again: no sample is left out."""
    alone, output = tmp_path / "alone", tmp_path / "output"
    launch.train({**options_of("glm2", "all", alone), "resume_from_checkpoint": "none"}, num_ranks=2)
    two = options_of("glm2", "all", output, save_total_limit=9)
    launch.train(two, num_ranks=2)
    rewind(output, 4)
    one = {**two, "gradient_accumulation_steps": 2, "ds_file": launch.partitioned(tmp_path)}
    assert "after step 4" in launch.train(one).stdout
    assert launch.losses(output) == pytest.approx(launch.losses(alone), rel=1e-4)
    rewind(output, 7)
    assert "after step 7" in launch.train(two, num_ranks=2).stdout
    assert launch.losses(output) == pytest.approx(launch.losses(alone), rel=1e-4)


@pytest.mark.slow
def test_only_rank_0_holds_whole_tensors_of_a_state(tmp_path):
    """At stages 1 to 3, offloaded or not, its tensors are DeepSpeed's own; rank 1 takes next to nothing."""
    result = launch.fork(["tests/invariance/state_ranks.py", tmp_path], 2)
    assert result.returncode == 0, result.stdout + result.stderr
    main, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert len(main) == len(other) == 5
    for first, second in zip(main, other, strict=True):
        assert first["names"] and second["names"] and first["same"] and first["values"] == first["all"], first
        assert not second["values"] and second["taken"] < second["largest_bytes"] / 10, second


@pytest.fixture
def endless(tmp_path):
    """Options of a run that would not end; one process of each rank prepares batches, the default with a GPU."""
    options = options_of("glm2", "lora", tmp_path / "output", dataloader_num_workers=1)
    return {**options, "num_train_epochs": 2000, "save_state_step": 100000}


def check_stopped(text, options):
    """What a stopped run says; it continues where it was stopped."""
    output = options["output_dir"]
    assert "; run the same command again to resume" in text and "DataLoader" not in text, text
    (state,) = state_directories(output / "state")
    stopped_at = read_state(state).position.step
    assert stopped_at == launch.metrics(output)[-1]["step"]
    more = launch.train({**options, "max_steps": stopped_at + 2}, num_ranks=2)
    assert f"after step {stopped_at}" in more.stdout


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_leaves_no_process(endless):
    """`kill` reaches the launcher alone."""
    process = launch.start_launched("train.py", endless)
    launch.wait_for_step(endless["output_dir"], 3, lambda: process.poll() is not None)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3  # the second launcher and two ranks
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    check_stopped(process.communicate(timeout=200)[0], endless)


@pytest.mark.slow
def test_ctrl_c_saves(endless):
    """It reaches every process of the run, which the launcher then sends SIGTERM."""
    run = launch.start_fork(["train.py", *launch.flags(endless)], 2)
    launch.wait_for_step(endless["output_dir"], 3, run.has_ended)
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in run.processes:
            process.send_signal(number)
    result = run.finish(60)
    check_stopped(result.stdout + result.stderr, endless)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_the_lower_stages(stage, tmp_path):
    """Stage 1 continues to the last bit; stage 0 is run as stage 1."""
    ds_file, output = tmp_path / "ds.json", tmp_path / "output"
    ds_file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    options = options_of("glm2", "all", output, ds_file=ds_file, save_total_limit=9)
    assert ("ZeRO stage 0 is overridden by stage 1" in launch.train(options).stdout) is (stage == 0)
    whole = launch.losses(output)
    rewind(output, 12)
    assert "after step 12" in launch.train(options).stdout
    assert launch.losses(output) == whole


@pytest.fixture
def states(tmp_path):
    """A directory with two whole states, made by a real run."""
    output = tmp_path / "output"
    launch.train(launch.train_options("glm2", "lora", output, max_steps=2, save_state_step=1))
    return output


@pytest.mark.slow
def test_a_broken_state_is_passed_over(states, monkeypatch, capsys):
    monkeypatch.setattr("checkpoints.resume.say", print)
    directories = state_directories(states / "state")
    assert [path.name for path in directories] == ["step-2", "step-1"]
    assert newest_state(states, "auto").directory == directories[0]
    file = directories[0] / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert newest_state(states, "auto").directory == directories[1]
    assert "truncated" in capsys.readouterr().out
    with pytest.raises(UserError, match="truncated"):
        newest_state(states, str(directories[0]))
    (directories[1] / "state.json").write_text("{")
    assert newest_state(states, "auto") is None
    assert newest_state(states, "none") is None


@pytest.mark.slow
def test_the_state_of_another_run(states):
    state = newest_state(states, "auto")
    identity = state.record["same"]
    check_identity(state, identity)
    with pytest.raises(UserError, match="seed: 1234 then, 1 now.*--resume_from_checkpoint none"):
        check_identity(state, {**identity, "seed": 1})
    with pytest.raises(
        UserError, match=r"\(precision: fp32 then, bf16 now\): give --precision fp32 to continue it, an"
    ):
        check_identity(state, {**identity, "precision": "bf16"})


@pytest.mark.slow
def test_started_anew_in_the_same_directory(states):
    """The states of the run that was given up are not gone back to."""
    options = launch.train_options("glm2", "lora", states, save_state_step=1)
    launch.train({**options, "max_steps": 1, "resume_from_checkpoint": "none"})
    assert [path.name for path in state_directories(states / "state")] == ["step-1"]
    assert "after step 1" in launch.train({**options, "max_steps": 2}).stdout


@pytest.mark.slow
def test_states_that_were_never_written_and_states_that_were_deleted(states):
    """Killed between its first checkpoint and the state of that step, a run restarts; without states it fails."""
    options = launch.train_options("glm2", "lora", states, max_steps=2, save_state_step=1)
    shutil.rmtree(states / "state")
    result = launch.fork(["train.py", *launch.flags(options)])
    assert result.returncode == 2 and "holds epoch-1-step-2 but no resume state" in result.stderr
    begin_states(states)
    launch.train(options)
    assert [path.name for path in sorted((states / "state").iterdir())] == ["step-1", "step-2"]
    shutil.rmtree(states / "state")
    launch.train({**options, "resume_from_checkpoint": "none"})


@pytest.mark.slow
def test_the_limit_of_checkpoints_holds_over_a_resume(tmp_path):
    output = tmp_path / "output"
    options = launch.train_options("glm2", "lora", output, save_model_step=1, save_total_limit=2)
    launch.train({**options, "max_steps": 2})
    other = output / "epoch-9-step-1"  # of another run
    shutil.copytree(output / "epoch-1-step-1", other)
    record = (other / "checkpoint.json").read_text()
    (other / "checkpoint.json").write_text(record.replace('"seed": 1234', '"seed": 1'))
    launch.train({**options, "max_steps": 3})
    assert {path.name for path in output.glob("epoch-*")} == {"epoch-1-step-2", "epoch-1-step-3", other.name}
