"""Ranks whose answers differ much in length, every parameter partitioned: the same losses as without ZeRO-3.

Under ZeRO-3 every call of a module with partitioned parameters is a collective. A rank whose data makes it call one
more often waits for the others forever, or takes another parameter for its own.
"""

import json

import pytest

from evaluation.sets import sample_indices
from tests import launch

LONG = 700  # tokens of an answer
TRAINED = [10, LONG, 10, LONG, 10, LONG, 10]  # seven on two ranks: one has none left in the last step of an epoch
EVALUATED, ANSWERED, SEED = 5, 1, 1234  # a rank has no prompt to answer
TOLERANCE = 1e-5  # relative, float32: the order of summation is all that differs
CASES = [
    ("glm", "all", {}),
    ("glm", "ptuning", {}),
    ("glm2", "lora", {"lora_module_name": "query_key_value,output_layer"}),
    ("glm2", "freeze", {"freeze_module_name": "layers.3.,output_layer"}),
    ("glm3", "all", {"gradient_checkpointing": True, "checkpoint_layers": 2}),
    ("glm3", "ptuning", {"prefix_layers": "embedding"}),
]


def write(path, lengths):
    """Records with answers of so many characters, of which each is a token."""
    letters = "春夏秋冬山水的一是不了在人有我他"
    with path.open("w", encoding="utf-8") as file:
        for i, length in enumerate(lengths):
            answer = "".join(letters[(i + k * (i + 3)) % len(letters)] for k in range(length))
            print(json.dumps({"instruction": f"写{i}", "output": answer}, ensure_ascii=False), file=file)
    return path


def write_dev(path):
    """Those that are answered have short answers: a long one would take LONG passes."""
    answered = sample_indices(EVALUATED, ANSWERED, SEED)
    return write(path, [8 + i if i in answered else LONG for i in range(EVALUATED)])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "train_type", "changes"), CASES)
def test_ranks_with_answers_of_10_and_700_tokens(mode, train_type, changes, tmp_path):
    train_path, dev_path = write(tmp_path / "train.jsonl", TRAINED), write_dev(tmp_path / "dev.jsonl")

    def run(name, num_ranks, **more):
        output = tmp_path / name
        options = launch.train_options(
            mode, train_type, output, train_path=train_path, dev_path=dev_path, max_len=LONG + 60, max_src_len=40,
            learning_rate=1e-3, num_train_epochs=1, eval_metric="rougeL", eval_samples=ANSWERED, seed=SEED,
            **changes, **more,
        )  # fmt: skip
        launch.train(options, num_ranks, timeout=150)
        rows = [json.loads(line) for line in (output / "evaluation.jsonl").read_text().splitlines()]
        return launch.losses(output), [(row["dev_loss"], row["rougeL"]) for row in rows]

    # the dropout of P-Tuning differs between ranks
    expected = run("zero2", 2) if train_type == "ptuning" else run("one rank", 1, gradient_accumulation_steps=2)
    found = run("zero3", 2, ds_file="ds_zero3_no_offload.json")
    assert len(found[0]) == 4 and len(found[1]) == 1
    for ours, right in zip(found, expected, strict=True):
        for one, other in zip(ours, right, strict=True):
            assert one == pytest.approx(other, rel=TOLERANCE)
