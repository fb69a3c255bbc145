"""The one exception that a user's input can cause."""


class UserError(ValueError):
    """What a user can mend, in one sentence: the value, its flag or file:line, and the remedy.

    Entry points print it without a traceback and exit with code 2.
    """
