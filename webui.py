"""A page in the browser: train, watch, chat side by side, merge and export.

python webui.py
python webui.py --root /data/glm --port 7860
CHATGLM_PASSWORD=secret python webui.py --root /data/glm --host 0.0.0.0

Runs that it starts are processes of their own: they continue when the page, or this program, ends. docs/web.md.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from errors import end_on_interrupt, run_program
from options.parser import refuse
from options.webui import check_installed, parse_webui

if __name__ == "__main__":
    run_program(lambda: refuse(parse_webui()[1]))
    run_program(check_installed)
    end_on_interrupt()

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local

from runs.places import Root
from serving.hosting import ChatModels
from serving.server import Received, address_error, bind, make_server, run, url_of
from web.app import make_app

SEND_SECONDS = 600.0  # after which a connection is closed whose client takes nothing


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    options, problems = parse_webui(argv)
    refuse(problems)
    with bind(options.host, options.port, SEND_SECONDS) as listener:
        announcement = (
            f"The page is at {url_of(listener)} and shows {Path(options.root).resolve()}; kill {os.getpid()} or Ctrl-C "
            "ends it, runs continue."
        )
        root = Root.at(options.root)
        models = ChatModels(root)
        server = make_server(make_app(options, root, models), announcement)
        try:
            run(server, listener, end)
        except OSError as error:
            raise address_error(options.host, options.port, error) from None
        finally:
            models.close()


async def end(received: Received) -> None:
    """Nothing is waited for: runs are processes of their own."""


if __name__ == "__main__":
    run_program(main)
