"""training/ds_config.py: DeepSpeed files completed by the flags, and a DeepSpeed that takes the result."""

import copy
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder
from hypothesis import given
from hypothesis import strategies as st

from errors import UserError
from memory.setup import read_setup
from tests.ds_files import GPU, OLD_GPU, resolved
from training.ds_config import DS_DIR, drop_autos, find_ds_file, read_ds_file

SHIPPED = ["ds_zero2_no_offload.json", "ds_zero2_offload.json", "ds_zero3_no_offload.json", "ds_zero3_offload.json"]
# In the manner of the files that the 2023 tool came with.
FILE_2023 = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 1,
    "zero_optimization": {"stage": 2, "offload_param": {"device": "auto"}, "offload_optimizer": {"device": "auto"}},
    "bf16": {"enabled": False},
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100},
    "gradient_clipping": 1.0,
    "prescale_gradients": False,
    "wall_clock_breakdown": False,
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_type": "cosine"}},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
}


def test_an_empty_file_is_completed():
    config, precision, notes = resolved({})
    assert config == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "train_batch_size": 24,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},
    }
    assert precision == "fp32"
    assert notes == ["--ds_file: ZeRO stage 0 is overridden by stage 1, which gives the same results."]


def test_a_2023_file_on_a_cpu():
    before = copy.deepcopy(FILE_2023)
    config, precision, notes = resolved(FILE_2023)
    assert before == FILE_2023  # pure
    assert config == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "train_batch_size": 24,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},
    }
    assert precision == "fp32"
    starts = [note.split(" is overridden ")[0].split(" on ")[0].removeprefix("--ds_file: ") for note in notes]
    assert starts == [
        "ignored, as disabled: prescale_gradients.",
        "train_micro_batch_size_per_gpu 4",
        "train_batch_size 32",
        "the optimizer section",
        "the scheduler section",
        "fp16",
        "zero_optimization.offload_optimizer",
        "zero_optimization.offload_param",
    ]


def test_a_2023_file_on_a_gpu_keeps_its_fp16():
    config, precision, _ = resolved(FILE_2023, **GPU)
    assert precision == "fp16"
    assert config["fp16"] == {"enabled": True, "loss_scale": 0, "loss_scale_window": 100}
    assert "bf16" not in config


