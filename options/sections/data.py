"""The records, and their conversion to samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flags import flag

if TYPE_CHECKING:
    from data.formats import Columns


@dataclass(frozen=True)
class ColumnOptions:
    """The keys of records."""

    TITLE: ClassVar[str] = "columns"

    prompt_column: str | None = flag(
        None,
        help="Key of the question, where it is none of the usual ones.",
        zh="问题所在的键，不是常用的键时给出。",
        metavar="KEY",
        elsewhere="input_column prompt_key question_column source_column",
    )
    response_column: str | None = flag(
        None,
        help="Key of the answer, such as chosen.",
        zh="答案所在的键，例如 chosen。",
        metavar="KEY",
        elsewhere="answer_column output_column response_key target_column",
    )
    history_column: str | None = flag(
        None,
        help="Key of the earlier turns (default: history).",
        zh="前几轮对话所在的键（默认 history）。",
        metavar="KEY",
    )
    source_prefix: str = flag(
        "",
        help="Text to prepend to every question.",
        zh="加在每个问题前面的文本。",
        metavar="TEXT",
    )

    def columns(self) -> Columns:
        """The keys, for the readers of files."""
        from data.formats import Columns  # an invalid command line is reported before numpy is loaded

        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            history=self.history_column,
            prefix=self.source_prefix,
        )


@dataclass(frozen=True)
class DataOptions:
    """The records, and their conversion to rows of tokens."""

    TITLE: ClassVar[str] = "data"

    train_path: str = flag(
        "",
        help="Paths to files of training records, separated by commas, in any format of docs/data.md.",
        zh="训练数据文件的路径，用逗号分隔，格式见 docs/data.zh-CN.md。",
        metavar="FILE",
        several=True,
        elsewhere="custom_train_dataset_path data_file data_path dataset_path train_data train_data_file "
        "train_data_path train_dataset train_file train_files training_data training_file",
    )
    dataset: str | None = flag(
        None,
        help="Names of training data in dataset_info.json, separated by commas, in addition to --train_path.",
        zh="dataset_info.json 里的训练数据名，用逗号分隔，可与 --train_path 同用。",
        metavar="NAMES",
        several=True,
        elsewhere="dataset_name datasets",
    )
    dataset_dir: str = flag(
        "data",
        help="Directory of dataset_info.json.",
        zh="dataset_info.json 所在的目录。",
        metavar="DIR",
        elsewhere="data_dir",
    )
    loss_on: str = flag(
        "all",
        help="Which of the assistant's messages in a conversation are supervised: all, or the last one.",
        zh="多轮对话中，助手的哪些回复计入 loss：全部，或只有最后一条。",
        choices=("all", "last"),
    )
    max_len: int = flag(
        1024,
        help="Maximum number of tokens of a sample: prompt, answer and special tokens.",
        zh="一条样本的最大 token 数：提示词、答案和特殊符号合计。",
        at_least=16,  # the longest template has fewer tokens
        elsewhere="block_size cutoff_len max_length max_seq_len max_seq_length max_sequence_length "
        "model_max_length seq_len seq_length",
    )
    max_src_len: int = flag(
        256,
        help="Maximum number of tokens of a prompt; the rest is cut off.",
        zh="提示词的最大 token 数，超出部分截断。",
        at_least=1,
        elsewhere="max_input_length max_prompt_length max_source_length max_src_length",
    )
    is_skip: bool = flag(
        False,
        help="Drop records that are too long, instead of cutting them.",
        zh="丢弃过长的样本，而不是截断。",
    )
    replay_path: str | None = flag(
        None,
        help="Path to general records to mix into the training data, against forgetting.",
        zh="混入训练的通用数据的路径，用来减轻遗忘。",
        metavar="FILE",
        several=True,
    )
    replay_ratio: float = flag(
        0.1,
        help="Number of records of --replay_path per epoch, as a fraction of those of --train_path.",
        zh="每个 epoch 混入的 --replay_path 条数，占 --train_path 条数的比例。",
        above=0,
        needs="replay_path",
    )
    data_cache_dir: str | None = flag(
        None,
        help="Directory for tokenized data (default: chatglm-finetuning in $XDG_CACHE_HOME or ~/.cache, or in the "
        "temporary directory if these are not writable).",
        zh="分词结果的缓存目录（默认是 $XDG_CACHE_HOME 或 ~/.cache 下的 chatglm-finetuning；无法写入时改用临时目录）。",
        metavar="DIR",
        elsewhere="cache_dir cache_path data_cache dataset_cache_dir tokenized_path",
    )

    @property
    def cache_dir(self) -> str:
        """--data_cache_dir, or chatglm-finetuning under $XDG_CACHE_HOME or ~/.cache."""
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return self.data_cache_dir or str(Path(root) / "chatglm-finetuning")
