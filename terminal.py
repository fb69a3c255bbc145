"""Output that never ends a program: any encoding, a closed pipe, a closed terminal.

protect_output()    # once, first of all; `errors.run_program` calls it for every program
"""

import errno
import io
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # part of Python since 3.12
    from typing_extensions import Buffer

GONE = (errno.EPIPE, errno.EIO)  # the pipe has no reader (`| head`); the terminal was closed


class _Output(io.FileIO):
    """A file descriptor that is redirected to /dev/null when its reader is gone, so that the work continues."""

    def write(self, content: "Buffer") -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(content).nbytes


def protect_output() -> None:
    """Print "?" for characters that the encoding lacks, and drop output that has no reader.

    The exit code is that of the work. Streams of a notebook or a test stay unchanged.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr)
    logging.raiseExceptions = False  # handlers keep the streams that they were made with


def _protected(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A stream over the same file descriptor. The user's error handler (PYTHONIOENCODING=gbk:ignore) stays."""
    stream.flush()
    if stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")  # of the old one too: log handlers hold it
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
