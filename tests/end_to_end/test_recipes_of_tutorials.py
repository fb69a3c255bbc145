"""docs/coming_from/: the pages in both languages, and their commands on the tiny bases, from data to a merged model."""

import json
import math
import re

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from modes import MODES
from scripts import convert_data
from tests import launch
from tests.pages import PROGRAMS, check_command, code_blocks, commands, headings, prose

PAGES = launch.REPOSITORY / "docs" / "coming_from"
NAMES = ("context_target", "prompt_response", "alpaca", "registry")
FAULTS = [("水泵", "渗漏"), ("叶轮", "卡滞"), ("保险丝", "烧坏"), ("支架", "变形"), ("油封", "滴油"), ("转子", "异响")]


def write(path, records):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def home(tmp_path):
    """A directory as a reader has it: the programs, the shipped data, and bases under their names."""
    for name in ("train.py", "predict.py", "merge_lora.py", "scripts", "data"):
        (tmp_path / name).symlink_to(launch.REPOSITORY / name)
    for name, mode in (("ChatGLM-6B", "glm"), ("ChatGLM2-6B", "glm2"), ("ChatGLM3-6B", "glm3")):
        (tmp_path / name).symlink_to(launch.GOLDEN / mode / "base")
    return tmp_path


def play(home, name, program, *flags, number=0, replaced=None):
    """Run a page's command of a program, with further flags behind it and parts of words replaced; its output."""
    words = [words for words in commands(PAGES / f"{name}.md") if program in words][number]
    for old, new in (replaced or {}).items():
        words = [word.replace(old, new) for word in words]
    result = launch.fork([*words[words.index(program) :], *flags], cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def answer_of(printed):
    """What is printed, without DeepSpeed's lines about the machine."""
    return [line for line in printed.splitlines() if "real_accelerator.py" not in line]


def check_losses(output, steps):
    found = launch.losses(output)
    assert len(found) == steps and all(map(math.isfinite, found)) and found[-1] < found[0], found


def logits(model, mode):
    with safe_open(launch.GOLDEN / mode / "expected.safetensors", "pt") as golden, torch.no_grad():
        return model.eval()(input_ids=golden.get_tensor("padded.input_ids")).logits


def test_there_is_a_page_for_each_in_both_languages():
    expected = {f"{name}{language}.md" for name in NAMES for language in ("", ".zh-CN")}
    assert {path.name for path in PAGES.iterdir()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_say_the_same(name):
    english, chinese = PAGES / f"{name}.md", PAGES / f"{name}.zh-CN.md"
    assert headings(english) == headings(chinese) and code_blocks(english) == code_blocks(chinese)
    code = [set(re.findall(r"`([^`\n]+)`", prose(page))) for page in (english, chinese)]
    assert code[0] == code[1]
    links = [re.findall(r"\]\(([^)]+)\)", prose(page)) for page in (english, chinese)]
    assert links == [[chinese.name], [english.name]]


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_flags_exist(name):
    page = PAGES / f"{name}.md"
    programs = {**PROGRAMS, "scripts/convert_data.py": convert_data.CONVERT}
    for words in commands(page):
        (program,) = [program for program in programs if program in words]
        check_command(programs[program], words[words.index(program) + 1 :])
    known = {f"--{flag}" for program in programs.values() for flag in program.flags}
    assert set(re.findall(r"--\w+", page.read_text(encoding="utf-8"))) - known == {"--master_port"}


def of_two_tasks():
    """Records of triples and of classes, each prompt complete."""
    for part, fault in FAULTS:
        triple = json.dumps([{"subject": part, "predicate": "部件故障", "object": fault}], ensure_ascii=False)
        for question, answer in (("找出三元组", f"```json\n{triple}\n```"), ("哪一类", '["设备"]')):
            context = f"Instruction: 按要求回答。\nInput: {question}：\n\n{part}{fault}。\nAnswer: "
            yield {"context": context, "target": answer}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "output", "rate"), [(0, "output-tasks", 1e-2), (1, "output-prefix", 1e-1)])
