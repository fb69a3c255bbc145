"""options/values.py: texts -> values of flags, and one sentence for each value that cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags import Flag
from options.train import TRAIN, parse_train
from options.values import as_text, boolean, check_texts, check_values, convert, layer_count, names


def flag_of(kind, **details):
    return Flag("some", kind, None, "", "", "", **details)


@given(st.text(alphabet="ab., \t", max_size=20))
def test_no_name_is_ever_empty(text):
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if wanted and all(len(name.split()) == 1 for name in wanted):
        assert names(text) == tuple(wanted)
    else:
        with pytest.raises(ValueError, match="separate names by commas" if wanted else "no name"):
            names(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("False", False), ("fALSE", False), ("0", False), ("1", True), ("no", False), (" yes ", True)],
)
def test_a_boolean_is_read_as_text(text, value):
    assert boolean(text) is value
    assert parse_train(["--prefix_projection", text])[0].model == parse_train([])[0].model
    for argv in (["--train_type=ptuning", f"--prefix_projection={text}"], ["train_type=ptuning", f"is_skip={text}"]):
        options, problems = parse_train(argv)
        assert problems == [] and value in (options.method.prefix_projection, options.data.is_skip)


@pytest.mark.parametrize("text", ["", "maybe", "2", "on"])
def test_other_words_are_no_boolean(text):
    with pytest.raises(ValueError, match="is neither True nor False"):
        boolean(text)


@pytest.mark.parametrize("text", ["some", "-1", "2.0", "", "³", "9" * 10])
def test_layers_are_auto_or_a_number(text):
    assert (layer_count("12"), layer_count("auto")) == (12, "auto")
    with pytest.raises(ValueError, match="is neither auto nor a number of layers"):
        layer_count(text)


@pytest.mark.parametrize(("kind", "text"), [(int, "1k"), (int, "2.0"), (float, "fast"), (int, "9" * 5000), (int, "")])
def test_texts_that_are_no_number(kind, text):
    with pytest.raises(ValueError, match="is not a(?: whole)? number$") as error:
        convert(flag_of(kind), text)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(int, "12", 12), (float, "1e-4", 1e-4), (str, "1e-4", "1e-4"), (tuple, "a, b", ("a", "b")), (bool, "no", False)],
)
def test_values_and_their_texts(kind, text, value):
    flag = flag_of(kind)
    assert convert(flag, text) == value
    assert convert(flag, as_text(value)) == value


@pytest.mark.parametrize("value", ["a b", "a b,c", "a, b c"])
def test_names_separated_by_blanks(value):
    apart = ",".join(value.replace(",", " ").split())
    (sentence,) = parse_train(["--modules_to_save", value])[1]
    assert f"separate names by commas: {apart} " in sentence


def checked(flag, value):
    """The sentences about one flag's value, of any program."""
    return check_values({flag.name: flag}, {flag.name: value}, frozenset())


BAD = [
    ("max_len", 15, "at least 16 and at most 2147483647"),
    ("max_len", -1, "at least 16"),
    ("max_src_len", 0, "at least 1"),
    ("per_device_train_batch_size", 0, "at least 1"),
    ("gradient_accumulation_steps", -4, "at least 1"),
    ("num_train_epochs", 0.0, "greater than 0 and less than 2147483648"),
    ("num_train_epochs", -0.5, "greater than 0"),
    ("num_train_epochs", float("nan"), "greater than 0"),
    ("num_train_epochs", 1e300, "less than 2147483648"),
    ("max_steps", 0, "at least 1"),
    ("max_steps", 10**12, "at most 2147483647"),
    ("learning_rate", 0.0, "greater than 0"),
    ("learning_rate", float("nan"), "greater than 0"),
    ("learning_rate", float("inf"), "greater than 0 and finite"),
    ("weight_decay", -0.1, "at least 0"),
    ("warmup_ratio", 1.1, "at least 0 and at most 1"),
    ("warmup_ratio", -0.1, "at least 0"),
    ("warmup_ratio", float("nan"), "at least 0"),
    ("warmup_steps", -1.0, "at least 0"),
    ("warmup_steps", float("inf"), "less than 2147483648"),
    ("max_grad_norm", -1.0, "at least 0"),
    ("max_grad_norm", float("nan"), "at least 0"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "less than 4294967296"),
    ("show_loss_step", 0, "at least 1"),
    ("save_model_step", 0, "at least 1"),
    ("save_total_limit", 0, "at least 1"),
    ("lora_dim", 0, "at least 1"),
    ("lora_alpha", 0, "greater than 0"),
    ("lora_dropout", 1.0, "at least 0 and less than 1"),
    ("lora_dropout", -0.1, "at least 0"),
    ("pre_seq_len", 0, "at least 1"),
    ("freeze_last_n", 0, "at least 1"),
    ("freeze_last_n", -1, "at least 1"),
    ("dataloader_num_workers", 65, "at most 64"),
]


