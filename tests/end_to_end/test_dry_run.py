"""`--dry_run`: says what a run would do and take, from shapes and records alone, and changes nothing."""

import json
import math
import re
import shutil
import sys
from functools import partial

import pytest
import torch

from data.collate import collate, group_by_prompt
from data.formats import Columns
from data.loading import plan_epoch
from data.mixing import MixedDataset, mix
from data.sources import Source, read_rows, scan_rows
from data.tokenize import TokenizedDataset, tokenize_file
from doctor.dry_run import Machine, dry_run
from errors import UserError
from memory.available import memory_of_rank
from memory.checkpointing import SAFE_SHARE
from methods import METHODS
from modes import MODES
from modes.directory import read_base
from options.train import parse_train
from options.train import train_options as options_of_train
from tests.launch import GOLDEN, flags, fork, start, train_options
from texts import counted
from training.command import Command
from training.datasets import Encoder
from training.ds_config import DeepSpeedSetup, find_ds_file, fit_buckets, read_ds_file, resolve
from training.shapes import read_shapes

OF_METHOD = {
    "lora": {"lora_dim": 8, "lora_alpha": 16, "lora_dropout": 0.1},
    "freeze": {"freeze_module_name": "layers.3."},
    "ptuning": {"pre_seq_len": 4},
    "all": {},
}
SAMPLES = GOLDEN / "samples.jsonl"


def run(mode="glm2", train_type="lora", *, ranks=1, on_gpu=False, memory=2**40, layers=0, **changes):
    """dry_run as train.py calls it, on any number of ranks, without a process of its own.

    layers: to recompute; 0 or a value of --checkpoint_layers. changes: flags, with a list for several files.
    """
    given = {
        "model_name_or_path": GOLDEN / mode / "base", "train_type": train_type, "train_path": SAMPLES,
        "max_len": 256, "max_src_len": 160, "per_device_train_batch_size": 2, "num_train_epochs": 2, "seed": 1,
        "dry_run": True, **OF_METHOD[train_type], **changes,
    }  # fmt: skip
    given |= {"gradient_checkpointing": True, "checkpoint_layers": layers} if layers else {}
    given = {name: ",".join(map(str, one)) if isinstance(one, list) else one for name, one in given.items()}
    options = options_of_train(**given)
    if options.safety.gpu_memory is not None:
        memory = memory_of_rank(1, options.safety.gpu_memory)
    base = read_base(options.model.model_name_or_path)
    shapes = read_shapes(base, options.method)
    config, precision, _ = resolve(
        read_ds_file(find_ds_file(options.compute.ds_file)),
        micro_batch_size=options.steps.per_device_train_batch_size,
        gradient_accumulation_steps=options.steps.gradient_accumulation_steps, world_size=ranks, precision="auto",
        explicit=options.given, max_grad_norm=1.0, device_type="cuda" if on_gpu else "cpu", bf16_supported=on_gpu,
    )  # fmt: skip
    ds = DeepSpeedSetup(fit_buckets(config, shapes.trained), precision)
    command = Command(options, base, ds, shapes, attention="sdpa", first_block=0, start=None, notes=())
    dry_run(command, Encoder(base, options.data, options.columns), Machine(ranks, memory, on_gpu))


def write(path, count, extra=""):
    """A file of `count` good records, and a line of text behind them."""
    record = json.dumps({"instruction": "抽取三元组。", "input": "水泵漏水。" * 9, "output": "水泵_部件故障_漏水"})
    path.write_text((record + "\n") * count + extra, encoding="utf-8")
    return path


def peak(text):
    """MiB per rank."""
    ((size, unit),) = re.findall(r"^Peak tensor memory per (?:GPU|rank): ([\d.]+) ([GM])iB", text, re.MULTILINE)
    return float(size) * (1024 if unit == "G" else 1)


