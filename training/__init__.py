"""Options, DeepSpeed config and engine, checkpoints, metrics: what training needs besides data, modes and methods.

Sets, before deepspeed and transformers are imported, what they read from the environment at import.
"""

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the directories given
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # detected all the same, with a warning