def test_context_and_target(number, output, rate, home):
    records = list(of_two_tasks())
    write(home / "train.jsonl", records)
    write(home / "dev.jsonl", records[:4])
    write(home / "questions.jsonl", [{"context": record["context"]} for record in records[:4]])
    name, replaced, short = "context_target", {"output-tasks": output}, ["--max_new_tokens", "12"]
    flags = ["--learning_rate", rate, "--eval_step", "2", "--show_loss_step", "1"]
    printed = play(home, name, "train.py", *flags, number=number)
    assert "(3 per epoch)" in printed and "should say: " in printed
    check_losses(home / output, 6)
    rows = read(home / output / "evaluation.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 4, 6] and "triples_f1" in rows[0]
    scores = json.loads(play(home, name, "predict.py", *short, replaced=replaced).splitlines()[-1])
    assert scores.keys() == {"triples_precision", "triples_recall", "triples_f1", "json_valid"}
    answers = [record["prediction"] for record in read(home / "answers.jsonl")]
    play(home, name, "merge_lora.py", replaced=replaced)
    play(home, name, "predict.py", *short, number=1)
    assert [record["prediction"] for record in read(home / "replies.jsonl")] == answers


@pytest.mark.slow
def test_names_of_a_registry(home):
    name, short = "registry", ["--max_new_tokens", "12"]
    flags = ["--max_steps", "4", "--eval_samples", "4", "--learning_rate", "1e-2", "--show_loss_step", "1"]
    printed = play(home, name, "train.py", *flags)
    assert "samples/reviews_train.json, data/samples/chats.json: 840 samples" in printed
    check_losses(home / "output-names", 4)
    assert (home / "output-names" / "loss.png").stat().st_size > 1000
    scores = json.loads(play(home, name, "predict.py", *short).splitlines()[-1])
    assert scores.keys() == {"label_accuracy", "label_macro_f1"} and len(read(home / "answers.jsonl")) == 160
    play(home, name, "merge_lora.py")
    merged = play(home, name, "predict.py", *short, number=1)
    best = play(home, name, "predict.py", *short, number=1, replaced={"chatglm3-names": "output-names/best"})
    assert answer_of(merged) == answer_of(best)


@pytest.mark.slow
def test_prompt_and_response(home):
    records = [{"prompt": f"{part}{fault}怎么办？", "response": f"先停机，再检查{part}。"} for part, fault in FAULTS]
    write(home / "train.jsonl", records)
    write(home / "dev.jsonl", records[:2])
    name, short = "prompt_response", ["--max_new_tokens", "12"]
    printed = play(home, name, "train.py", "--num_train_epochs", "6", "--show_loss_step", "1")
    assert "1 per epoch" in printed
    check_losses(home / "output-few", 6)
    assert len(read(home / "output-few" / "evaluation.jsonl")) == 6
    scores = json.loads(play(home, name, "predict.py", *short).splitlines()[-1])
    assert scores.keys() == {"rouge1", "rouge2", "rougeL", "bleu4"}
    play(home, name, "merge_lora.py")
    merged = play(home, name, "predict.py", *short, number=1)
    best = play(home, name, "predict.py", *short, number=1, replaced={"chatglm2-few": "output-few/best"})
    assert answer_of(merged) == answer_of(best)


@pytest.mark.slow
def test_alpaca_on_an_int8_base(home):
    pytest.importorskip("bitsandbytes")
    records = [
        {"instruction": f"{part}{fault}怎么办？", "input": "", "output": f"检查{part}。"} for part, fault in FAULTS
    ]
    records += [{**record, "input": "请用一句话回答。"} for record in records]
    (home / "alpaca.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    name, short, replaced = "alpaca", ["--max_new_tokens", "12"], {"epoch-6-step-52000": "epoch-3-step-6"}
    said = play(home, name, "scripts/convert_data.py")
    assert said == "alpaca.json: format instruction/output\n12 records: alpaca.jsonl\n"
    lines = read(home / "alpaca.jsonl")
    write(home / "questions.jsonl", [{"context": record["context"]} for record in lines])
    flags = ["--max_steps", "6", "--save_model_step", "2", "--learning_rate", "1e-2", "--show_loss_step", "1"]
    play(home, name, "train.py", *flags)
    output = home / "output-alpaca"
    check_losses(output, 6)
    assert sorted(path.name for path in output.glob("epoch-*")) == ["epoch-2-step-4", "epoch-3-step-6"]
    scores = json.loads(play(home, name, "predict.py", *short, replaced=replaced).splitlines()[-1])
    assert scores.keys() == {"rouge1", "rouge2", "rougeL"}
    play(home, name, "merge_lora.py", replaced=replaced)
    play(home, name, "predict.py", *short, number=1)
    assert len(read(home / "replies.jsonl")) == len(lines)

    model_class = MODES["glm"].model_class
    base = model_class.from_pretrained(home / "ChatGLM-6B", dtype=torch.float32)
    plain = logits(base, "glm")
    adapted = logits(PeftModel.from_pretrained(base, output / "epoch-3-step-6"), "glm")
    merged = logits(model_class.from_pretrained(home / "chatglm-alpaca", dtype=torch.float32), "glm")
    assert (adapted - plain).abs().max() > 1e-3 * plain.abs().max()
    assert (merged - adapted).abs().max() < 1e-5 * adapted.abs().max()
