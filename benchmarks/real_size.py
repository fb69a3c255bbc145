"""Train, save, merge and ask models of the real size with random weights, every method, on the card at hand.

python benchmarks/real_size.py --work_dir /data/real --modes glm glm3 --methods freeze ptuning lora all
python benchmarks/real_size.py --work_dir /data/real --modes glm glm3 --methods lora ptuning --quantization_bit 4
python benchmarks/real_size.py --work_dir /tmp/small --num_layers 2 --hidden_size 128 --vocab_size 4096 --max_len 128

Makes each base (12 GB, official layout, float16, a small tokenizer) once, then runs the commands of the README:
train.py under `deepspeed` (ZeRO-2, bf16 where the card has it), merge_lora.py, predict.py. Prints one line per mode
and method with the loss, the peak memory of the card and the tokens per second of the last steps; JSON last.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402

from methods import METHODS  # noqa: E402
from modes import MODES  # noqa: E402
from shards import write_shards  # noqa: E402
from training.quantization import BITS  # noqa: E402

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden"
VOCABULARY = {"glm": 130528, "glm2": 65024, "glm3": 65024}


def make_base(
    directory: Path,
    mode: str,
    num_layers: int,
    hidden_size: int,
    vocab_size: int | None,
    head_size: int = 128,
    groups: int = 2,
) -> None:
    """A random base of the asked shape; the proportions between its sizes are those of the 6B models.

    Args:
        head_size: that of the 6B models by default; a narrow model has more heads if it is smaller.
        groups: key/value heads, for ChatGLM2 and ChatGLM3.
    """
    source = GOLDEN / mode / "base"
    config = json.loads((source / "config.json").read_text())
    heads = max(hidden_size // head_size, 2)
    vocab_size = vocab_size or VOCABULARY[mode]
    config.update(num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads)
    if mode == "glm":
        config.update(inner_hidden_size=4 * hidden_size, vocab_size=vocab_size)
    else:
        config.update(
            ffn_hidden_size=hidden_size * 13696 // 4096,
            kv_channels=hidden_size // heads,
            padded_vocab_size=vocab_size,
            multi_query_group_num=groups,
        )
    with torch.device("meta"):
        model = MODES[mode].model_class(MODES[mode].config_class(**config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def tensors():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                values = torch.randn(parameter.shape, device=device, dtype=torch.float16) * 0.02
            else:
                values = torch.full(parameter.shape, float("norm.weight" in name), dtype=torch.float16)
            yield name, values.cpu()

    directory.mkdir(parents=True)
    write_shards(tensors(), directory)
    for file in source.iterdir():
        if file.name in ("tokenizer_config.json", "ice_text.model", "tokenizer.model"):
            shutil.copy(file, directory / file.name)
    (directory / "config.json").write_text(json.dumps(config, indent=2))  # last: a base cut short has none


def run(command: list[str], log: Path) -> None:
    """Run a command from the repository; its output goes to a file, whose end is shown if it fails."""
    with log.open("w") as output:
        result = subprocess.run(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")


def measure(mode: str, method: str, base: Path, work_dir: Path, options: argparse.Namespace) -> dict:
    """One row: train, merge, ask."""
    output = work_dir / f"{mode}-{method}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    train = [
        "deepspeed",
        "--num_gpus",
        "1",
        "--master_port",
        "29561",
        "train.py",
        "--mode",
        mode,
        "--train_type",
        method,
    ]
    train += ["--model_name_or_path", str(base), "--train_path", str(REPOSITORY / "data" / "spo_0.json")]
    train += ["--max_len", str(options.max_len), "--max_src_len", str(options.max_len * 2 // 3)]
    train += ["--per_device_train_batch_size", str(options.batch_size), "--gradient_accumulation_steps", "1"]
    train += ["--max_steps", str(options.max_steps), "--show_loss_step", "5", "--output_dir", str(output / "run")]
    train += ["--learning_rate", "1e-5", "--freeze_module_name", freeze_names(options.num_layers)]
    train += ["--resume_from_checkpoint", "none", "--save_state_step", str(10**9), "--ds_file", options.ds_file]
    train += ["--gradient_checkpointing"] if options.gradient_checkpointing else []
    train += ["--quantization_bit", str(options.quantization_bit)] if options.quantization_bit else []
    run(train, output / "train.log")
    rows = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    (checkpoint,) = (output / "run").glob("epoch-*-step-*")
    merge = ["merge_lora.py", "--ori_model_dir", str(base), "--model_dir", str(checkpoint)]
    run([sys.executable, *merge, "--output_dir", str(output / "merged")], output / "merge.log")
    ask = [
        "predict.py",
        "--model_path",
        str(output / "merged"),
        "--instruction",
        "抽取三元组：",
        "--input",
        "水泵渗漏。",
    ]
    run([sys.executable, *ask, "--max_new_tokens", "16"], output / "predict.log")
    shutil.rmtree(output / "merged")
    shutil.rmtree(checkpoint)
    return {
        "mode": mode,
        "method": method,
        "loss": rows[-1]["loss"],
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "tokens_per_second": rows[-1]["tokens_per_second"],
    }


def freeze_names(num_layers: int) -> str:
    """The last four layers, as the 2023 recipes train them."""
    return ",".join(f"layers.{i}." for i in range(max(num_layers - 4, 0), num_layers))


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["glm", "glm3"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--num_layers", type=int, default=28)
    parser.add_argument("--hidden_size", type=int, default=4096)
    parser.add_argument("--vocab_size", type=int, help="default: the real one")
    parser.add_argument("--max_len", type=int, default=1560)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--ds_file", default="ds_zero2_no_offload.json")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--quantization_bit", type=int, choices=BITS, help="with --methods lora ptuning")
    options = parser.parse_args()

    rows = []
    for mode in options.modes:
        base = options.work_dir / f"{mode}-base-{options.num_layers}x{options.hidden_size}"
        if not (base / "config.json").is_file():
            shutil.rmtree(base, ignore_errors=True)
            make_base(base, mode, options.num_layers, options.hidden_size, options.vocab_size)
        for method in options.methods:
            rows.append(measure(mode, method, base, options.work_dir, options))
            row = rows[-1]
            print(
                f"{mode:5s} {method:8s} loss {row['loss']:.4f}, peak {row['peak_memory_bytes'] / 2**30:.1f} GiB, "
                f"{row['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"card": card, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