@pytest.mark.parametrize(
    ("file_config", "precision", "device", "result"),
    [
        ({}, "auto", GPU, "bf16"),
        ({}, "auto", OLD_GPU, "fp16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, "auto", GPU, "bf16"),
        ({"fp16": {"enabled": False}}, "auto", OLD_GPU, "fp16"),
        ({"fp16": {"enabled": True}}, "auto", GPU, "fp16"),
        ({"bf16": {"enabled": True}}, "auto", GPU, "bf16"),
        ({"bf16": {"enabled": True}}, "bf16", GPU, "bf16"),
        ({"bf16": {"enabled": True}}, "auto", {}, "fp32"),
        ({"bfloat16": {"enabled": True}}, "auto", {}, "fp32"),
        ({"bfloat16": {"enabled": True}}, "auto", GPU, "bf16"),
        ({"bfloat16": {"enabled": False}}, "auto", OLD_GPU, "fp16"),
        ({"fp16": {"enabled": True}}, "fp16", OLD_GPU, "fp16"),
        ({"fp16": {"enabled": "auto"}}, "fp32", GPU, "fp32"),
        ({}, "fp32", {}, "fp32"),
        ({}, "bf16", {}, "bf16"),
    ],
)
def test_precision(file_config, precision, device, result):
    config, chosen, _ = resolved(file_config, precision=precision, **device)
    assert chosen == result
    assert {key: config[key]["enabled"] for key in ("fp16", "bf16") if key in config} == (
        {} if result == "fp32" else {result: True}
    )


@pytest.mark.parametrize(
    ("file_config", "changed", "parts"),
    [
        ({"fp16": {"enabled": True}}, {"precision": "bf16", **GPU}, ["--precision bf16", "--ds_file", "fp16"]),
        ({"bf16": {"enabled": True}}, {"precision": "fp32"}, ["--precision fp32", "--ds_file", "bf16"]),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, {}, ["--ds_file", "both"]),
        ({}, {"precision": "fp16"}, ["--precision fp16", "CPU"]),
        ({"fp16": {"enabled": True}}, {"precision": "fp16"}, ["--precision fp16", "CPU"]),
        ({}, {"precision": "bf16", **OLD_GPU}, ["--precision bf16", "GPU"]),
        ({"bf16": {"enabled": True}}, OLD_GPU, ["--ds_file", "bf16", "GPU"]),
        ({"fp16": {"enabled": "true"}}, {}, ["fp16.enabled", '"true"']),
        ({"fp16": True}, {}, ["fp16", "true"]),
        ({"zero_optimization": 2}, {}, ["zero_optimization", "2"]),
        ({"zero_optimization": {"stage": 4}}, {}, ["stage 4"]),
        ({"bfloat16": {"enabled": True}}, {"precision": "fp32"}, ["--precision fp32", "--ds_file", "bf16"]),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}, {}, ["zero_hpz_partition_size 3", "(4)"]),
        (
            {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
            {"precision": "bf16"},
            ["grad_accum_dtype", "stage 2 or 3"],
        ),
        ({"zero_optimization": {"stage": "auto"}}, {}, ['stage "auto"']),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, {}, ["offload_optimizer", '"cpu"']),
        (
            {"gradient_clipping": 0.5},
            {"max_grad_norm": 2.0, "explicit": frozenset({"max_grad_norm"})},
            ["--max_grad_norm 2.0", "--ds_file", "gradient_clipping", "0.5"],
        ),
        ({"gradient_clipping": "1"}, {}, ["gradient_clipping", '"1"']),
        ({"gradient_clipping": -1}, {}, ["gradient_clipping -1"]),
    ],
)
def test_conflicts_are_one_sentence_that_names_both(file_config, changed, parts):
    with pytest.raises(UserError) as error:
        resolved(file_config, **changed)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file_config", "max_grad_norm", "explicit", "result", "has_note"),
    [
        ({}, 0.0, {"max_grad_norm"}, 0.0, False),
        ({"gradient_clipping": "auto"}, 2.0, {"max_grad_norm"}, 2.0, False),
        ({"gradient_clipping": 0.5}, 1.0, set(), 0.5, True),
        ({"gradient_clipping": 1}, 1.0, {"max_grad_norm"}, 1, False),
        ({"gradient_clipping": 0}, 1.0, set(), 0, True),
    ],
)
def test_clipping(file_config, max_grad_norm, explicit, result, has_note):
    file_config = {**file_config, "zero_optimization": {"stage": 2}}
    config, _, notes = resolved(file_config, max_grad_norm=max_grad_norm, explicit=frozenset(explicit))
    assert config["gradient_clipping"] == result
    assert bool(notes) is has_note


def test_a_step_with_a_nan_gradient_is_never_applied():
    off = {"enabled": True, "check_grad_overflow": False, "immediate_grad_update": True}
    config, _, notes = resolved({"bf16": off, "zero_optimization": {"stage": 2}}, **GPU)
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}
    assert len(notes) == 1 and "check_grad_overflow false is overridden by true" in notes[0]
    assert resolved({"bf16": off | {"check_grad_overflow": True}, "zero_optimization": {"stage": 2}}, **GPU)[2] == []


