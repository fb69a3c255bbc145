"""How a program ends on a user's error or Ctrl-C: with one sentence and an exit code."""

import os
import signal
import sys
import time
from collections.abc import Callable

from terminal import protect_output


class UserError(ValueError):
    """Errors the user can fix, one sentence each: the value, its flag or file:line, and the remedy.

    Entry points print it without a traceback and exit with code 2. Several sentences become a numbered list.
    """

    def __init__(self, *sentences: str):
        super().__init__(*sentences)
        self.sentences = sentences

    def __str__(self) -> str:
        if len(self.sentences) == 1:
            return self.sentences[0]
        lines = (f"{number}. {sentence}" for number, sentence in enumerate(self.sentences, 1))
        return "\n".join([f"{len(self.sentences)} problems:", *lines])


def run_program(main: Callable[[], None]) -> None:
    """Call an entry point; a UserError or Ctrl-C becomes one line on stderr (once per machine), not a traceback.

    Neither the terminal's encoding nor a closed pipe stops `main` (see `protect_output`).

    Exit codes: 2 after a UserError, 130 after Ctrl-C.
    """
    protect_output()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            await_launcher(20)  # most errors occur on all ranks: the first one prints it and exits
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process without a traceback until the next `run_program`, while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as after nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def await_launcher(seconds: float) -> None:
    """Sleep; the launcher ends all ranks when the first one exits."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training's own handler would note it and continue
    time.sleep(seconds)