@pytest.mark.parametrize(("name", "value", "bounds"), BAD)
def test_a_number_out_of_its_bounds(name, value, bounds):
    (sentence,) = checked(TRAIN.flags[name], value)
    assert sentence.startswith(f"--{name} {value} is out of bounds: it must be ") and sentence.endswith(".")
    assert bounds in sentence


@pytest.mark.parametrize(
    "name", [name for name, flag in TRAIN.flags.items() if flag.is_number and not (flag.choices or flag.parse)]
)
def test_nan_and_infinity_are_out_of_all_bounds(name):
    flag = TRAIN.flags[name]
    for value in (float("nan"), float("inf"), float("-inf")):
        assert len(checked(flag, value)) == (not flag.ignored)
    assert checked(flag, flag.default) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("warmup_ratio", 0), ("warmup_ratio", 1), ("warmup_steps", 0.0), ("num_train_epochs", 0.001)),
        *(("num_train_epochs", 3.0), ("lora_dropout", 0), ("max_grad_norm", 0.0), ("weight_decay", 0.0)),
        *(("max_len", 16), ("seed", 2**32 - 1), ("max_steps", 2**31 - 1), ("dataloader_num_workers", 64)),
    ],
)
def test_values_at_the_bounds(name, value):
    assert checked(TRAIN.flags[name], value) == []


@pytest.mark.parametrize("name", [name for name, flag in TRAIN.flags.items() if flag.choices])
def test_a_value_that_is_no_choice(name):
    flag = TRAIN.flags[name]
    (sentence,) = checked(flag, 5 if flag.is_number else "some")
    assert sentence.startswith(f"--{name} {5 if flag.is_number else 'some'} is unknown: choose ")
    assert all(str(choice) in sentence for choice in flag.choices)
    assert all(checked(flag, choice) == [] for choice in flag.choices)


def test_flags_that_need_others():
    argv = ["--eval_metric", "rougeL", "--replay_ratio", "0.5", "--gpu_memory", "24", "--checkpoint_layers", "4"]
    assert parse_train(argv)[1] == [
        "--replay_ratio 0.5 needs --replay_path: give both or neither.",
        "--checkpoint_layers 4 needs --gradient_checkpointing: give both or neither.",
        "--eval_metric rougeL needs --dev_path: give both or neither.",
        "--gpu_memory 24.0 needs --dry_run: give both or neither.",
    ]
    needed = ["--dev_path", "d", "--replay_path", "r", "--dry_run", "--gradient_checkpointing"]
    assert parse_train([*argv, *needed])[1] == []


@pytest.mark.parametrize("name", [name for name, flag in TRAIN.flags.items() if flag.needs])
def test_every_flag_that_needs_another_says_so(name):
    flag = TRAIN.flags[name]
    needed, _, wanted = flag.needs.partition("=")
    value = True if flag.kind is bool else flag.default if flag.default is not None else 3
    flags = {name: flag, needed: TRAIN.flags[needed]}
    without = {name: value, needed: TRAIN.flags[needed].default}
    (sentence,) = check_values(flags, without, frozenset({name}))
    assert sentence.startswith(f"--{name}") and f" needs --{needed}" in sentence and wanted in sentence
    assert check_values(flags, {**without, needed: wanted or True}, frozenset({name})) == []
    assert check_values(flags, without, frozenset()) == []


def test_flags_that_exclude_each_other():
    argv = ["--train_type", "freeze", "--freeze_last_n", "2"]
    assert parse_train(argv)[1] == []
    assert parse_train([*argv, "--freeze_module_name", "a,b"])[1] == [
        "--freeze_last_n 2 and --freeze_module_name a,b are mutually exclusive: give only one."
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [("glm2\nerror: no", r"'glm2\\nerror: no'"), ("\udcff", r"'\\udcff'"), ("x" * 1001, "x")]
)
def test_texts_that_no_checkpoint_could_record(value, shown):
    (sentence,) = check_texts(TRAIN.flags, {"mode": value})
    assert sentence.startswith("--mode ") and "\n" not in sentence and sentence.endswith("give another value.")
    sentence.encode()
    free = Flag("instruction", str, None, "", "", "", free_text=True)
    problems = check_texts({"instruction": free}, {"instruction": value})
    assert len(problems) == (value == "\udcff")  # the model may be asked anything that is text


def test_every_name_of_a_list_is_a_choice():
    modes = flag_of(tuple, choices=("glm", "glm2", "glm3"))
    assert checked(modes, ("glm3", "glm")) == []
    assert checked(modes, ("glm", "glm4")) == ["--some glm4 is unknown: choose glm, glm2 or glm3."]
    assert checked(modes, ("5", "glm", "glm4")) == ["--some 5,glm4 is unknown: choose glm, glm2 or glm3."]
