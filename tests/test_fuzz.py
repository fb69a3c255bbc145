"""20,000 random inputs: whatever a user's file or command line holds, the answer is a value or one sentence.

The same cases in every run (derandomized), with a new small file for each. Numbers of cases are in CASES.
"""

import contextlib
import gc
import json
import math

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from checkpoints.record import read_record
from conversation import ROLES, answers_apart, as_read, asked, messages_of, reference, unsuited
from data.formats import FORMATS, HISTORY_KEYS, MEDIA_KEYS, SYSTEM_KEYS, TOOLS_KEYS, recognize
from data.messages import PAIR_KEYS, ROLE_NAMES
from data.records import read_records, scan_records
from data.tally import Tally
from errors import UserError
from flags import flags_of
from modes import MODES
from options.train import TRAIN, notes_on, parse_train
from tests.sentences import check_sentence
from training.check import collected
from training.ds_config import read_ds_file, resolve, resolve_for_run
from training.places import check_places

CASES = {  # most where a case takes the least time
    "bytes": 5000,
    "almost JSON": 4000,
    "records": 3000,
    "options": 1500,
    "ds bytes": 4000,
    "ds values": 1500,
    "checkpoint": 1000,
}


def cases(name):
    """Settings of a fuzz test: so many cases, always the same ones, nothing kept on disk."""
    return settings(
        max_examples=CASES[name],
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def no_cyclic_gc():
    """Hypothesis has a callback in the cyclic GC, which fails where a collection starts at the recursion limit."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all cases."""
    return tmp_path_factory.mktemp("fuzz") / "records.json"


def check_records(path, require_output):
    """Both readers end in records that keep the contract, or in sentences; and they agree."""
    tally = Tally()
    try:
        scanned = list(scan_records(path, require_output=require_output, tally=tally))
    except UserError as error:  # it is no file of records at all
        check_sentence(error, path)
        return
    assert len(scanned) == max(tally.read, 1)
    assert sum(not isinstance(found, UserError) for _, found in scanned) == tally.read - tally.refused
    assert sum(tally.formats.values()) == tally.read - tally.refused
    for line, found in scanned:
        if isinstance(found, UserError):
            check_sentence(found, path)
            assert line == 0 or f"{path}:{line}" in str(found)
            continue
        assert line > 0
        check_conversation(found, require_output)
        json.dumps(found, ensure_ascii=False).encode()  # as predictions are written
    wrong = [str(found) for _, found in scanned if isinstance(found, UserError)]
    try:
        assert list(read_records(path, require_output=require_output)) == scanned
        assert not wrong
    except UserError as error:
        assert str(error) == wrong[0]


def check_conversation(record, require_output):
    """What modes and evaluation rely on."""
    messages = messages_of(record)
    assert all(message["role"] in ROLES and isinstance(message["content"], str) for message in messages)
    assert all(isinstance(message.get("metadata", ""), str) for message in messages)
    assert isinstance(asked(record), str)
    assert isinstance(reference(MODES["glm3"].written(record)), str) or not require_output
    assert all(messages_of(part)[-1]["role"] == "assistant" for part in answers_apart(record))
    assert unsuited(record, ROLES) is None
    chosen = recognize(as_read(record))
    assert chosen.is_complete(as_read(record)) or not any(one.is_complete(as_read(record)) for one in FORMATS)


BYTES = st.sampled_from(
    [b'{"', b'"}', b"\xff", b"\xef\xbb\xbf", b"[", b"]", b"\n", b"\0", b'"instruction"', b":", b"\r", b" ", b"\xe6\xb0"]
)


@given(st.binary(max_size=30) | st.lists(BYTES, max_size=8).map(b"".join), st.booleans())
@cases("bytes")
def test_records_of_bytes(path, content, require_output):
    path.write_bytes(content)
    check_records(path, require_output)


PIECES = st.sampled_from(
    [
        *(
            '{"instruction": "a", "output": "b"}',
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\n",
            "\r\n",
            '"',
            "\\",
            "\\u12",
            "\\ud83d",
        ),
        *(
            '"instruction"',
            '"output"',
            '"input"',
            "null",
            "NaN",
            "-",
            "--",
            "1e999",
            "true",
            "'",
            "\ufeff",
            "\u2028",
            "\x85",
            "水",
        ),
        *("\x00", "\ud83d", "9" * 5000, "[" * 3000, '{"a":' * 1500),
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.booleans())
@cases("almost JSON")
def test_records_of_almost_json(path, text, require_output):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_records(path, require_output)


TEXTS = st.sampled_from(
    ["", "a", "水泵", "\n", "\x00", "\u2028", "\ud800", "\udfff", "😀", "x" * 100, "input", "\\", '"', "\x7f"]
)
SCALARS = TEXTS | st.sampled_from([None, True, False, 0, -1, 1.5, 10**40, float("nan"), float("inf"), 1e-320])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
CALLS = st.fixed_dictionaries(
    {"name": TEXTS | JSON, "arguments": st.just('{"a": 1}') | st.dictionaries(st.just("a"), JSON) | JSON}
)
MESSAGES = st.dictionaries(
    st.sampled_from(["role", "from", "content", "value", "metadata", "tools", "tool_calls", "name", "observation"]),
    st.sampled_from([*ROLE_NAMES]) | TEXTS | JSON | st.lists(st.fixed_dictionaries({"function": CALLS}), max_size=2),
    max_size=4,
)
TURNS = st.sampled_from(["user", "assistant", "system", "tool"]).flatmap(
    lambda role: st.fixed_dictionaries({"role": st.just(role), "content": TEXTS})
)
OF_FORMATS = [key for one in FORMATS for key in (*one.question, *one.answer)]
KEYS = st.sampled_from([*OF_FORMATS, *SYSTEM_KEYS, *HISTORY_KEYS, *TOOLS_KEYS, *MEDIA_KEYS, "label", "text", "chosen"])
PAIRED = st.sampled_from(PAIR_KEYS).flatmap(lambda keys: st.fixed_dictionaries({key: TEXTS for key in keys}))
VALUES = TEXTS | JSON | st.lists(TURNS | MESSAGES | PAIRED, max_size=4) | st.lists(st.tuples(TEXTS, TEXTS), max_size=2)
# Two formats in one record, some of their keys with nothing under them.
TURNS_HELD = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
HELD = st.sampled_from(["q", " ", None, "", [], {}, 1, ["a", "b"], TURNS_HELD, TURNS_HELD[:1], [["q", "a"]], "[]"])
TWO_FORMATS = st.lists(st.sampled_from(FORMATS), min_size=2, max_size=2).flatmap(
    lambda two: st.fixed_dictionaries({key: HELD for one in two for key in (*one.question, *one.answer)})
)
RECORDS = st.dictionaries(KEYS | TEXTS, VALUES, max_size=5) | TWO_FORMATS
SEPARATORS = st.sampled_from(["\n", "\n\n", ",", ",\n", "\r\n", " ", "]\n["])


@given(st.lists(RECORDS | JSON, max_size=4), SEPARATORS, st.booleans(), st.booleans(), st.booleans())
@cases("records")
def test_records_of_json_values(path, values, separator, is_array, ascii_only, require_output):
    text = separator.join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
    path.write_bytes((f"[{text}]" if is_array else text).encode("utf-8", "surrogatepass"))
    check_records(path, require_output)


ODD = st.sampled_from(
    [
        *(
            "",
            " ",
            "-1",
            "0",
            "1",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "9" * 30,
            "9" * 5000,
            "0x10",
            "1_0",
            "٣",
            "½",
            "True",
            "none",
        ),
        *(
            "--",
            "-",
            "=",
            "--x=",
            "a,b",
            ",",
            ".",
            "..",
            "/",
            "/dev/null",
            "/proc/x",
            "x" * 300,
            "a\nb",
            "\x1b[1m",
            "\udcff",
        ),
        *("水", "%s", "{}", "@file", "auto", "\u2028", "ds_zero2_offload.json", "ds_zero3_no_offload.json"),
    ]
)
FLAG = st.sampled_from([*TRAIN.flags.values()]).flatmap(
    lambda flag: (ODD | st.sampled_from(flag.choices or ("1",)).map(str)).flatmap(
        lambda value: st.sampled_from(
            [[f"--{flag.name}", value], [f"--{flag.name}={value}"], [f"{flag.name}={value}"], [f"--{flag.name}"]]
        )
    )
)


@given(
    arguments=st.lists(FLAG | ODD.map(lambda value: [value]), max_size=4), good=st.booleans(), help_=st.integers(0, 99)
)
@cases("options")
def test_options(path, capsys, monkeypatch, arguments, good, help_):
    """As rank 1 checks: it tries no directory, which rank 0 does in the tests of bad options.

    What is checked further on gets along with values that are wrong.
    """
    path.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.chdir(path.parent)
    argv = [argument for group in arguments for argument in group]
    if good:
        argv = ["--model_name_or_path", str(path.parent), "--train_path", str(path), "--output_dir", "out", *argv]
    if help_ == 0:
        argv.append("--help")
    try:
        options, problems = parse_train(argv)
    except UserError as error:
        problems = [*error.sentences]
        assert problems
    except SystemExit as ended:
        assert ended.code == 0 and {"--help", "-h"} & set(argv)
        assert "usage: " in capsys.readouterr().out
        return
    else:
        problems += check_places(options, rank=1)
        with collected(problems):
            ds, notes = resolve_for_run(options, 64)
            problems += options.method.conflicts(ds.stage, "x.json")
    for sentence in problems:
        check_sentence(sentence)
    if not problems:
        assert all(isinstance(note, str) for note in [*notes, *notes_on(options)])
        check_values_in_force(options)
    assert not (path.parent / "out").exists()


def check_values_in_force(options):
    """Every value is of its flag's kind, one of its choices and within its bounds."""
    for section in options.sections:
        for name, flag in flags_of(type(section)).items():
            value = vars(section)[name]
            if value is None:
                assert flag.default is None, name
            elif flag.choices:
                assert value in flag.choices, name
            elif flag.is_number and not flag.parse:
                assert isinstance(value, int | flag.kind) and not isinstance(value, bool) and math.isfinite(value), name
                assert flag.ignored or (flag.at_least <= value <= flag.at_most and flag.above < value < flag.below)
                assert isinstance(value, float) or abs(value) < 2**33, name
            elif not flag.parse:
                assert isinstance(value, flag.kind), name


DS_VALUES = SCALARS | st.sampled_from(
    [
        *(
            "auto",
            "cpu",
            "nvme",
            "none",
            "disk",
            1,
            2,
            3,
            3.0,
            5e8,
            1e30,
            [],
            {},
            ["auto"],
            {"device": "cpu"},
            {"device": ["cpu"]},
        ),
        *(
            {"device": "auto"},
            {"enabled": True},
            {"enabled": "auto"},
            {"a": {"b": "auto"}},
            {"\r": None},
            {"\ud800": ["\n"]},
        ),
    ]
)


def section(*keys, values=DS_VALUES):
    return st.dictionaries(st.sampled_from(keys), values, max_size=4)


OFFLOAD = section(
    "device", "nvme_path", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "ratio", "fast_init"
)
ZERO = section(
    "stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter", "reduce_bucket_size",
    "contiguous_gradients", "round_robin_gradients", "sub_group_size", "stage3_prefetch_bucket_size", "cpu_offload",
    "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_gather_16bit_weights_on_model_save", "zero_hpz_partition_size", "zero_quantized_weights",
)  # fmt: skip
STAGED = st.builds(
    lambda zero, stage, more: {**zero, "stage": stage, **more},
    ZERO,
    st.sampled_from([0, 1, 2, 3]),
    st.dictionaries(st.sampled_from(["offload_optimizer", "offload_param"]), OFFLOAD | DS_VALUES, max_size=2),
)
HALF = section("enabled", "loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale")
TOP = section(
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *(
        "optimizer",
        "scheduler",
        "steps_per_print",
        "wall_clock_breakdown",
        "communication_data_type",
        "prescale_gradients",
    ),
    *("activation_checkpointing", "flops_profiler", "comms_logger", "tensorboard", "aio", "data_types", "checkpoint"),
    *("compile", "zero_allow_untested_optimizer", "elasticity", "sparse_attention", "tensor_parallel", "unheard_of"),
)
DS_FILES = st.builds(
    lambda top, more: {**top, **more},
    TOP,
    st.fixed_dictionaries(
        {},
        optional={"zero_optimization": STAGED | ZERO | DS_VALUES, "fp16": HALF | DS_VALUES, "bf16": HALF | DS_VALUES},
    ),
)


@given(
    DS_FILES,
    st.sampled_from([(1, 1, 1), (4, 2, 8), (3, 5, 2)]),
    st.sampled_from(["auto", "bf16", "fp16", "fp32"]),
    st.sampled_from([("cpu", False), ("cuda", False), ("cuda", True)]),
    st.sampled_from([frozenset(), frozenset({"max_grad_norm"})]),
    st.sampled_from([None, 64, 4096]),
)
@cases("ds values")
def test_ds_values(file_config, sizes, precision, device, explicit, hidden_size):
    micro_batch_size, accumulation, world_size = sizes
    before = json.dumps(file_config)
    try:
        config, precision, notes = resolve(
            file_config,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=accumulation,
            world_size=world_size,
            precision=precision,
            explicit=explicit,
            max_grad_norm=1.0,
            device_type=device[0],
            bf16_supported=device[1],
            hidden_size=hidden_size,
        )
    except UserError as error:
        for sentence in error.sentences:
            check_sentence(sentence)
            assert "--ds_file" in sentence or "--precision" in sentence
    else:
        assert all(isinstance(note, str) for note in notes)
        assert not autos(config)
        assert config["train_micro_batch_size_per_gpu"] == micro_batch_size
        assert config["train_batch_size"] == micro_batch_size * accumulation * world_size
        assert config["zero_optimization"]["stage"] in (1, 2, 3)
        enabled = [key for key in ("fp16", "bf16") if config.get(key, {}).get("enabled")]
        assert enabled == ([] if precision == "fp32" else [precision])
    assert json.dumps(file_config) == before


def autos(value):
    """Whether "auto" is a value anywhere."""
    if isinstance(value, dict):
        value = list(value.values())
    return any(autos(item) for item in value) if isinstance(value, list) else value == "auto"


@given(
    st.binary(max_size=60)
    | st.lists(PIECES, max_size=8).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
)
@cases("ds bytes")
def test_ds_bytes(path, content):
    path.write_bytes(content)
    try:
        assert isinstance(read_ds_file(path), dict)
    except UserError as error:
        check_sentence(error, path)


CHECKPOINTS = st.dictionaries(
    st.sampled_from(["format", "mode", "train_type", "method", "base", "precision", "files", "options"]) | TEXTS,
    st.sampled_from([0, 1, 2, True, "glm2", "lora", {}, "fp32"]) | JSON,
    max_size=8,
)


@given(
    (CHECKPOINTS | JSON).map(json.dumps)
    | st.lists(PIECES.filter(lambda piece: len(piece) < 3000), max_size=8).map("".join)
)
@example('{"format": 1, "mode": "glm2", "train_type": "lora", "method": {}, "base": {}, "precision": "fp32"}')
@cases("checkpoint")
def test_checkpoint_records(path, text):
    record_file = path.with_name("checkpoint.json")
    record_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(UserError):
        try:
            assert read_record(path.parent)["format"] == 1
        except UserError as error:
            check_sentence(error, record_file)
            raise


def test_checkpoint_record_of_brackets(path):
    path.with_name("checkpoint.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        read_record(path.parent)


def test_there_are_enough_cases():
    assert sum(CASES.values()) >= 20_000
