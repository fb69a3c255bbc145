"""What differs between --train_type values: a frozen dataclass for each, in a module of its own (methods/method.py).

To add a method, write one module and add one line here. Importing this loads neither torch nor peft.
"""

import logging

from methods.all import All
from methods.freeze import Freeze
from methods.lora import Lora
from methods.method import Method
from methods.ptuning import PTuning

# peft imports bitsandbytes where it is installed, which misses an optional kernel on some CPUs
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

METHODS: dict[str, type[Method]] = {"freeze": Freeze, "ptuning": PTuning, "lora": Lora, "all": All}
