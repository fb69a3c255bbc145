"""The flags of predict.py, including those of the 2023 tool.

options, problems = parse_predict(["--model_path", "output-glm3/best", "--instruction", "…"])
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flags import flag
from modes import GENERATIONS
from options.advice import PREDICT_ADVICE
from options.parser import Program, parse_and_check, section
from options.sections.compute import PRECISIONS
from options.values import as_text
from scores import SCORES
from texts import quote_text

DEVICE = re.compile(r"auto|cpu|cuda|(cuda:)?\d{1,3}")
MAX_NEW_TOKENS = 512  # if neither --max_new_tokens nor --max_len is given


def device_name(text: str) -> str:
    """auto, cpu, or the number of a GPU."""
    if not DEVICE.fullmatch(text):
        raise ValueError(f"{quote_text(text)} is unknown: give auto, cpu, or the number of a GPU, such as 0")
    return text


@dataclass(frozen=True)
class PredictModelOptions:
    """The model, its precision and device."""

    TITLE: ClassVar[str] = "model"

    model_path: str = flag(
        "",
        help="Path to a base, a merged directory or a checkpoint of any method.",
        zh="基座、合并后的目录，或任一方法的检查点。",
        metavar="DIR",
        elsewhere="adapter adapter_name_or_path adapter_path checkpoint checkpoint_dir checkpoint_path ckpt_path "
        "lora_model_path lora_path lora_weights model model_name model_name_or_path peft_model_path peft_path",
    )
    base_model: str | None = flag(
        None,
        help="Path to the base of a checkpoint (default: the path that the checkpoint recorded).",
        zh="检查点的基座（默认用检查点里记录的路径）。",
        metavar="DIR",
        elsewhere="base_model_name_or_path base_model_path",
    )
    mode: str | None = flag(
        None,
        help="Generation of the base, if neither its files nor a checkpoint show it.",
        zh="基座是哪一代，基座文件和检查点都无法判断时使用。",
        choices=GENERATIONS,
    )
    precision: str = flag(
        "auto",
        help="Precision of the weights. auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU.",
        zh="权重的精度。auto：GPU 支持时用 bf16，否则 fp16；CPU 上用 fp32。",
        choices=PRECISIONS,
        elsewhere="dtype torch_dtype",
        by_value={"bf16": "bf16", "fp16": "fp16 half", "fp32": "fp32"},
    )
    quantization_bit: int | None = flag(
        None,
        help="Quantize the base to this many bits, 0: not at all (default: as the checkpoint was trained).",
        zh="把基座量化到多少位，0 为不量化（默认与检查点训练时相同）。",
        choices=(0, 8, 4),
        elsewhere="bits quant_bits quantization_bits",
        by_value={"8": "load_in_8bit", "4": "load_in_4bit"},
    )
    device: str = flag(
        "auto",
        help="cpu, or the number of a GPU. auto: the first visible GPU, else the CPU.",
        zh="cpu，或 GPU 的编号。auto：第一块可见的 GPU，没有则用 CPU。",
        parse=device_name,
        metavar="DEVICE",
    )


@dataclass(frozen=True)
class QuestionOptions:
    """The questions, and the file of answers."""

    TITLE: ClassVar[str] = "questions"

    instruction: str | None = flag(
        None,
        help="One question to answer.",
        zh="只问这一个问题。",
        free_text=True,
        elsewhere="prompt query question text",
    )
    input: str = flag(
        "",
        help="Text that the instruction is about.",
        zh="instruction 所针对的文本。",
        free_text=True,
        elsewhere="context",
    )
    test_path: str | None = flag(
        None,
        help="Path to a file of records, each of which is answered.",
        zh="数据文件的路径，逐条回答其中的记录。",
        metavar="FILE",
        elsewhere="data_path dataset eval_file input_file input_path predict_file predict_path test_data "
        "test_dataset test_file train_path validation_file",
    )
    output_path: str | None = flag(
        None,
        help="Path for the answers to --test_path, one JSON object per line; FILE.part until all are there.",
        zh="--test_path 的答案写到哪里，每行一个 JSON 对象；全部完成之前在 FILE.part。",
        metavar="FILE",
        elsewhere="output output_dir output_file predictions_path result_path save_path",
    )
    metrics: tuple[str, ...] = flag(
        (),
        help="Scores of the answers to --test_path against their references, separated by commas.",
        zh="拿 --test_path 的答案与参考答案打分，用逗号分隔。",
        choices=tuple(SCORES),
        needs="test_path",
        elsewhere="eval_metric metric",
    )
    task_key: str | None = flag(
        None,
        help="Key of a record that names its task: --metrics for each task as well.",
        zh="记录里标明任务的键：--metrics 也按任务分别计算。",
        metavar="KEY",
    )
    prompt_column: str | None = flag(
        None,
        help="Key of the question (default: as trained, or recognized).",
        zh="问题所在的键（默认与训练时相同，或自动识别）。",
        metavar="KEY",
    )
    response_column: str | None = flag(
        None,
        help="Key of the answer (default: as trained, or recognized).",
        zh="答案所在的键（默认与训练时相同，或自动识别）。",
        metavar="KEY",
    )
    history_column: str | None = flag(
        None,
        help="Key of the earlier turns (default: as trained, or history).",
        zh="前几轮对话所在的键（默认与训练时相同，或 history）。",
        metavar="KEY",
    )
    source_prefix: str | None = flag(
        None,
        help="Text to prepend to every question (default: as trained, or none).",
        zh="加在每个问题前面的文本（默认与训练时相同，或没有）。",
        free_text=True,
    )
    prompt_text: str | None = flag(
        None,
        help="Instruction of records that have none, or of --input.",
        zh="没有 instruction 的记录用它作 instruction，--input 也是。",
        free_text=True,
    )


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is generated."""

    TITLE: ClassVar[str] = "generation"

    max_new_tokens: int | None = flag(
        None,
        help=f"Maximum number of tokens of an answer (default: {MAX_NEW_TOKENS}, or what --max_len leaves).",
        zh=f"答案的最大 token 数（默认 {MAX_NEW_TOKENS}；给了 --max_len 时为它剩下的长度）。",
        at_least=1,
        elsewhere="max_new_token max_output_length max_target_length max_tgt_len max_tokens val_max_target_length",
    )
    max_src_len: int | None = flag(
        None,
        help="Maximum number of tokens of a prompt (default: as trained, or no limit).",
        zh="提示词的最大 token 数（默认与训练时相同，或不限）。",
        at_least=1,
        elsewhere="cutoff_len max_input_length max_seq_length max_source_length max_src_length",
    )
    max_len: int | None = flag(
        None,
        help="Maximum number of tokens of a prompt with its answer.",
        zh="提示词与答案合计的最大 token 数。",
        at_least=16,  # the longest template has fewer tokens
        synonyms=("max_length",),  # of the last predict.py of 2023
    )
    do_sample: bool = flag(
        False,
        help="Sample, instead of taking the most likely token.",
        zh="采样，而不是每步取最可能的 token。",
    )
    temperature: float = flag(
        0.95,
        help="With --do_sample: temperature; below 1 is less random.",
        zh="配合 --do_sample：温度；小于 1 时随机性更低。",
        elsewhere="temp",
    )
    top_p: float = flag(
        0.7,
        help="With --do_sample: probability mass to draw from.",
        zh="配合 --do_sample：从累计概率达到该值的 token 里抽。",
        above=0,
        at_most=1,
    )
    top_k: int = flag(
        0,
        help="With --do_sample: number of most likely tokens to draw from; 0: all.",
        zh="配合 --do_sample：只从概率最高的若干个 token 里抽；0 为不限。",
        at_least=0,
    )
    repetition_penalty: float = flag(
        1.0,
        help="Repetition penalty; above 1 discourages repetition.",
        zh="重复惩罚；大于 1 时抑制重复。",
        above=0,
        elsewhere="rep_penalty",
    )
    seed: int = flag(
        1234,
        help="With --do_sample: seed; the same seed gives the same answers.",
        zh="配合 --do_sample：随机种子；种子相同，答案相同。",
        at_least=0,
        below=2**64,
        elsewhere="random_seed",
    )

    @property
    def answer_tokens(self) -> int:
        """The longest answer in tokens."""
        return self.max_new_tokens or self.max_len or MAX_NEW_TOKENS

    @property
    def sampling(self) -> dict[str, float]:
        """The flags that need --do_sample."""
        return {name: vars(self)[name] for name in SAMPLING}


