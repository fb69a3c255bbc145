"""options/config_file.py: --config run.yaml, and the run.yaml that a run writes."""

import pytest
import yaml

from options.config_file import write_config
from options.parser import parse
from options.train import TRAIN, parse_train


@pytest.fixture
def path(tmp_path):
    """Where a test writes its run.yaml."""
    return tmp_path / "run.yaml"


def read(path, text, *argv):
    """(values, given names, sentences) of a command line with a run.yaml of this text."""
    path.write_text(text, encoding="utf-8")
    given = parse(TRAIN, ["--config", str(path), *argv])
    return given.values, given.names, given.problems


# text of a run.yaml: the values that differ from the defaults
FILES = {
    "": {},
    "# nothing\n": {},
    "max_len: 512\nlearning_rate: 1e-4\n": {"max_len": 512, "learning_rate": 1e-4},  # a text in YAML 1.1
    "lora_module_name: [query_key_value, dense]\n": {"lora_module_name": ("query_key_value", "dense")},
    "lora_module_name: query_key_value,dense\n": {"lora_module_name": ("query_key_value", "dense")},
    "lora_module_name:\n- dense\n": {"lora_module_name": ("dense",)},
    "train_path: [a.json, b.json]\n": {"train_path": "a.json,b.json"},
    "is_skip: true\nshare_prompts: no\npacking: False\n": {"is_skip": True, "share_prompts": False},
    "save_model_step: null\ndev_path: ~\nmax_steps:\n": {},
    "save_model_step: 5\ncheckpoint_layers: auto\n": {"save_model_step": 5},
    'source_prefix: ""\nhistory_column: "null"\n': {"history_column": "null"},
    "source_prefix: '水泵: '\n": {"source_prefix": "水泵: "},
    "{seed: 3, weight_decay: 0}": {"seed": 3, "weight_decay": 0.0},
    "seed: 0017\n": {"seed": 17},  # as on the command line, not octal
}


@pytest.mark.parametrize("text", FILES)
def test_values(path, text):
    values, names, problems = read(path, text)
    defaults = {name: flag.default for name, flag in TRAIN.flags.items()}
    assert (values, problems) == (defaults | FILES[text], [])
    assert names == FILES[text].keys()  # a default that is written down is not "given"


def test_the_command_line_takes_precedence(path):
    text = "max_len: 512\nseed: 3\nis_skip: true\n"
    values, names, problems = read(path, text, "--seed", "4", "max_len=64", "--is_skip", "False")
    assert (values["max_len"], values["seed"], values["is_skip"], problems) == (64, 4, False, [])
    assert names == {"max_len", "seed", "is_skip"}
    path.write_text(text)
    assert parse(TRAIN, ["--seed", "4", f"--config={path}"]).values["seed"] == 4
    assert parse(TRAIN, [f"config={path}"]).values["seed"] == 3


# text of a run.yaml: the sentences, in which FILE stands for its path
BROKEN = {
    "max_len: 512\nmax_le: 5\n": ["FILE:2: max_le is an unknown key: did you mean max_len?"],
    "lora_rank: 5\n": ["FILE:1: lora_rank is an unknown key: use lora_dim."],
    "max_le: 5\ndo_train: true\n": [
        "FILE:1: max_le is an unknown key: did you mean max_len?",
        "FILE:2: do_train is an unknown key: leave it out, train.py always does so.",
    ],
    "load_in_8bit: true\n": ["FILE:1: load_in_8bit is an unknown key: use quantization_bit 8."],
    "xyzzy: 1\n": ["FILE:1: xyzzy is an unknown key: train.py help lists all options."],
    "seed: 1\n\nseed: 2\n": ["FILE:3: seed is given twice: remove one of them."],
    "max_len: 1k\n": ["FILE:1: max_len: '1k' is not a whole number (train.py --help lists all flags)."],
    "max_len: [1, 2]\n": ["FILE:1: max_len: '1,2' is not a whole number (train.py --help lists all flags)."],
    "is_skip: maybe\n": ["FILE:1: is_skip: 'maybe' is neither True nor False (train.py --help lists all flags)."],
    "max_len: {a: 1}\n": ["FILE:1: max_len: it must be a value or a list of values (train.py --help lists all flags)."],
    "lora_module_name: [[a], b]\n": [
        "FILE:1: lora_module_name: it must be a value or a list of values (train.py --help lists all flags)."
    ],
    "lora_module_name: []\n": [
        "FILE:1: lora_module_name: '' holds no name; give one or more, separated by commas (train.py --help lists all "
        "flags)."
    ],
    "- max_len\n": ["FILE:1: the file of --config must have one key per flag, such as max_len: 512."],
    "512\n": ["FILE:1: the file of --config must have one key per flag, such as max_len: 512."],
    "max_le: 5\nis_skip: 2\nseed: 1\nseed: 1\n": [
        "FILE:1: max_le is an unknown key: did you mean max_len?",
        "FILE:2: is_skip: '2' is neither True nor False (train.py --help lists all flags).",
        "FILE:4: seed is given twice: remove one of them.",
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_files_that_are_wrong(path, text):
    assert read(path, text)[2] == [sentence.replace("FILE", str(path)) for sentence in BROKEN[text]]


@pytest.mark.parametrize(
    ("text", "line"), [("max_len: 512\nseed: [1\n", 3), ("a: b: c\n", 1), ("x: 'a\n", 2), ("- a\nb: 1\n", 2)]
)
def test_files_that_are_no_yaml(path, text, line):
    (sentence,) = read(path, text)[2]
    assert sentence.startswith(f"{path}:{line}: not YAML (") and sentence.endswith("): correct the file of --config.")
    assert "\n" not in sentence and len(sentence) < 500


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not UTF-8 text: save it as UTF-8."), (b"a: \x00", "not YAML"), (b"[" * 3000, "not YAML")],
)
def test_files_that_are_no_text(path, content, said):
    path.write_bytes(content)
    (sentence,) = parse(TRAIN, ["--config", str(path)]).problems
    assert str(path) in sentence and said in sentence


def test_keys_that_are_no_text(path):
    (sentence,) = read(path, "max_len: 64\n? [a, b]\n: 1\n")[2]
    assert sentence.startswith(f"{path}:2: ") and "Node" not in sentence


def test_files_that_are_not_there(tmp_path):
    for given, said in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        (sentence,) = parse(TRAIN, ["--config", str(given)]).problems
        assert sentence.startswith(f"--config {given} cannot be read ({said}")


@pytest.mark.parametrize("method", ["lora", "freeze", "ptuning", "all"])
def test_what_a_run_writes_is_complete_and_says_the_same(path, method):
    argv = [f"train_type={method}", "max_steps=3", "learning_rate=1e-5", "report_to=none", "source_prefix=水 : x"]
    options, problems = parse_train(argv)
    assert problems == []
    write_config(path, options.sections, "train.py")
    again, problems = parse_train(["--config", str(path)])
    assert problems == [] and again.sections == options.sections
    assert again.given == options.given - ({"train_type"} if method == "lora" else set())  # which is the default
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {*written} == {name for name in options.flat() if not TRAIN.flags[name].ignored}
    assert path.read_text(encoding="utf-8").startswith("# train.py --config run.yaml\n")
