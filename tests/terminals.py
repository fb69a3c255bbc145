"""A program in a terminal of its own, which a test reads and types into."""

import os
import pty
import re
import select
import subprocess
import termios
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-B0-2]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Terminal:
    """A process whose terminal is a new pty.

    Args:
        command: words. changes: environment variables.
    """

    def __init__(self, command, environment, cwd):
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=environment, stdin=slave, stdout=slave, stderr=slave,
            preexec_fn=lambda: os.login_tty(slave),
        )  # fmt: skip
        os.close(slave)
        self.output = ""  # all of it, without escape sequences
        self._bytes = b""
        self._seen = 0  # characters of `output` that `wait_for` has passed

    def type(self, text: str) -> None:
        """Send keys; "\\r" is Enter, "\\x03" Ctrl-C."""
        os.write(self.master, text.encode())

    def enter(self, text: str) -> None:
        """Type a line."""
        self.type(text + "\r")

    def _read(self, seconds: float) -> bool:
        """Read what there is. Returns whether the terminal is still open."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            content = os.read(self.master, 65536)
        except OSError:
            return False
        if b"\x1b[6n" in content:  # prompt_toolkit asks where the cursor is
            os.write(self.master, b"\x1b[1;1R")
        self._bytes += content
        self.output = ESCAPES.sub("", self._bytes.decode("utf-8", "replace"))
        return bool(content)

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """Wait for a text after those that were waited for; returns what is in front of it."""
        give_up = time.monotonic() + timeout
        while text not in self.output[self._seen :]:
            is_open = self._read(0.01)
            late = time.monotonic() > give_up
            assert is_open and not late, f"{text!r} does not come after {self.output[self._seen :][-500:]!r}"
        end = self.output.index(text, self._seen)
        before, self._seen = self.output[self._seen : end], end + len(text)
        return before

    def wait_for_more(self, characters: int, timeout: float = 60) -> None:
        """Wait until there are so many more characters of output."""
        goal, give_up = len(self.output) + characters, time.monotonic() + timeout
        while len(self.output) < goal:
            assert self._read(0.01) and time.monotonic() < give_up, f"no more comes after {self.output[-200:]!r}"

    def finish(self, timeout: float = 60) -> int:
        """The exit code, after all output."""
        give_up = time.monotonic() + timeout
        while self._read(0.05) and time.monotonic() < give_up:
            pass
        return self.process.wait(max(give_up - time.monotonic(), 1))

    def close(self) -> None:
        """End the process and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
