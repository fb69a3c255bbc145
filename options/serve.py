"""The flags of serve.py.

options, problems = parse_serve(["--model_path", "ChatGLM3-6B", "--lora", "spo=output-glm3/best", "--port", "8000"])
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from errors import UserError
from flags import flag
from options.adapters import check_adapter_names, check_base_model, named_directories, pairs_of
from options.advice import SERVE_ADVICE
from options.parser import Program, parse_and_check, section
from options.predict import PredictModelOptions, check_model_path

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")  # the extra [serve]
INSTALL = "pip install -c constraints.txt -e '.[serve]'"
KEY_VARIABLE = "CHATGLM_API_KEY"


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and the names of its models."""

    TITLE: ClassVar[str] = "server"

    host: str = flag(
        "127.0.0.1",
        help="Address to listen on; 0.0.0.0 is every network of this machine.",
        zh="监听的地址；0.0.0.0 为本机的所有网络。",
        metavar="HOST",
        elsewhere="listen server_name",
    )
    port: int = flag(
        8000,
        help="Port to listen on; 0 is any free one.",
        zh="监听的端口；0 为任一空闲端口。",
        at_least=0,
        below=65536,
        elsewhere="server_port",
    )
    api_key: str | None = flag(
        None,
        help=f"Key that clients must send (default: the environment variable {KEY_VARIABLE}, or none).",
        zh=f"客户端必须出示的密钥（默认取环境变量 {KEY_VARIABLE}，没有则不需要密钥）。",
        metavar="KEY",
    )
    served_model_name: str | None = flag(
        None,
        help="Name of the model for clients (default: the name of its directory).",
        zh="模型对客户端的名称（默认为其目录名）。",
        metavar="NAME",
        elsewhere="model_alias alias",
    )
    lora: tuple[str, ...] = flag(
        (),
        help="LoRA adapters of the model, each with its name for clients, as NAME=DIR; may be repeated.",
        zh="模型的 LoRA 适配器，写作 NAME=DIR，NAME 是它对客户端的名称，可重复给出。",
        parse=named_directories,
        metavar="NAME=DIR",
        elsewhere="lora_modules",
    )


@dataclass(frozen=True)
class LimitOptions:
    """What a request may take."""

    TITLE: ClassVar[str] = "limits"

    max_model_len: int | None = flag(
        None,
        help="Maximum number of tokens of a prompt with its answer (default: as config.json says).",
        zh="提示词与答案合计的最大 token 数（默认按 config.json）。",
        at_least=16,
        elsewhere="context_length ctx_size max_len max_seq_len",
    )
    max_new_tokens: int = flag(
        2048,
        help="Maximum number of tokens of an answer.",
        zh="答案的最大 token 数。",
        at_least=1,
    )
    max_num_seqs: int = flag(
        32,
        help="Maximum number of answers generated at once, per model.",
        zh="每个模型同时生成的答案数上限。",
        at_least=1,
        elsewhere="max_concurrent max_running_requests parallel",
    )
    kv_cache_memory: float | None = flag(
        None,
        help="GiB for keys and values of all models (default: 90% of the free memory of a GPU, half of a CPU's).",
        zh="所有模型的键值缓存所用的内存，单位 GiB（默认为 GPU 空闲显存的 90%，CPU 上为空闲内存的一半）。",
        above=0,
        metavar="GIB",
        elsewhere="kv_cache_memory_bytes gpu_memory_utilization mem_fraction_static",
    )
    max_queued_requests: int = flag(
        256,
        help="Maximum number of answers that wait for a place; further requests get status 429.",
        zh="排队等待的答案数上限；超出的请求得到状态码 429。",
        at_least=0,
        elsewhere="max_waiting queue_size",
    )
    max_body_bytes: int = flag(
        4 * 2**20,
        help="Maximum number of bytes of a request's body.",
        zh="请求正文的最大字节数。",
        at_least=1024,
    )
    request_timeout: float = flag(
        600.0,
        help="Maximum number of seconds of a request, with its time in the queue.",
        zh="一个请求的最长秒数，包括排队时间。",
        above=0,
        at_most=86400,
        elsewhere="timeout",
    )
    shutdown_timeout: float = flag(
        30.0,
        help="Maximum number of seconds that running requests have to finish after SIGTERM.",
        zh="收到 SIGTERM 后，留给正在处理的请求的最长秒数。",
        at_least=0,
        at_most=86400,
        elsewhere="timeout_graceful_shutdown",
    )

    @property
    def cache_bytes(self) -> int | None:
        """--kv_cache_memory in bytes."""
        return None if self.kv_cache_memory is None else int(self.kv_cache_memory * 2**30)


@dataclass(frozen=True)
class DefaultOptions:
    """Sampling of requests that do not say it."""

    TITLE: ClassVar[str] = "sampling"

    temperature: float | None = flag(
        None,
        help="Temperature of requests without one; 0 is greedy (default: generation_config.json of the model, or 1).",
        zh="没有给出温度的请求所用的温度；0 为贪心（默认按模型的 generation_config.json，没有则为 1）。",
        at_least=0,
        at_most=2,
        elsewhere="temp",
    )
    top_p: float | None = flag(
        None,
        help="Probability mass of requests without top_p (default: generation_config.json of the model, or 1).",
        zh="没有给出 top_p 的请求所用的累计概率（默认按模型的 generation_config.json，没有则为 1）。",
        above=0,
        at_most=1,
    )


@dataclass(frozen=True)
class ServeOptions:
    """The options of serve.py."""

    model: PredictModelOptions
    server: ServerOptions
    limits: LimitOptions
    defaults: DefaultOptions

    @property
    def adapters(self) -> dict[str, str]:
        """Name -> directory of --lora."""
        return dict(pairs_of(self.server.lora))


SERVE = Program(
    name="serve.py",
    description="Serve a base, a merged directory or a checkpoint over OpenAI's API.",
    sections=(PredictModelOptions, ServerOptions, LimitOptions, DefaultOptions),
    advice=SERVE_ADVICE,
    positional="model_path",
    repeated_lists=True,
)


def parse_serve(argv: Sequence[str] | None = None) -> tuple[ServeOptions, list[str]]:
    """(options, problems).

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(SERVE, argv)
    options = ServeOptions(
        section(PredictModelOptions, given),
        section(ServerOptions, given),
        section(LimitOptions, given),
        section(DefaultOptions, given),
    )
    problems = given.problems + check_model_path(options.model) + check_adapter_names(options.server.lora)
    problems += check_base_model(options.server.lora, options.model.base_model)
    return options, problems + check_key(api_key(options.server))


def api_key(server: ServerOptions) -> str | None:
    """The key of --api_key or the environment; None for none."""
    return server.api_key if server.api_key is not None else os.environ.get(KEY_VARIABLE) or None


def open_note(server: ServerOptions) -> list[str]:
    """One sentence if other machines reach the server and there is no key."""
    if api_key(server) is None and server.host not in ("localhost", "::1") and not server.host.startswith("127."):
        return [f"--host {server.host} lets other machines send requests without a key: set {KEY_VARIABLE}."]
    return []


def check_key(key: str | None) -> list[str]:
    """One sentence if a key cannot be sent in a header."""
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        return ["--api_key is empty or has spaces or other than ASCII characters: choose another key."]
    return []


def check_installed() -> None:
    """Raise UserError without the packages of the extra."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve.py needs {', '.join(missing)}, not installed: {INSTALL}.")
