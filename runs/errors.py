"""Why something cannot be done to the runs below a root; the page answers each with a status of its own."""

from errors import UserError


class Refused(UserError):
    """A request that cannot be carried out as it is. field: what it is about. code: a word for programs."""

    def __init__(self, sentence: str, field: str | None = None, code: str | None = None):
        super().__init__(sentence)
        self.field, self.code = field, code


class Outside(Refused):
    """A path that is outside of the root, or that may not be read."""


class Missing(Refused):
    """There is no such run, directory or file."""


class Conflict(Refused):
    """Something that exists or runs already is in the way."""


class Failed(Refused):
    """A process that had to answer did not."""