@pytest.mark.parametrize("train_type", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_says_data_steps_and_memory(mode, train_type, capsys):
    run(mode, train_type)
    text = capsys.readouterr().out
    assert f"{GOLDEN / 'samples.jsonl'}: 5 records, 0 of them with a problem" in text
    assert "tokens before truncation" in text and "rows by length" in text and "supervised (" in text
    assert "optimizer steps: 6 (3 per epoch), 0 of them warm-up" in text and "tokens per step: " in text
    assert "memory, estimated for 1 CPU rank, fp32, ZeRO-2, 0 layers recomputed; " in text
    assert re.search(r"largest micro-batch: 2 samples, \d+ tokens, \d+ supervised", text)
    assert 1 < peak(text) < 100 and "weights " in text and ", save " in text


def test_more_ranks_offload_and_checkpointing_are_followed(capsys):
    run(train_type="all", ranks=2, ds_file="ds_zero3_offload.json", layers=9, on_gpu=True)
    text = capsys.readouterr().out
    assert "for 2 GPU ranks, bf16, ZeRO-3, optimizer offloaded, weights offloaded, 4 layers recomputed" in text
    assert "layers recomputed in backward: 4 of 4 (--checkpoint_layers 9)" in text
    assert "samples per step: 4 (2 ranks × 2 × 1 accumulated)" in text and "Offloaded to RAM per rank: " in text
    run(per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=4)
    text = capsys.readouterr().out
    assert "optimizer steps: 4 (3 per epoch)" in text and "largest micro-batch: 1 sample, " in text


def test_is_skip_leaves_out_what_is_cut(tmp_path, capsys):
    path = write(tmp_path / "records.json", 3, '{"instruction": "1", "input": "2", "output": "3"}\n')
    run(train_path=path, max_len=24, is_skip=True)
    text = capsys.readouterr().out
    assert "truncate 3 of 4 samples" in text and "optimizer steps: 2 (1 per epoch)" in text
    with pytest.raises(UserError, match="--is_skip dropped all 3 samples"):
        run(train_path=write(path, 3), max_len=24, is_skip=True)
    capsys.readouterr()
    short = write(tmp_path / "short.json", 0, '{"instruction": "1", "input": "2", "output": "3"}\n')
    run(train_path=[path, short], max_len=24, is_skip=True)
    assert "optimizer steps: 2 (1 per epoch)" in capsys.readouterr().out


def test_all_files_are_read_and_the_first_problem_is_named(tmp_path, capsys):
    good, bad = write(tmp_path / "good.json", 3), write(tmp_path / "bad.json", 2, "{\n[]\n")
    with pytest.raises(UserError, match=rf"^records that cannot be used: 2; the first: {bad}:3: "):
        run(train_path=good, dev_path=bad)
    text = capsys.readouterr().out
    assert f"{good}: 3 records, 0" in text and f"{bad}: 4 records, 2" in text and f"{bad}:4: " in text
    assert "optimizer steps: " in text  # of the training file, which is whole
    with pytest.raises(UserError, match=r"^records .*: 2; .*bad.json:1: "):
        run(train_path=write(bad, 0, "{\n[]\n"))
    assert "optimizer steps" not in capsys.readouterr().out


@pytest.mark.parametrize("ranks", [1, 2])
def test_suggestion_can_be_typed_and_fits(ranks, capsys):
    run(train_type="all", on_gpu=True, ranks=ranks, per_device_train_batch_size=4)
    wanted = 0.8 * peak(capsys.readouterr().out)  # something must change
    card = (1 + wanted / 1024) / 0.97  # GiB
    run(train_type="all", on_gpu=True, ranks=ranks, per_device_train_batch_size=4, gpu_memory=card)
    start = f"fits on {ranks} × {card:g} GiB"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(start)]
    suggested, problems = parse_train(line.rsplit(": ", 1)[1].split())
    assert problems == []
    batch_size, accumulation = (
        suggested.steps.per_device_train_batch_size, suggested.steps.gradient_accumulation_steps
    )  # fmt: skip
    assert batch_size * accumulation == 4
    layers = suggested.compute.checkpoint_layers if suggested.compute.gradient_checkpointing else 0
    run(train_type="all", on_gpu=True, ranks=ranks, ds_file=suggested.compute.ds_file, layers=layers,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation)  # fmt: skip
    assert ("gradient_checkpointing" in suggested.given) == ("checkpoint_layers" in suggested.given)
    assert peak(capsys.readouterr().out) <= wanted


