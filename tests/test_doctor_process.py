"""doctor/process.py and runs/examiner.py: the same problems, steps and memory as --dry_run, and a data preview."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unicodedata import normalize

import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from doctor import process
from doctor.dry_run import Machine, dry_run
from doctor.process import Reader, check_run, preview
from errors import UserError
from options.fields import located
from options.train import TRAIN, parse_train
from runs.places import Root
from tests.golden import tokenizer
from tests.launch import GOLDEN, REPOSITORY, environment, flags, wait_for
from training.check import check
from training.datasets import Encoder
from web.app import answer_errors
from web.examiner import router

SAMPLES = GOLDEN / "samples.jsonl"
RECORD = json.dumps({"instruction": "抽取三元组。", "input": "水泵漏水。", "output": "水泵_部件故障_漏水"})


def argv_of(tmp_path, mode="glm3", **changes):
    values = {
        "model_name_or_path": GOLDEN / mode / "base",
        "train_path": SAMPLES,
        "output_dir": tmp_path / "out",
        "data_cache_dir": tmp_path / "cache",
        "per_device_train_batch_size": 2,
        **changes,
    }
    return flags({name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("gpu_memory", [None, 1.01, 24])
def test_plan_and_memory_are_those_of_dry_run(ranks, gpu_memory, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    argv = argv_of(tmp_path, **{"dry_run": True, "gpu_memory": gpu_memory} if gpu_memory else {})
    answer = check_run(argv, Reader())
    command = check(*parse_train(argv))
    dry_run(command, Encoder(command.base, command.options.data, command.options.columns), Machine.of(command))
    printed = capsys.readouterr().out
    assert answer["problems"] == [] and answer["notes"] == list(command.notes) and not answer["bounded"]
    assert f"({ranks} rank" in answer["plan"] and answer["plan"] in printed
    lines = answer["memory"]["lines"]
    assert lines[1].startswith("Peak tensor memory per ") and printed.endswith("\n".join(lines) + "\n")
    assert answer["memory"]["fits"] is (None if gpu_memory is None else gpu_memory == 24)
    words = answer["memory"]["flags"]
    assert (gpu_memory is None) == (words == [])
    assert parse_train(words)[1] == [] and "ZeRO-2, 0 layers recomputed" in lines[0]
    assert not (tmp_path / "out").exists()


def test_all_problems_at_once_as_from_the_command_line(tmp_path):
    argv = argv_of(
        tmp_path, train_path="absent.json", dev_path="gone.json", lora_module_name="nothing", max_len=3, output_dir=None
    )
    answer = check_run(argv, Reader())
    with pytest.raises(UserError) as raised:
        check(*parse_train(argv))
    assert answer["problems"] == [("", sentence) for sentence in raised.value.sentences]
    named = {problem["field"] for problem in located(TRAIN, raised.value.sentences)}
    assert named == {"train_path", "dev_path", "lora_module_name", "max_len", "output_dir"}


def test_records_with_problems_are_named_at_their_flag(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(f"{RECORD}\n{{\n[]\n")
    answer = check_run(argv_of(tmp_path, dev_path=bad), Reader())
    ((flag, sentence),) = answer["problems"]
    assert flag == "dev_path" and f"records that cannot be used: 2; the first: {bad}:2: " in sentence
    assert answer["plan"].startswith("optimizer steps: 3")
    (file,) = preview(argv_of(tmp_path, train_path=bad), Reader())["files"]
    assert file["problem_count"] == 2 and file["problems"][0].startswith(f"{bad}:2: ") and file["rows"] == 1
    answer = check_run(argv_of(tmp_path, max_len=16, max_src_len=1, is_skip=True), Reader())
    assert "--is_skip dropped all 5 samples" in answer["problems"][0][1]


@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_preview_shows_what_is_supervised(mode, tmp_path):
    answer = preview(argv_of(tmp_path, mode, output_dir=None, learning_rate="-3"), Reader())
    assert answer["problems"] == [] and not answer["bounded"]
    (file,) = answer["files"]
    assert file["flag"] == "train_path" and file["path"] == str(SAMPLES) and file["records"] == file["rows"] == 5
    assert sum(count for _, _, count in file["histogram"]) == 5 and file["limits"]["nothing"]["max_src_len"] > 9
    tokens = tokenizer(mode)
    for sample in file["samples"]:
        prompt, answered = sample["parts"]
        assert not prompt["supervised"] and answered["supervised"] and sample["more"] == 0
        output = json.loads(SAMPLES.read_text().splitlines()[sample["line"] - 1])["output"]
        ids = [number for number, _ in answered["head"] + answered["tail"]]
        assert answered["length"] == len(ids) + answered["gap"]
        text = normalize("NFKC", tokens.decode(ids, skip_special_tokens=True))
        assert answered["gap"] or text.endswith(normalize("NFKC", output))
        assert all(isinstance(text, str) and text.isprintable() for _, text in prompt["head"])
    json.dumps(answer)


def test_a_preview_names_what_it_lacks(tmp_path):
    answer = preview(argv_of(tmp_path, train_path="absent.json"), Reader())
    assert "absent.json does not exist" in answer["problems"][0][1] and answer["files"] == []


def test_only_the_first_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "MOST_ROWS", 3)
    path = tmp_path / "many.json"
    path.write_text(f"{RECORD}\n" * 3 + "broken\n" * 9)
    answer = check_run(argv_of(tmp_path, train_path=path, max_len=9999), Reader())
    assert answer["bounded"] == 3 and answer["problems"] == [] and answer["plan"].startswith("optimizer steps: 2 ")


def test_files_are_read_again_only_when_they_or_their_flags_change(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(RECORD)
    reader = Reader()
    rows = lambda **changes: preview(argv_of(tmp_path, train_path=path, **changes), reader)["files"][0]  # noqa: E731
    assert rows()["rows"] == 1
    kept = reader._examined
    assert rows(learning_rate=0.5)["rows"] == 1 and reader._examined is kept
    assert rows(max_len=16)["truncated"] == 1 and reader._examined is not kept
    path.write_text(f"{RECORD}\n{RECORD}\n")
    assert rows()["rows"] == 2


@pytest.mark.slow
def test_it_ends_with_its_input():
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "doctor.process"],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert ended.returncode == 0 and time.monotonic() - begun < 60


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of the endpoints with a root that has a base and records."""
    root = tmp_path_factory.mktemp("root").resolve()
    (root / "base").mkdir()
    for path in (GOLDEN / "glm3" / "base").iterdir():
        (root / "base" / path.name).write_bytes(path.read_bytes())
    (root / "train.jsonl").write_bytes(SAMPLES.read_bytes())
    app = FastAPI()
    app.include_router(router(Root(root)))
    answer_errors(app)
    with TestClient(app) as client:
        yield client


