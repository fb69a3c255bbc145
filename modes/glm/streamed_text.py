"""ChatGLM-6B: when decoded text is final, although its tokenizer replaces whitespace pieces and removes spaces."""

import re

from modes.streamed_text import StreamedText

# Up to this many characters after a space decide whether transformers' `clean_up_tokenization` removes the space.
AFTER_SPACE = 3
REMOVES_SPACE = re.compile(r" [.?!,'ntmsver]{0,2}$")  # shorter texts than AFTER_SPACE
BEGUN_PIECE = re.compile(r"<(n|\|[a-z]*(_[0-9]{0,2})?\|?)?$")  # the start of <n>, <|tab|> or <|blank_8|>


class GlmStreamedText(StreamedText):
    """Text is final unless it ends within a whitespace piece, or shortly after a space."""

    def is_final(self, text: str) -> bool:
        return not REMOVES_SPACE.search(text) and not BEGUN_PIECE.search(text)
