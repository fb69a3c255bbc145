"""What a chat shows and reads: a terminal with colors, or pipes without decoration.

In a pipe, answers alone are on standard output; notes, calls of tools and questions to the user are on standard error.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chatting.lines import LineReader, Words, is_terminal, read_plain
from errors import UserError

QUOTES = '"""'
# A model may generate control characters, which would change the terminal's state: they are shown as symbols.
SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
SYMBOLS |= dict.fromkeys(range(0x80, 0xA0), 0x2426)


class Screen:
    """The terminal, or standard output and error.

    Args:
        read_line: reads a line.
        interactive: whether a user sits at a terminal.
    """

    def __init__(self, read_line: LineReader, interactive: bool):
        self.read_line = read_line
        self.interactive = interactive
        # rich's own test of the encoding: boxes of ASCII where it is not UTF-8
        self.console = Console(file=sys.stdout if interactive else sys.stderr, highlight=False, soft_wrap=False)

    def read(self, prompt: str, is_reply: bool = False) -> str:
        """A line, or several between three quotation marks, joined. Raises as `LineReader`.

        Raises UserError if the input ends between quotation marks.
        """
        line = self.read_line(prompt, is_reply)
        if not line.lstrip().startswith(QUOTES):
            return line
        text = line.lstrip().removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            try:
                text += "\n" + self.read_line("... ", is_reply)
            except EOFError:
                raise UserError(f"The lines after {QUOTES} have no end: end them with {QUOTES}.") from None
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def write(self, text: str) -> None:
        """Show a piece of an answer."""
        sys.stdout.write(text.translate(SYMBOLS) if self.interactive else text)
        sys.stdout.flush()

    def end_line(self) -> None:
        """End an answer's last line."""
        self.write("\n")

    def note(self, text: str) -> None:
        """Show a sentence about the chat."""
        self.console.print(Text(text, style="dim" if self.interactive else ""), soft_wrap=True)

    def error(self, text: str) -> None:
        """Show an error."""
        self.console.print(Text(f"error: {text}", style="red" if self.interactive else ""), soft_wrap=True)

    def table(self, rows: Mapping[str, str]) -> None:
        """Show names and texts in two columns."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows.items():
            table.add_row(Text(name, style="bold"), Text(text))
        self.console.print(table)

    def call(self, name: str, content: str) -> None:
        """Show a call of a tool."""
        self.console.print(Panel(Text(content), title=escape(name), title_align="left", expand=False))

    def confirm(self, question: str) -> bool:
        """Ask a question that only y or yes affirms. Raises as `LineReader`."""
        self._show(question)
        return self.read_line(f"{question} [y/N] ", is_reply=True).strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str:
        """Ask for a text. Raises as `LineReader`."""
        self._show(question)
        return self.read(question, is_reply=True)

    def _show(self, question: str) -> None:
        """Show a question where the reader of lines does not."""
        if not self.interactive:
            self.note(question)

    def columns(self, answers: Mapping[str, Iterator[str]]) -> None:
        """Show texts beside each other while they grow, one after the other; without a terminal below each other."""
        texts = dict.fromkeys(answers, "")
        if not self.interactive:
            for name, pieces in answers.items():
                self.write(f"{name}: ")
                for piece in pieces:
                    self.write(piece)
                self.end_line()
            return
        with Live(self._beside(texts), console=self.console, refresh_per_second=10, transient=True) as live:
            for name, pieces in answers.items():
                for piece in pieces:
                    texts[name] += piece.translate(SYMBOLS)
                    live.update(self._beside(texts))
        self.console.print(self._beside(texts))

    @staticmethod
    def _beside(texts: Mapping[str, str]) -> Table:
        table = Table(expand=True)
        for name in texts:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in texts.values()))
        return table


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on Ctrl-C, instead of raising KeyboardInterrupt in the middle of anything."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def make_screen(words: Callable[[], Words]) -> Screen:
    """The screen of this process.

    Args:
        words: () -> what can be completed.
    """
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # a TextIOWrapper
    interactive = is_terminal()
    if not interactive or os.environ.get("TERM", "dumb") == "dumb":
        return Screen(read_plain, interactive)
    if find_spec("prompt_toolkit") is None:
        screen = Screen(read_plain, interactive)
        screen.note("For history, completion and an editor, install: pip install -c constraints.txt -e '.[chat]'.")
        return screen
    from chatting.editor import make_reader  # an optional dependency, and only for terminals

    return Screen(make_reader(words), interactive)