def test_as_many_layers_are_recomputed_as_memory_asks_for(tmp_path, capsys):
    settings = {"train_path": write(tmp_path / "train.json", 64), "per_device_train_batch_size": 64}
    peaks = []
    for layers in range(5):
        run(**settings, layers=layers)
        text = capsys.readouterr().out
        peaks.append(peak(text))
        assert f"ZeRO-2, {counted(layers, 'layer')} recomputed; " in text
        assert (f"layers recomputed in backward: {layers} of 4 (--checkpoint_layers {layers})" in text) == (layers > 0)
    assert peaks[:4] == sorted(peaks[:4], reverse=True) and peaks[4] < 0.6 * peaks[0]
    for layers, most in ((0, peaks[0] + 1), (2, (peaks[1] + peaks[2]) / 2), (4, peaks[4] / 2)):
        run(**settings, layers="auto", memory=int(most / SAFE_SHARE * 2**20))
        text = capsys.readouterr().out
        assert f"layers recomputed in backward: {layers} of 4 (--checkpoint_layers auto: estimated peak " in text
        assert f"budget {most / 1024:.2f} GiB (80% of usable memory)" in text and peak(text) == peaks[layers]


def test_records_to_replay_take_memory_too(tmp_path, capsys):
    short = write(tmp_path / "short.json", 0, '{"instruction": "1", "input": "2", "output": "3"}\n')
    run(train_path=short)
    alone = peak(capsys.readouterr().out)
    run(train_path=short, replay_path=write(tmp_path / "long.json", 4))
    assert peak(capsys.readouterr().out) > alone


@pytest.mark.parametrize("replay_ratio", [0.3, 1.5])  # of 6 records to replay: some, and all with some repeatedly
def test_plan_is_that_of_the_run_with_records_to_replay(replay_ratio, tmp_path, capsys, monkeypatch):
    def file_of(name, count, start):
        lines = [json.dumps({"instruction": "1", "input": "2 " * (start + i), "output": "3"}) for i in range(count)]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    paths = file_of("task.json", 8, 1), file_of("a.json", 2, 20), file_of("b.json", 4, 40)
    mode = MODES["glm3"]
    tokenizer = mode.tokenizer_class.from_pretrained(GOLDEN / "glm3" / "base")
    encode = partial(mode.encode_arrays, tokenizer, max_len=256, max_src_len=160, loss_on="all")
    rows = {"roles": mode.roles, "apart": mode.one_answer}

    def tokenize(path):
        read = lambda _, tally: read_rows(Source(str(path), Columns()), **rows, tally=tally)  # noqa: E731
        return TokenizedDataset(tokenize_file(path, encode, tmp_path / "cache", key="k", read=read), path)

    task, first, second = (tokenize(path) for path in paths)
    mixed = mix(task, MixedDataset([first, second]), replay_ratio, seed=1)
    plan = dict(epoch=1, seed=1, micro_batch_size=2, accumulation=1, world_size=1, rank=0, row_length=None)
    want, made = plan_epoch(mixed.lengths, mixed.supervised, **plan), []
    monkeypatch.setattr("doctor.dry_run.plan_epoch", lambda *a, **k: made.append(plan_epoch(*a, **k)) or made[0])
    flags_of_data = {"train_path": paths[0], "replay_path": [*paths[1:]], "replay_ratio": replay_ratio}
    run("glm3", "freeze", **flags_of_data, cache_frozen_features=True)
    text = capsys.readouterr().out
    assert made == [want] and f"({len(want)} per epoch)" in text
    assert f"--cache_frozen_features, on disk: {int(mixed.lengths.sum()):,} tokens" in text
    again = sum(
        (len(members) - 1) * shared
        for step in want
        for samples in step.micro_batches
        if len(samples) > 1
        for members, shared in group_by_prompt([mixed[i] for i in samples])
    )
    assert again and f"--share_prompts: {again:,} of " in text