@dataclass(frozen=True)
class GenerationOptions(AnswerOptions):
    """How the answers to many records are generated."""

    TITLE: ClassVar[str] = "generation"

    batch_size: int = flag(
        16,
        help="Number of records answered at once.",
        zh="一批同时回答的记录数。",
        at_least=1,
        elsewhere="eval_batch_size per_device_eval_batch_size predict_batch_size",
    )
    num_beams: int = flag(
        1,
        help="Number of beams of a beam search.",
        zh="束搜索的束数。",
        at_least=1,
        elsewhere="beam_size beam_width beams",
    )


SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class FlagsOf2023:
    """Names of the 2023 tool."""

    TITLE: ClassVar[str] = "as in 2023"

    model_dir: str | None = flag(
        None,
        help="As in 2023: the model; the base where --ptuning_checkpoint is given.",
        zh="同 2023 年：模型；给了 --ptuning_checkpoint 时是基座。",
        metavar="DIR",
    )
    ori_model_dir: str | None = flag(
        None,
        help="As in 2023: the base of the adapter in --model_dir.",
        zh="同 2023 年：--model_dir 里适配器的基座。",
        metavar="DIR",
        excludes="ptuning_checkpoint",
    )
    ptuning_checkpoint: str | None = flag(
        None,
        help="As in 2023: the P-Tuning checkpoint of the base in --model_dir.",
        zh="同 2023 年：在 --model_dir 这个基座上训练的 P-Tuning 检查点。",
        metavar="DIR",
    )
    pre_seq_len: int | None = flag(
        None, help="Ignored; the checkpoint has it.", zh="不起作用；检查点里有。", ignored=True
    )
    prefix_projection: bool = flag(
        False, help="Ignored; the checkpoint has it.", zh="不起作用；检查点里有。", ignored=True
    )