@pytest.mark.parametrize(
    ("world_size", "overlap", "result", "has_note"),
    [(1, {}, False, False), (1, {"overlap_comm": False}, False, False), (1, {"overlap_comm": True}, False, True),
     (2, {"overlap_comm": True}, True, False), (2, {}, None, False)],
)  # fmt: skip
@pytest.mark.parametrize("stage", [2, 3])
def test_communication_is_not_overlapped_on_one_rank(world_size, overlap, result, has_note, stage):
    config, precision, notes = resolved({"zero_optimization": {"stage": stage, **overlap}}, world_size=world_size)
    assert config["zero_optimization"].get("overlap_comm") is result
    assert [note for note in notes if "overlap_comm true is overridden by false" in note] == notes[:has_note]
    setup = read_setup(config, precision=precision, ranks=world_size, batch=None)  # the estimate follows
    assert setup.overlap_comm is bool(stage == 3 if result is None else result)


@pytest.mark.parametrize(
    ("timers", "result"),
    [
        ({}, {"enabled": False}),
        ({"timers": {"throughput": {"synchronized": False}}}, {"enabled": False, "synchronized": False}),
        ({"timers": {"throughput": {"enabled": True}}}, {"enabled": True}),
    ],
)
def test_the_throughput_timer_runs_only_where_it_is_asked_for(timers, result):
    config, _, _ = resolved({**timers, "zero_optimization": {"stage": 2}})
    assert config["timers"]["throughput"] == result


def test_nvme_needs_libaio():
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}
    if AsyncIOBuilder().is_compatible(verbose=False):
        assert resolved({"zero_optimization": zero})[0]["zero_optimization"] == zero
    else:
        with pytest.raises(UserError, match="offload_optimizer on nvme needs libaio"):
            resolved({"zero_optimization": zero})


def test_agreeing_values_and_autos_of_known_keys_need_no_note():
    config, _, notes = resolved(
        {
            "train_batch_size": 24,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "wall_clock_breakdown": "auto",
            "zero_optimization": {"stage": 1},
        }
    )
    assert (config["train_batch_size"], config["gradient_accumulation_steps"], notes) == (24, 3, [])


