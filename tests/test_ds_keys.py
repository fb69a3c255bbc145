"""training/ds_keys.py: each key of a DeepSpeed file is accepted, has no effect, or is refused in one sentence."""

import copy
import importlib.util
import json
import re

import deepspeed
import pytest
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

from errors import UserError
from tests.bad_input.place import REMEDY
from tests.ds_files import GPU, resolved
from tests.launch import REPOSITORY
from training.ds_config import FLAG_OF_KEY, FLAGS_OF_SECTION
from training.ds_keys import ACCEPTED, IGNORED, OTHER_NAMES, REFUSED, RULES, SECTIONS, sort_keys

SECTION_MODELS = [
    ("zero_optimization", DeepSpeedZeroConfig),
    ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
    ("zero_optimization.offload_param", DeepSpeedZeroOffloadParamConfig),
    ("fp16", DeepSpeedFP16Config),
    ("bf16", DeepSpeedBF16Config),
]
PINNED = re.search(r"^deepspeed==(.*)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)[1]
of_pinned = pytest.mark.skipif(deepspeed.__version__ != PINNED, reason="the table is of the pinned DeepSpeed")

# Values that switch a key on, where `true` is none.
ON = {
    "zero_optimization.offload_optimizer.ratio": 0.5,
    "gradient_predivide_factor": 2.0,
    "gradient_allreduce_op": "sum",
    "managed_gradient_accumulation": False,
    "zero_optimization.compute_grad_norm": False,
    "sequence_parallel_size": 2,
    "tensor_parallel": {"autotp_size": 2},
    "zero_optimization.mics_shard_size": 8,
    "zero_optimization.leaf_module": {"classes": ["GLMBlock"]},
    "zero_optimization.zenflow": {"topk_ratio": 0.1},
    "sparse_attention": {"mode": "fixed"},
    "compile": {"deepcompile": True},
}
# Sections as files have them that switch them off.
OFF = {
    "amp": [{"enabled": "auto", "opt_level": "auto"}, {"enabled": False}],
    "curriculum_learning": [{"enabled": False, "curriculum_type": "seqlen"}],
    "compression_training": [
        {"weight_quantization": {"shared_parameters": {"enabled": False}, "different_groups": {}}}
    ],
    "elasticity": [{"enabled": False, "max_train_batch_size": 2000}],
    "progressive_layer_drop": [{"enabled": False, "theta": 0.5}],
    "eigenvalue": [{"enabled": False}],
    "quantize_training": [{"enabled": False, "quantize_verbose": True}],
    "sparse_gradients": [False],
    "data_efficiency": [{"enabled": False, "data_sampling": {"enabled": True}}, {}],
    "tensor_parallel": [{"autotp_size": 0}, {"autotp_size": 1}],
    "sequence_parallel_size": [1],
    "gradient_predivide_factor": [1.0],
    "gradient_allreduce_op": ["mean"],
    "managed_gradient_accumulation": [True],
    "torch_autocast": [{"enabled": False, "dtype": "bfloat16"}],
    "prescale_gradients": [False],
    "compile": [{"deepcompile": False}],
    "hybrid_engine": [{"enabled": False}],
    "zero_optimization.mics_shard_size": [-1],
    "zero_optimization.compute_grad_norm": [True],
    "zero_optimization.offload_optimizer.ratio": [1.0],
    "zero_optimization.zero_quantized_weights": [False],
}


def file_with(path: str, value) -> dict:
    """A file that holds the value at the path, and where it is in an offload section what belongs to it."""
    parts = path.split(".")
    config = section = {"zero_optimization": {"stage": 3}}
    for part in parts[:-1]:
        section = section.setdefault(part, {"device": "cpu"} if part.startswith("offload_") else {})
    section[parts[-1]] = value
    return config


@pytest.mark.parametrize("path", [path for path, rule in RULES.items() if rule.verdict == REFUSED])
def test_a_refused_key_is_one_sentence_before_anything_is_loaded(path):
    with pytest.raises(UserError) as error:
        resolved(file_with(path, ON.get(path, True)), world_size=2)
    sentence = str(error.value)
    assert "\n" not in sentence and f"--ds_file: {path} " in sentence, sentence
    assert REMEDY.search(sentence) and sentence.endswith("."), sentence


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in OFF.items() for value in values])
def test_what_is_switched_off_is_left_out_with_a_note(path, value):
    config, _, notes = resolved(file_with(path, value), world_size=2)
    assert [note for note in notes if note.startswith("--ds_file: ignored, as disabled: ") and path in note]
    for part in path.split(".")[:-1]:
        config = config[part]
    assert path.split(".")[-1] not in config


@pytest.mark.parametrize("path", [path for path, rule in RULES.items() if rule.verdict == IGNORED])
def test_a_key_without_effect_is_left_out_with_a_note(path):
    config, _, notes = resolved(file_with(path, True), world_size=2, precision="fp16", **GPU)
    assert [note for note in notes if f"{path} has no effect: " in note]
    assert path.split(".")[-1] not in json.dumps(config)


