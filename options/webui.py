"""The flags of webui.py.

options, problems = parse_webui(["--root", "/data/glm", "--port", "7860"])
"""

import importlib.util
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from errors import UserError
from flags import flag
from options.advice import WEBUI_ADVICE
from options.parser import Program, parse_and_check, section
from options.serve import INSTALL, NEEDED
from texts import shown

PASSWORD_VARIABLE = "CHATGLM_PASSWORD"


@dataclass(frozen=True)
class PageOptions:
    """Where the page listens, which files it reaches, and who may use it."""

    TITLE: ClassVar[str] = "page"

    root: str = flag(
        ".",
        help="Directory that the page may read and write; bases, data and runs are picked below it.",
        zh="网页可以读写的目录；基座、数据和训练结果都在它下面选取。",
        metavar="DIR",
    )
    host: str = flag(
        "127.0.0.1",
        help="Address to listen on; 0.0.0.0 is every network. Others than this machine need --password.",
        zh="监听的地址；0.0.0.0 为本机的所有网络。本机以外的地址必须配合 --password。",
        metavar="HOST",
        elsewhere="listen server_name",
    )
    port: int = flag(
        7860,
        help="Port to listen on; 0 is any free one.",
        zh="监听的端口；0 为任一空闲端口。",
        at_least=0,
        below=65536,
        elsewhere="server_port",
    )
    password: str | None = flag(
        None,
        help=f"Password of the page (default: the environment variable {PASSWORD_VARIABLE}, or none).",
        zh=f"网页的密码（默认取环境变量 {PASSWORD_VARIABLE}，没有则不需要密码）。",
        metavar="PASSWORD",
        elsewhere="auth",
    )
    allowed_hosts: tuple[str, ...] = flag(
        (),
        help="Names of this server that browsers may use besides localhost and IP addresses, separated by commas.",
        zh="除 localhost 和 IP 地址外，浏览器可以使用的服务器域名，用逗号分隔。",
        metavar="NAMES",
    )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the page."""
        return self.host == "localhost" or (is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback)


WEBUI = Program(
    name="webui.py",
    description="Train, watch, chat and export on a page in the browser.",
    sections=(PageOptions,),
    advice=WEBUI_ADVICE,
)


def parse_webui(argv: Sequence[str] | None = None) -> tuple[PageOptions, list[str]]:
    """(options, problems); the password is that of the flag or the environment.

    Raises:
        UserError: the command line cannot be parsed.
    """
    given = parse_and_check(WEBUI, argv)
    if given.values["password"] is None:
        given.values["password"] = os.environ.get(PASSWORD_VARIABLE) or None
    options, problems = section(PageOptions, given), list(given.problems)
    if not Path(options.root).is_dir():
        problems.append(
            f"--root {shown(options.root)} is not a directory: give one with bases, data and runs below it."
        )
    if options.password == "":
        problems.append("--password is empty: give one, or leave the flag out.")
    if not options.is_local and not options.password:
        problems.append(
            f"--host {shown(options.host)} lets other machines use the page: give --password or {PASSWORD_VARIABLE}."
        )
    return options, problems


def is_ip(host: str) -> bool:
    """Whether a host is an IP address, with or without the brackets of a URL."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def check_installed() -> None:
    """Raise UserError without the packages of the extra."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"webui.py needs {', '.join(missing)}, not installed: {INSTALL}.")
