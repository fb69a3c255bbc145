"""The form of an error that a user can fix."""

import re

LINE_ENDS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def check_sentence(error, path=None):
    """One line, which ends as a sentence and names the file where there is one."""
    text = str(error)
    assert not LINE_ENDS.search(text) and text.endswith((".", "?")), text
    assert len(text) < 1500, len(text)
    text.encode()  # no half of a surrogate pair
    assert path is None or str(path) in text, text
