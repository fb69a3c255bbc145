"""The flags of merge_lora.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flags import flag
from modes import GENERATIONS
from options.advice import MERGE_ADVICE
from options.parser import Program, parse_and_check, section
from options.sections.compute import PRECISIONS

FORMATS = ("official", "hf", "gguf")


@dataclass(frozen=True)
class MergeOptions:
    """Checkpoint, base, output directory and format of a merge."""

    TITLE: ClassVar[str] = "merging"

    ori_model_dir: str = flag(
        "",
        help="Path to the base that the checkpoint was trained on, or to a model to convert.",
        zh="检查点训练时的基座，或要转换的模型。",
        required="the base",
        metavar="DIR",
        elsewhere="base base_model base_model_name_or_path base_model_path base_path model model_name "
        "model_name_or_path model_path",
    )
    model_dir: str | None = flag(
        None,
        help="Path to the checkpoint, or to a peft LoRA adapter; without it the base itself is converted.",
        zh="检查点，或 peft 的 LoRA 适配器目录；不给则转换基座本身。",
        metavar="DIR",
        elsewhere="adapter adapter_dir adapter_model adapter_name_or_path adapter_path checkpoint checkpoint_dir "
        "checkpoint_path lora_dir lora_model lora_model_path lora_path lora_weights peft_model_path peft_path",
    )
    mode: str | None = flag(
        None,
        help="Generation of the base, if its files do not show it.",
        zh="基座是哪一代，基座文件无法判断时使用。",
        choices=GENERATIONS,
    )
    output_dir: str | None = flag(
        None,
        help="Directory to write to (default: MODEL_DIR-merged; MODEL_DIR-hf with --format hf, and so on).",
        zh="写到哪个目录（默认 MODEL_DIR-merged；--format hf 时为 MODEL_DIR-hf，依此类推）。",
        metavar="DIR",
        elsewhere="export_dir merged_dir output output_path save_dir save_path",
    )
    max_shard_size: str = flag(
        "2GB",
        help="Maximum size of a weight file, such as 2GB or 500MB.",
        zh="单个权重文件的最大体积，例如 2GB、500MB。",
        metavar="SIZE",
        elsewhere="export_size shard_size",
    )
    precision: str = flag(
        "auto",
        help="Precision of the merged weights. auto: that of training, so that merging loses nothing (a peft adapter "
        "from elsewhere: that of the base).",
        zh="合并后权重的精度。auto：训练时的精度，合并不损失任何东西（外来的 peft 适配器：基座的精度）。",
        choices=PRECISIONS,
        elsewhere="dtype export_dtype torch_dtype",
        by_value={"bf16": "bf16", "fp16": "fp16 half", "fp32": "fp32"},
    )
    format: str = flag(
        "official",
        help="Layout of the result: official (remote code in engines), hf (GlmForCausalLM, for ChatGLM2 and ChatGLM3), "
        "or gguf (llama.cpp, Ollama).",
        zh="结果的格式：official（其他引擎需要远程代码）、hf（transformers 的 GlmForCausalLM，ChatGLM2 和 ChatGLM3），"
        "或 gguf（llama.cpp、Ollama）。",
        choices=FORMATS,
        elsewhere="export_format output_format",
    )
    adapter_only: bool = flag(
        False,
        help="With --format hf: write the LoRA adapter alone, for engines that load it beside a base in this layout.",
        zh="配合 --format hf：只写 LoRA 适配器，供引擎与该格式的基座一起加载。",
        needs="format=hf",
    )
    quantize: str = flag(
        "f16",
        help="With --format gguf: type of the weights.",
        zh="配合 --format gguf：权重的类型。",
        choices=("f16", "q8_0", "q4_0", "q5_1"),
        needs="format=gguf",
        elsewhere="outtype quantization quantization_type",
    )
    quantization_bit: int | None = flag(
        None,
        help="With --format official: quantize the linear layers to this many bits, as the official int8 and int4 "
        "releases are.",
        zh="配合 --format official：把线性层量化到多少位，与官方 int8、int4 版本相同。",
        choices=(8, 4),
        needs="format=official",
        elsewhere="bits export_quantization_bit quant_bits quantization_bits",
    )
    verify: bool | None = flag(
        None,
        help="Load the result and compare it with the merged model on a few prompts (default: of bases up to 1 GB).",
        zh="加载结果，并在几条提示词上与合并后的模型比较（默认：基座不超过 1 GB 时）。",
    )
    force: bool = flag(
        False,
        help="Merge even if the base's fingerprint is not the one that the checkpoint was trained on.",
        zh="基座指纹与训练时不同也合并。",
    )

    @property
    def export(self) -> dict[str, object]:
        """The flags that describe the format."""
        quantize = self.quantize if self.format == "gguf" else None
        flags = {"adapter_only": self.adapter_only, "quantization_bit": self.quantization_bit, "quantize": quantize}
        return {"format": self.format, **{name: value for name, value in flags.items() if value}}

    @property
    def merged_precision(self) -> str:
        """--precision; by default that of the official quantized releases, and for GGUF one that loses nothing."""
        if self.precision != "auto":
            return self.precision
        return "fp16" if self.quantization_bit else "fp32" if self.format == "gguf" else "auto"

    @property
    def output(self) -> str:
        """--output_dir, or its default."""
        if self.output_dir:
            return self.output_dir
        suffix = f"{self.format}-adapter" if self.adapter_only else self.format
        if self.model_dir is None:
            return f"{self.ori_model_dir.rstrip('/')}-{suffix}"
        return f"{self.model_dir.rstrip('/')}-{'merged' if self.format == 'official' else suffix}"


MERGE = Program(
    name="merge_lora.py",
    description="Fold a checkpoint of any method back into its base, or convert a base, in one of several formats.",
    sections=(MergeOptions,),
    advice=MERGE_ADVICE,
)


def parse_merge(argv: Sequence[str] | None = None) -> tuple[MergeOptions, list[str]]:
    """(options, one sentence for each problem).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(MERGE, argv)
    options, problems = section(MergeOptions, given), given.problems
    if options.model_dir is None and not given.names & {"format", "quantization_bit"}:
        problems.append(
            "--model_dir is missing: give the directory of a checkpoint, or --format to convert the base alone."
        )
    if options.adapter_only and options.model_dir is None:
        problems.append("--adapter_only needs --model_dir: give the directory of a LoRA checkpoint.")
    return options, problems
