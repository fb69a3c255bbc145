"""The options of a training run, by section.

options, problems = parse_train(["--model_name_or_path", "ChatGLM3-6B", …])
options.data.max_len, options.method.lora_dim
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from errors import UserError
from flags import Flag, flags_of
from methods import METHODS
from methods.method import Method
from options.advice import TRAIN_ADVICE
from options.config_file import flat
from options.parser import Given, Program, parse, section
from options.sections import (
    ColumnOptions,
    ComputeOptions,
    DataOptions,
    EvaluationOptions,
    IgnoredOptions,
    ModelOptions,
    OptimizerOptions,
    OutputOptions,
    SafetyOptions,
    StepOptions,
)
from options.values import as_text, check_texts, check_values, wrong_values


@dataclass(frozen=True)
class TrainOptions:
    """A run's options; each function takes the section that it uses.

    method: the options of --train_type, and their effect (methods/). given: names of the given flags.
    """

    model: ModelOptions
    data: DataOptions
    columns: ColumnOptions
    steps: StepOptions
    optimizer: OptimizerOptions
    compute: ComputeOptions
    output: OutputOptions
    evaluation: EvaluationOptions
    safety: SafetyOptions
    method: Method
    given: frozenset[str] = frozenset()

    @property
    def sections(self) -> tuple[object, ...]:
        """All dataclasses of flags, including the method's."""
        return tuple(value for name, value in vars(self).items() if name != "given")

    @property
    def row_length(self) -> int | None:
        """Tokens of a row of packed samples; None for one sample per row."""
        return self.data.max_len if self.steps.packing else None

    def flat(self) -> dict[str, object]:
        """Name -> value for JSON of every flag in force."""
        return flat(self.sections)


SECTIONS = (
    ModelOptions,
    DataOptions,
    ColumnOptions,
    StepOptions,
    OptimizerOptions,
    ComputeOptions,
    OutputOptions,
    EvaluationOptions,
    SafetyOptions,
)
TRAIN = Program(
    name="train.py",
    usage="deepspeed train.py --model_name_or_path DIR --train_path FILE --output_dir DIR [flags below]",
    description="Fine-tune ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B.",
    sections=(*SECTIONS, *METHODS.values(), IgnoredOptions),
    advice=TRAIN_ADVICE,
)


def parse_train(argv: Sequence[str] | None = None) -> tuple[TrainOptions, list[str]]:
    """(the options of a command line, one sentence for each problem).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse(TRAIN, argv)
    unprintable = check_texts(TRAIN.flags, given.values)  # a line end in a value would split a sentence
    if unprintable:
        raise UserError(*unprintable)
    method = METHODS.get(str(given.values["train_type"]), METHODS["lora"])  # an unknown one is among the problems
    in_force = {name: flag for kind in (*SECTIONS, method) for name, flag in flags_of(kind).items()}
    problems = given.problems + check_values(in_force, given.values, given.names)
    given = with_defaults(given, in_force)
    options = TrainOptions(
        model=section(ModelOptions, given),
        data=section(DataOptions, given),
        columns=section(ColumnOptions, given),
        steps=section(StepOptions, given),
        optimizer=section(OptimizerOptions, given),
        compute=section(ComputeOptions, given),
        output=section(OutputOptions, given),
        evaluation=section(EvaluationOptions, given),
        safety=section(SafetyOptions, given),
        method=section(method, given),
        given=given.names,
    )
    return options, problems


def with_defaults(given: Given, flags: Mapping[str, Flag]) -> Given:
    """The flags with defaults in place of invalid values, because the following checks rely on valid ones."""
    wrong = wrong_values(flags, given.values)
    return replace(given, values={**given.values, **{name: flags[name].default for name in wrong}})


def train_options(**flags: object) -> TrainOptions:
    """The options of a run from Python: train_options(model_name_or_path="ChatGLM3-6B", lora_dim=16, …).

    Raises:
        UserError: all problems of their values.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    options, problems = parse_train([f"--{name}={as_text(value)}" for name, value in given.items()])
    if problems:
        raise UserError(*problems)
    return options


def notes_on(options: TrainOptions) -> list[str]:
    """Notes about flags that have no effect or an unexpected one."""
    data, optimizer, names = options.data, options.optimizer, options.given
    notes = []
    if data.max_src_len >= data.max_len:
        notes.append(
            f"--max_src_len {data.max_src_len} is not below --max_len {data.max_len}: "
            "a long prompt is truncated further to leave room for its answer."
        )
    if optimizer.warmup_steps is not None and "warmup_ratio" in names:
        notes.append(
            f"--warmup_ratio {optimizer.warmup_ratio} is overridden by --warmup_steps {optimizer.warmup_steps:g}."
        )
    for name, ignored in flags_of(IgnoredOptions).items():
        if name in names:
            notes.append(f"--{name} has no effect: {ignored.help.removeprefix('Ignored; ')}")
    for method, kind in METHODS.items():
        unused = [f"--{name}" for name in flags_of(kind) if name in names]
        if unused and method != options.model.train_type:
            notes.append(f"{', '.join(unused)}: no effect with --train_type {options.model.train_type}.")
    return notes
