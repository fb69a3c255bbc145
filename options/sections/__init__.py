"""The flags of train.py, a section each: names, meanings, defaults and bounds.

Names and defaults are those of the 2023 tool, but for --ds_file, whose default did not exist, and --mode.
"""

from options.sections.compute import ComputeOptions
from options.sections.data import ColumnOptions, DataOptions
from options.sections.evaluation import EvaluationOptions
from options.sections.ignored import IgnoredOptions
from options.sections.model import ModelOptions
from options.sections.optimizer import OptimizerOptions
from options.sections.output import OutputOptions
from options.sections.safety import SafetyOptions
from options.sections.steps import StepOptions

__all__ = [
    "ColumnOptions",
    "ComputeOptions",
    "DataOptions",
    "EvaluationOptions",
    "IgnoredOptions",
    "ModelOptions",
    "OptimizerOptions",
    "OutputOptions",
    "SafetyOptions",
    "StepOptions",
]