@pytest.mark.parametrize(
    ("file_config", "sentence"),
    [
        (
            {"zero_optimizations": {"stage": 3}},
            '"zero_optimizations" is not a key of DeepSpeed: write "zero_optimization".',
        ),
        ({"train_micro_batch_size_per_gpus": 1}, 'write "train_micro_batch_size_per_gpu".'),
        (
            {"zero_optimization": {"overlap_com": True}},
            '"zero_optimization.overlap_com" is not .* write "overlap_comm".',
        ),
        ({"fp16": {"enable": True}}, '"fp16.enable" is not a key of DeepSpeed: write "enabled".'),
        ({"bfloat16": {"enable": True}}, '"bf16.enable" is not a key of DeepSpeed: write "enabled".'),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, 'write "grad_accum_dtype".'),
        ({"timers": {"troughput": {}}}, 'write "throughput".'),
        ({"我的": 1}, '"我的" is not a key of DeepSpeed: remove it.'),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memoy": 1}}}, 'write "pin_memory".'),
        (
            {"compute_environment": "LOCAL_MACHINE", "deepspeed_config": {"zero_stage": 3}, "use_cpu": False},
            r"configuration of accelerate \(compute_environment, deepspeed_config\): give the DeepSpeed file",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(file_config, sentence):
    with pytest.raises(UserError, match=sentence):
        resolved(file_config)


def test_all_conflicts_of_a_file_are_said_at_once():
    file_config = {
        "zero_optimization": {"stage": 7, "zenflow": {}, "legacy_stage1": True},
        "amp": {"enabled": True},
        "gradient_clippin": 1,
        "gradient_clipping": "1",
        "fp16": {"enabled": "yes"},
        "comet": {"enabled": True},
    }
    with pytest.raises(UserError) as error:
        resolved(file_config)
    lines = error.value.sentences
    parts = ["legacy_stage1", "stage 7", "amp", '"gradient_clippin"', 'gradient_clipping "1"', "fp16.enabled", "comet"]
    assert len(lines) == len(parts) and all(any(part in line for line in lines) for part in parts), lines


def test_everything_that_deepspeed_refuses_is_said_at_once():
    file_config = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": -1, "overlap_comm": "maybe"},
        "communication_data_type": "fp99",
        "tensorboard": "on",
    }
    with pytest.raises(UserError) as error:
        resolved(file_config)
    lines = error.value.sentences
    parts = ["reduce_bucket_size -1", 'overlap_comm "maybe"', 'communication_data_type "fp99"', 'tensorboard "on"']
    assert len(lines) == 4 and all(any(part in line for line in lines) for part in parts), lines


def test_two_names_of_one_key():
    config, _, notes = resolved({"zero_optimization": {"stage": 3, "max_live_parameters": 5}})
    assert config["zero_optimization"] == {"stage": 3, "stage3_max_live_parameters": 5}
    assert "zero_optimization.max_live_parameters is read as" in notes[0]
    with pytest.raises(UserError, match="has different values for bfloat16 and bf16"):
        resolved({"bfloat16": {"enabled": True}, "bf16": {"enabled": False}})


@pytest.mark.parametrize(("section", "package"), [("wandb", "wandb"), ("comet", "comet_ml")])
def test_a_monitor_needs_its_package(section, package, tmp_path, monkeypatch):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=f"{section} needs the package {package}: install it"):
        resolved({section: {"enabled": True}})
    resolved({section: {"enabled": False}})
    (tmp_path / f"{package}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolved({section: {"enabled": True}})[0][section] == {"enabled": True}


def test_the_table_does_not_change_what_it_is_given():
    file_config = {"zero_optimization": {"stage": 2, "overlap_comm": True}, "fp16": {"enabled": True}}
    before = copy.deepcopy(file_config)
    assert sort_keys(file_config) == ([], []) and file_config == before


class Recorder(dict):
    """A DeepSpeed file that notes which keys it is asked for."""

    asked: set = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self


def test_the_table_has_every_key_that_deepspeed_reads():
    DeepSpeedConfig(Recorder(train_batch_size=1))
    assert len(Recorder.asked) > 50
    assert not Recorder.asked - RULES.keys() - OTHER_NAMES.keys()


@of_pinned
def test_the_table_refuses_what_deepspeed_removed():
    removed = set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    removed |= {f"zero_optimization.{key}" for key in deepspeed_config._REMOVED_ZERO_CONFIG_KEYS}
    assert all(RULES[path].verdict == REFUSED for path in removed)


@pytest.mark.parametrize(("section", "model"), SECTION_MODELS)
def test_the_table_has_every_key_of_a_section(section, model):
    names = {f"{section}.{field.alias or name}" for name, field in model.model_fields.items()}
    assert section in SECTIONS and not names - RULES.keys()
    both = {f"{section}.{name}" for name, field in model.model_fields.items() if field.alias}
    assert both <= OTHER_NAMES.keys()


@of_pinned
@pytest.mark.parametrize(("section", "model"), SECTION_MODELS)
def test_deepspeed_takes_what_the_table_accepts(section, model):
    names = {f"{section}.{field.alias or name}" for name, field in model.model_fields.items()}
    accepted = {path for path, rule in RULES.items() if re.fullmatch(rf"{section}\.\w+", path)}
    accepted = {path for path in accepted if RULES[path].verdict == ACCEPTED}
    assert accepted <= names


@pytest.mark.parametrize("page", ["ds_file.md", "ds_file.zh-CN.md"])
def test_the_page_lists_every_key_where_it_belongs(page):
    _, _, accepted, ignored, refused = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").split("\n## ")
    for path, rule in RULES.items():
        part = {ACCEPTED: accepted, IGNORED: ignored, REFUSED: refused}[rule.verdict]
        overridden = path in FLAG_OF_KEY or path in FLAGS_OF_SECTION or path.startswith(("steps_per", "zero_force"))
        assert overridden or re.search(rf"[`.]{path.rpartition('.')[2]}`", part), path