@pytest.mark.parametrize(
    ("zero", "kept", "number_of_notes"),
    [
        ({"stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}}, None, 0),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, {"stage": 2}, 1),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, {"stage": 1, "offload_optimizer": {"device": "cpu"}}, 1),
        ({"stage": 1, "offload_optimizer": {"device": "cpu"}}, None, 0),
        ({"stage": 3, "offload_param": {"device": "none"}}, {"stage": 3}, 0),
        ({"stage": 3, "offload_param": None}, {"stage": 3}, 0),
    ],
)
def test_offload(zero, kept, number_of_notes):
    config, _, notes = resolved({"zero_optimization": zero})
    assert config["zero_optimization"] == (zero if kept is None else kept)
    assert len(notes) == number_of_notes


def test_sizes_at_auto_follow_the_hidden_size():
    sizes = ["reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"]
    file_config = {"zero_optimization": {"stage": 3, **dict.fromkeys(sizes, "auto")}}
    config, _, notes = resolved(file_config, hidden_size=100)
    assert [config["zero_optimization"][size] for size in sizes] == [10000, 9000, 1000]
    assert notes == []
    config, _, notes = resolved(file_config)
    assert config["zero_optimization"] == {"stage": 3}
    assert len(notes) == 3


def test_what_the_file_says_otherwise_stays():
    file_config = {
        "wall_clock_breakdown": True,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": 2, "round_robin_gradients": True},
    }
    config, _, notes = resolved(file_config)
    assert file_config.items() <= config.items()
    assert notes == []


JSON_VALUES = st.recursive(
    st.sampled_from(["auto", "x", 1, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["first", "second", "other"]), JSON_VALUES))
def test_no_auto_is_left_at_any_depth(section):
    before = json.dumps(section)
    dropped = drop_autos(section)
    assert '"auto"' not in json.dumps(section)
    assert bool(dropped) is ('"auto"' in before)


def test_find_and_read(tmp_path):
    assert find_ds_file("ds_zero2_no_offload.json") == DS_DIR / "ds_zero2_no_offload.json"
    own = tmp_path / "ds_zero2_no_offload.json"
    own.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert find_ds_file(own) == own
    assert read_ds_file(own) == {"a": 1}
    with pytest.raises(UserError) as error:
        find_ds_file("ds_zero2.json")
    assert all(name in str(error.value) for name in ["--ds_file ds_zero2.json", *SHIPPED])
    with pytest.raises(UserError, match="does not exist"):
        find_ds_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{\n"a": 1\n"b": 2}', ":3 is not JSON"),
        (b"[1]", " is not a JSON object, but \\[1\\]"),
        (b"", ":1 is not JSON"),
        (b"\xff", ".* is not UTF-8"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_place(tmp_path, content, part):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}{part}"):
        read_ds_file(path)


def test_the_shipped_files_are_memory_strategy_only():
    assert sorted(path.name for path in DS_DIR.glob("*")) == SHIPPED
    for name in SHIPPED:
        config = read_ds_file(find_ds_file(name))
        assert list(config) == ["zero_optimization"]
        zero = config["zero_optimization"]
        assert zero["stage"] == int(name[len("ds_zero")])
        offloaded = {key: zero[key] for key in ("offload_optimizer", "offload_param") if key in zero}
        wanted = [] if "no_offload" in name else ["offload_optimizer", "offload_param"][: zero["stage"] - 1]
        assert offloaded == {key: {"device": "cpu", "pin_memory": True} for key in wanted}
        assert resolved(config)[2] == []


# Run alone, because it starts a process group: every configuration trains five steps of 4, 3, 4, 1 and 2 micro-batches
# and prints the losses, the gradient norms and the sum of what was trained.
TRAIN_WITH_EACH = """
import json, sys, warnings
warnings.simplefilter("ignore")
import deepspeed, deepspeed.ops, torch
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
generator = torch.Generator().manual_seed(1)
rows = [(torch.randn(3, 8, generator=generator), torch.randn(3, 4, generator=generator)) for _ in range(14)]
for config in json.load(sys.stdin):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))
    model[1].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if config is None:
        engine = model
    else:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    left, losses, norms = iter(rows), [], []
    for micro_batches in (4, 3, 4, 1, 2):
        total = 0.0
        for i in range(micro_batches):
            x, y = next(left)
            loss = ((engine(x) - y) ** 2).sum() / (3 * micro_batches)
            total += loss.item()
            if config is None:
                loss.backward()
                continue
            engine.set_gradient_accumulation_boundary(i == micro_batches - 1)
            engine.backward(loss, scale_wrt_gas=False)
            engine.step()
        if config is None:
            norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
            optimizer.step()
            optimizer.zero_grad()
        else:
            norms.append(float(engine.get_global_grad_norm()))
        losses.append(total)
    with deepspeed.zero.GatheredParameters(trained):
        values = [parameter.detach().double().sum().item() for parameter in trained]
    print("RESULT", json.dumps([*losses, *norms, *values]))
"""


@pytest.mark.slow
def test_deepspeed_trains_the_same_with_every_file(tmp_path, monkeypatch):
    files = [read_ds_file(find_ds_file(name)) for name in SHIPPED] + [FILE_2023]
    files += [{"zero_optimization": {"stage": 0}}, {"zero_optimization": {"stage": 1}}]
    small = copy.deepcopy(files[2])  # everything really partitioned, in buckets smaller than a parameter
    small["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 50}
    small_2 = copy.deepcopy(files[0])
    small_2["zero_optimization"] |= {"reduce_bucket_size": 50, "allgather_bucket_size": 50}
    configs = [
        resolved(file_config, micro_batch_size=3, gradient_accumulation_steps=4, world_size=1)[0]
        for file_config in [*files, small, small_2]
    ]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    result = subprocess.run(
        [sys.executable, "-c", TRAIN_WITH_EACH],
        input=json.dumps([None, *configs]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    reference, *of_others = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    assert len(of_others) == len(configs)
    for of_file in of_others:
        assert of_file == pytest.approx(reference, rel=1e-5, abs=1e-6)
    assert not (tmp_path / "compiled").exists()  # nothing was compiled


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
