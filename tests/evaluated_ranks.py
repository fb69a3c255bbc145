"""Run by test_evaluation.py on real ranks: training with and without evaluations in between.

torchrun --nproc_per_node 2 tests/evaluated_ranks.py ZERO_STAGE RESULT_FILE
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import deepspeed
import torch
from transformers import GenerationConfig, PreTrainedTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.collate import collate, to_device
from data.loading import batches, plan_epoch
from data.tokenize import TokenizedDataset, tokenize_file
from evaluation.evaluator import EvaluationSet, make_evaluator, write_final_report
from evaluation.loss import dev_loss
from evaluation.report import append_row
from generation.generate import generate_answers
from methods import METHODS
from modes import MODES
from modes.directory import iterate_shards, read_base
from options.sections import OptimizerOptions
from parallel import ranks
from parallel.zero import build_partitioned
from tests.launch import GOLDEN, PERSISTENCE_THRESHOLD
from training.ds_config import DeepSpeedSetup
from training.engine import start_engine

# (mode, method, its options): each generation, each way a model is wrapped
CASES = [
    ("glm", "lora", {"lora_dim": 4, "lora_alpha": 16, "lora_dropout": 0.1, "lora_module_name": ["query_key_value"]}),
    ("glm2", "ptuning", {"pre_seq_len": 4, "prefix_projection": True, "prefix_layers": "all"}),
    ("glm3", "all", {}),
]
RECORDS = [json.loads(line) for line in (GOLDEN / "samples.jsonl").read_text().splitlines()]
ASKED = [record["instruction"] + record["input"] for record in RECORDS]
REFERENCES = [record["output"] for record in RECORDS]
STEPS = 3


@dataclass(frozen=True)
class Run:
    """A model that is trained and evaluated on the golden records."""

    mode: str
    engine: deepspeed.DeepSpeedEngine
    tokenizer: PreTrainedTokenizer
    dataset: TokenizedDataset
    prompts: list[list[int]]

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """A micro-batch of rows."""
        return collate(rows, layout=partial(MODES[self.mode].layout, self.engine.module.config))

    def all_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """This rank's micro-batches of all rows."""
        plan = plan_epoch(
            self.dataset.lengths,
            self.dataset.supervised,
            epoch=0,
            seed=0,
            micro_batch_size=2,
            accumulation=len(self.dataset),
            world_size=ranks.world_size(),
            rank=ranks.rank(),
        )
        return (batch for _, parts in batches(self.dataset, plan, self.collate) for batch in parts)

    def loss(self) -> float:
        """The loss of all rows."""
        before = self.engine.module.training
        loss = dev_loss(self.engine, self.all_batches())
        assert self.engine.module.training == before
        return loss

    def answers(self, prompts: list[list[int]] | None = None) -> list[str]:
        """Answers to the given prompts; to all by default."""
        generation = GenerationConfig(
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=MODES[self.mode].stop_ids(self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return generate_answers(
            self.engine,
            self.prompts if prompts is None else prompts,
            pad_id=self.tokenizer.pad_token_id,
            generation_config=generation,
            answer_text=partial(MODES[self.mode].answer_text, self.tokenizer),
            batch_size=2,  # three batches: a rank has none left
            causal=self.mode != "glm",
        )

    def step(self) -> float:
        """An optimizer step on the same batch on all ranks; its loss."""
        batch = to_device(self.collate([self.dataset[0], self.dataset[4]]), self.engine.device)
        loss = self.engine(**batch, use_cache=False).loss
        self.engine.backward(loss)
        self.engine.step()
        return loss.item()


def start(stage: int, cache: Path, mode_name: str, method_name: str, options: dict) -> Run:
    """A golden base, prepared by a method, in an engine of a ZeRO stage."""
    mode, method, base = MODES[mode_name], METHODS[method_name](**options), read_base(GOLDEN / mode_name / "base")
    config = mode.config_class.from_pretrained(base.path)
    method.configure(config)
    tokenizer = mode.tokenizer_class.from_pretrained(base.path)
    ds_config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    if stage == 3:
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENCE_THRESHOLD
        model = build_partitioned(mode.model_class, config, ds_config, iterate_shards(base))
    else:
        model = mode.model_class.from_pretrained(base.path, config=config, dtype=torch.float32)
    ranks.seed_everything(0)
    engine = start_engine(
        method.prepare(model),
        DeepSpeedSetup(ds_config, "fp32"),
        OptimizerOptions(learning_rate=1e-3, weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0),
        total_steps=STEPS,
    )
    encode_batch = partial(mode.encode_batch, tokenizer, max_len=256, max_src_len=160)
    dataset = TokenizedDataset(tokenize_file(GOLDEN / "samples.jsonl", encode_batch, cache, key=mode_name))
    prompts = [mode.prompt_ids(tokenizer, record, 160, 256) for record in RECORDS]
    return Run(mode_name, engine, tokenizer, dataset, prompts)


def train(run: Run) -> list[float]:
    """Losses of the steps."""
    run.engine.train()
    ranks.seed_everything(1)
    return [run.step() for _ in range(STEPS)]


def train_evaluated(run: Run) -> dict:
    """As `train`, with evaluations around each step."""
    result = {"loss": run.loss(), "answers": run.answers(), "trajectory": []}
    run.engine.train()
    ranks.seed_everything(1)
    assert (run.loss(), run.answers()) == (result["loss"], result["answers"])
    for step in range(STEPS):
        result["trajectory"].append(run.step())
        result["loss_after"] = run.loss()
        if step == 0:
            run.answers()
    return result


def judge(run: Run, output_dir: Path) -> list:
    """Verdicts on the trained model: before the first step, after the last one, and twice of a resumed run."""
    sets = [
        EvaluationSet("", "a file", run.all_batches, ASKED, REFERENCES, run.prompts),
        EvaluationSet("probe_", "a file", run.all_batches, ASKED[:2], REFERENCES[:2], run.prompts[:2]),
    ]
    if ranks.is_main():
        output_dir.mkdir()
        append_row(output_dir / "evaluation.jsonl", {"step": 2, "epoch": 1, "rougeL": 1.0})  # an earlier run's
    answers: dict[int, list[str]] = {}

    def generate(prompts: list[list[int]]) -> list[str]:
        """Answers of a model that does not change."""
        if len(prompts) not in answers:
            answers[len(prompts)] = run.answers(prompts)
        return answers[len(prompts)]

    make = partial(make_evaluator, run.engine, sets, output_dir, metric="rougeL", generate=generate, patience=2)
    evaluate = make()
    verdicts = [evaluate(0, 0), evaluate(3, 1)]
    evaluate = make(start_step=3)  # as a resumed run
    verdicts += [evaluate(4, 1), evaluate(5, 1)]
    if ranks.is_main():
        write_final_report(output_dir, "rougeL", [{"step": 1, "loss": 1.0}], patience=2)
    return [[verdict.row, verdict.is_best, verdict.stops] for verdict in verdicts]


def main(stage: int, path: Path) -> None:
    """Write what came out of each case to RESULT_FILE with the rank as its suffix."""
    ranks.start_ranks()
    results = {}
    for case in CASES:
        run = start(stage, path.parent / "cache", *case)
        result = train_evaluated(run)
        result["verdicts"] = judge(run, path.parent / run.mode)
        undisturbed = train(start(stage, path.parent / "cache", *case))
        results[" ".join(case[:2])] = {**result, "undisturbed": undisturbed}
    path.with_suffix(f".{ranks.rank()}").write_text(json.dumps(results, ensure_ascii=False))
    ranks.stop_ranks()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
