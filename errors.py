"""How an entry point ends on what is no bug of ours: a user's mistake, or Ctrl-C."""

import os
import signal
import sys
import time
from collections.abc import Callable

from terminal import protect_output


class UserError(ValueError):
    """What the user can fix, each in one sentence: the value, its flag or file:line, and the remedy.

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
    """Call an entry point; what is no bug becomes one line on stderr (once per machine) instead of a traceback.

    Whatever the terminal can show and whoever reads (see `protect_output`), `main` runs to its end.

    Exit codes: 2 after a UserError, 130 after Ctrl-C.
    """
    protect_output()
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            await_launcher(20)  # most errors are those of all ranks: the first one says it and leaves
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def first_line(error: Exception) -> str:
    """What a library says, without the rest of its paragraph; the error's type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def await_launcher(seconds: float) -> None:
    """Sleep; the launcher ends all ranks when the first one leaves."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training notes it and goes on
    time.sleep(seconds)