@pytest.mark.parametrize("mode", MODES)
def test_tokens_that_prompts_share_are_counted(mode, tmp_path, capsys, monkeypatch):
    extra = '{"instruction": "1", "input": "2", "output": "3"}\n'
    path = write(tmp_path / "train.json", 7, extra)
    run(mode, train_path=path, per_device_train_batch_size=4)
    text = capsys.readouterr().out
    if mode == "glm":  # whose prompts see themselves both ways
        assert "--share_prompts" not in text
        return
    config = MODES[mode].config_class.from_pretrained(GOLDEN / mode / "base")
    tokenizer = MODES[mode].tokenizer_class.from_pretrained(GOLDEN / mode / "base")
    records = list(scan_rows(Source(str(path), Columns()), roles=MODES[mode].roles, apart=MODES[mode].one_answer))
    rows = MODES[mode].encode_batch(tokenizer, [one for _, one in records], max_len=256, max_src_len=160, loss_on="all")
    lengths = [len(row["input_ids"]) for row in rows]
    plan = plan_epoch(lengths, [1] * 8, epoch=1, seed=1, micro_batch_size=4, accumulation=1, world_size=1, rank=0)
    computed = sum(
        collate([rows[i] for i in samples], partial(MODES[mode].layout, config))["input_ids"].numel()
        for step in plan
        for samples in step.micro_batches
    )
    saved = sum(lengths) - computed
    assert saved > sum(lengths) // 3
    said = f"--share_prompts: {saved:,} of {sum(lengths):,} tokens ({saved / sum(lengths):.1%}) are saved, because"
    assert said in text and "micro-batches)" not in text
    monkeypatch.setattr("doctor.sharing.LOOKED_AT", 1)
    run(mode, train_path=path, per_device_train_batch_size=4)
    assert "(in 1 of 2 micro-batches)" in capsys.readouterr().out
    run(mode, train_path=path, max_len=24, per_device_train_batch_size=4, is_skip=True)  # one sample is left
    run(mode, train_path=path, per_device_train_batch_size=1)
    run(mode, train_path=path, share_prompts=False)
    assert "--share_prompts" not in capsys.readouterr().out


def test_kept_features_have_a_size(capsys):
    run(train_type="freeze")
    text = capsys.readouterr().out
    tokens = re.search(r"rows: (\d+) tokens", text)[1]
    assert "--cache_frozen_features" not in text
    run(train_type="freeze", cache_frozen_features=True)
    text = capsys.readouterr().out
    assert re.search(rf"--cache_frozen_features, on disk: {tokens} tokens × 64 values × 4 bytes = 0.\d+ GB\n", text)


def test_nothing_fits(capsys):
    run(gpu_memory=1, on_gpu=True)
    text = capsys.readouterr().out
    assert (
        "nothing fits on 1 × 1 GiB (--gpu_memory): 0.0 GiB per GPU are usable, the smallest configuration needs "
        in text
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_from_the_command_line(mode, tmp_path):
    bad = write(tmp_path / "bad.json", 2, "{\n")
    options = train_options(mode, "lora", tmp_path / "out", dry_run=True, dev_path=bad, gpu_memory=24)
    done = fork(["train.py", *flags(options)])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: records that cannot be used: 1; the first: {bad}:3: " in done.stderr
    for part in ("tokens before truncation", "optimizer steps: 10", "per GPU: ", "fits on 1 × 24 GiB"):
        assert part in done.stdout
    assert list(tmp_path.iterdir()) == [bad]  # neither output_dir nor a cache of tokens


def sparse_weights(file, shapes):
    """A safetensors file of float16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


@pytest.mark.slow
def test_six_billion_parameters_are_not_loaded(tmp_path):
    base = shutil.copytree(GOLDEN / "glm2" / "base", tmp_path / "base", ignore=shutil.ignore_patterns("*.bin*"))
    config = MODES["glm2"].config_class(multi_query_group_num=2, add_qkv_bias=True)
    config.save_pretrained(base)
    with torch.device("meta"):
        model = MODES["glm2"].model_class(config)
    sparse_weights(base / "model.safetensors", {name: tuple(p.shape) for name, p in model.named_parameters()})
    options = train_options("glm2", "all", tmp_path / "out", dry_run=True, model_name_or_path=base, gpu_memory=48)
    measure = "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__'); "
    measure += "print('most RAM:', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = start([sys.executable, "-c", measure, "train.py", *flags(options)])
    assert done.returncode == 0, done.stderr
    held = 16 * sum(p.numel() for p in model.parameters()) / 2**20  # MiB: weights, gradients, float32 copy, moments
    assert held < peak(done.stdout) < 1.1 * held and "fits on 1 × 48 GiB" in done.stdout  # full fine-tuning, offloaded
    assert "--ds_file ds_zero2_offload.json" in done.stdout
    assert int(done.stdout.split("most RAM:")[1]) < 2 * 2**20  # KiB; the weights are 12 GB