VALUES = {"model_name_or_path": "base", "train_path": "train.jsonl", "output_dir": "out"}


def test_flags_are_checked_without_the_doctor(client):
    answer = client.post("/api/check", json={"values": {**VALUES, "max_len": "x"}, "launch": {"ranks": 2}}).json()
    assert answer["problems"][0]["field"] == "max_len" and "--num_gpus 2 train.py" in answer["command"]
    assert "output_dir: " in answer["yaml"] and answer["notes"] == []
    assert not doctors()
    for path in ("/api/examine", "/api/preview"):
        answer = client.post(path, json={"values": {**VALUES, "train_path": "/etc/passwd"}}).json()
        assert [problem["field"] for problem in answer["problems"]] == ["train_path"]
    assert not doctors()
    assert client.post("/api/check", json={"values": {"config": "x"}}).status_code == 400
    assert client.post("/api/check", json=[]).status_code == 400


def doctors():
    return [child for child in psutil.Process().children() if "doctor.process" in child.cmdline()]


@pytest.mark.slow
def test_the_doctor_is_asked_restarted_and_outrun(client):
    body = {"values": VALUES, "launch": {"ranks": 2}, "gpu_memory": "24", "page": "a"}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.post, "/api/examine", json=body)]
        wait_for(doctors, answers[0].done)  # it loads torch first, and all others wait for it
        answers += [pool.submit(client.post, "/api/examine", json=body) for _ in range(2)]
        other = pool.submit(client.post, "/api/preview", json={**body, "page": "b"})
        codes = sorted(answer.result().status_code for answer in answers)
        assert codes == [200, 200, 409] and other.result().json()["files"][0]["rows"] == 5
    (process,) = doctors()
    answer = client.post("/api/examine", json=body).json()
    assert answer["memory"]["fits"] is True and "2 ranks" in answer["plan"] and answer["problems"] == []
    process.kill()
    process.wait()
    wrong = {"values": {**VALUES, "output_dir": "/etc", "dev_path": "absent.json"}, "gpu_memory": "much"}
    answer = client.post("/api/examine", json=wrong).json()
    assert [problem["field"] for problem in answer["problems"]] == ["output_dir", "gpu_memory", "dev_path"]
    assert "outside" in answer["problems"][0]["text"] and doctors()[0].pid != process.pid
    for path in ("/api/examine", "/api/preview"):
        assert client.post(path, json={"values": {"x": "y"}}).status_code == 400
    doctors()[0].kill()
