"""The methods of --train_type: one frozen dataclass each, in its own module (methods/method.py).

To add a method, write one module and add one line here. Importing this loads no torch or peft.
"""

import logging

from methods.all import All
from methods.freeze import Freeze
from methods.lora import Lora
from methods.method import Method
from methods.ptuning import PTuning

# peft imports bitsandbytes if it is installed, which warns about an optional kernel on some CPUs
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

METHODS: dict[str, type[Method]] = {"freeze": Freeze, "ptuning": PTuning, "lora": Lora, "all": All}
