"""The one exception that a user's input can cause, and how an entry point ends on it."""

import os
import sys
import time
from collections.abc import Callable


class UserError(ValueError):
    """What a user can mend, in one sentence: the value, its flag or file:line, and the remedy.

    Entry points print it without a traceback and exit with code 2.
    """


def run(main: Callable[[], None]) -> None:
    """Call an entry point; a UserError becomes one line on stderr (once per machine) and exit code 2."""
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(20)  # the launcher ends all ranks when the first one leaves: let that be the one that prints
        else:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