@dataclass(frozen=True)
class PredictOptions:
    """The options of predict.py."""

    model: PredictModelOptions
    questions: QuestionOptions
    generation: GenerationOptions

    @property
    def sections(self) -> tuple[object, ...]:
        """All dataclasses of flags."""
        return self.model, self.questions, self.generation


PREDICT = Program(
    name="predict.py",
    description="Answer from a base, a merged directory, or a checkpoint of any method.",
    sections=(PredictModelOptions, QuestionOptions, GenerationOptions, FlagsOf2023),
    advice=PREDICT_ADVICE,
)


def parse_predict(argv: Sequence[str] | None = None) -> tuple[PredictOptions, list[str], list[str]]:
    """(options, with the 2023 names of model and base replaced by today's; problems; notes).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(PREDICT, argv)
    model = section(PredictModelOptions, given)
    questions, generation = section(QuestionOptions, given), section(GenerationOptions, given)
    model, problems_of_paths = adopt_paths(model, section(FlagsOf2023, given))
    problems = given.problems + problems_of_paths
    for name in ("instruction", "source_prefix"):
        if questions.prompt_text is not None and vars(questions)[name] is not None:
            problems.append(f"--prompt_text and --{name} are mutually exclusive: give only one.")
    if questions.prompt_text is not None and questions.test_path is None:
        questions = dataclasses.replace(questions, instruction=questions.prompt_text)
    generation = dataclasses.replace(generation, max_new_tokens=generation.answer_tokens)
    options = PredictOptions(model, questions, generation)
    return options, problems + check_questions(questions) + check_sampling(generation), note_unused(generation)


def adopt_paths(model: PredictModelOptions, old: FlagsOf2023) -> tuple[PredictModelOptions, list[str]]:
    """(`model` with the paths of the 2023 names, problems)."""
    names = ("ptuning_checkpoint", "model_dir") if old.ptuning_checkpoint else ("model_dir", "ori_model_dir")
    problems = []
    for name, old_name in zip(("model_path", "base_model"), names, strict=True):
        path = vars(old)[old_name]
        if path is not None and vars(model)[name]:
            problems.append(f"--{name} and --{old_name} are mutually exclusive: give only one.")
        elif path is not None:
            model = dataclasses.replace(model, **{name: path})
    if not model.model_path:
        problems.append("--model_path is missing: give a base, a merged directory or a checkpoint.")
    return model, problems


def check_questions(questions: QuestionOptions) -> list[str]:
    """One sentence for each missing or conflicting flag."""
    problems = []
    if (questions.instruction is None) == (questions.test_path is None):
        problems.append("give either --instruction or --test_path.")
    if (questions.test_path is None) != (questions.output_path is None):
        problems.append("--test_path and --output_path need each other: give both or neither.")
    return problems


def check_model_path(model: PredictModelOptions) -> list[str]:
    """One sentence if --model_path is missing or is no directory."""
    if not model.model_path:
        return ["--model_path is missing: give a base, a merged directory or a checkpoint."]
    if not Path(model.model_path).is_dir():
        path = model.model_path
        return [f"--model_path {path} is not a directory: give a base, a merged directory or a checkpoint."]
    return []


def check_sampling(generation: AnswerOptions) -> list[str]:
    """One sentence if the temperature is 0 or less."""
    if generation.do_sample and not generation.temperature > 0:
        return [f"--temperature {generation.temperature} is out of bounds: it must be greater than 0."]
    return []


def note_unused(generation: AnswerOptions) -> list[str]:
    """One sentence for each sampling flag that has no effect without --do_sample."""
    defaults = AnswerOptions()
    return [
        f"--{name} {as_text(value)} has no effect without --do_sample."
        for name, value in generation.sampling.items()
        if not generation.do_sample and value != vars(defaults)[name]
    ]
