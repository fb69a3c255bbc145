"""Open a file of records, compressed or not, and recognize its kind; the error about any other file names its kind.

kind_of(path)                 # "lines", "array", "csv", "tsv", "parquet" or "xlsx"
with open_bytes(path) as file: …
"""

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import BinaryIO

from errors import UserError
from files import read_problem

BLOCK = 2**20  # bytes per read when skipping to the end of a line
BOM = b"\xef\xbb\xbf"
HEAD = 4096  # bytes from which the kind of a file is recognized
GZIP = b"\x1f\x8b"
BROKEN_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
WEB_PAGE = "a web page, not the file itself; download the file again"
IMAGE = "an image, which these models cannot read; name a file of texts"
# (offset, bytes, kind and remedy)
SIGNATURES = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch the file with git lfs pull"),
    (0, b"PK\x03\x04", "a zip archive; unpack it and name the file in it"),
    (0, b"Rar!", "a RAR archive; unpack it and name the file in it"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it and name the file in it"),
    (0, b"BZh", "compressed with bzip2; unpack it with bunzip2"),
    (0, b"\xfd7zXZ", "compressed with xz; unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with unzstd"),
    (257, b"ustar", "a tar archive; unpack it and name the file in it"),
    (0, b"ARROW1", "an Arrow file; save the data set as Parquet or JSON lines"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream; save the data set as Parquet or JSON lines"),
    (0, b"\xd0\xcf\x11\xe0", "an Excel file of the old kind (.xls); save it as .xlsx or CSV"),
    (0, b"\x89PNG", IMAGE),
    (0, b"\xff\xd8\xff", IMAGE),
    (0, b"GIF8", IMAGE),
    (0, b"%PDF", "a PDF; write questions and answers as JSON lines"),
    (0, b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (0, b"\x93NUMPY", "a NumPy file; write the texts as JSON lines"),
    *((0, b"\x80" + bytes([protocol]), "a pickle, which is not loaded; write JSON lines") for protocol in (2, 3, 4, 5)),
    (0, b"<!DOCTYPE", WEB_PAGE),
    (0, b"<!doctype", WEB_PAGE),
    (0, b"<html", WEB_PAGE),
)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def check_readable(path: Path) -> None:
    """Raise UserError unless `path` is a regular file that can be opened."""
    if problem := read_problem(path):
        raise UserError(f"{path} {problem}.")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file to read, decompressed if it is gzip; reading may then raise BROKEN_GZIP."""
    file = path.open("rb")
    is_gzip = file.read(len(GZIP)) == GZIP
    file.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb")) if is_gzip else file


def decode(raw: bytes, place: str) -> str:
    """Decode a line. Raises UserError, which starts with `place`, if it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; save the file as "
            "UTF-8 (for a GBK file: iconv -f GB18030 -t UTF-8)."
        ) from None


def kind_of(path: Path) -> str:
    """The kind of a file of records: "lines", "array", "csv", "tsv", "parquet" or "xlsx".

    Raises:
        UserError: it cannot be read, or is of another kind, which the error names.
    """
    check_readable(path)
    try:
        with open_bytes(path) as file:
            head = file.read(HEAD)
            start = head.removeprefix(BOM)
            while start and not start.strip():
                start = file.read(BLOCK)
    except BROKEN_GZIP as error:
        raise broken_gzip(path, error) from None
    name = path.name.lower().removesuffix(".gz")
    if head.startswith(b"PAR1"):
        return "parquet"
    if name.endswith((".xlsx", ".xlsm")) and head.startswith(b"PK"):
        return "xlsx"
    if head.startswith(b"PK") and (b"[Content_Types].xml" in head or b"xl/" in head):
        raise UserError(f"{path} is an Excel workbook under another name; rename it to .xlsx.")
    for offset, signature, description in SIGNATURES:
        if head[offset:].startswith(signature):
            raise UserError(f"{path} is {description}.")
    if head.startswith(UTF_16) or (len(head) > 3 and max(head[0:64:2].count(0), head[1:64:2].count(0)) > 12):
        raise UserError(f"{path} is UTF-16 or another binary code; save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
    if name.endswith((".csv", ".tsv")):
        return name[-3:]
    if name.endswith((".parquet", ".xlsx", ".xlsm")):
        raise UserError(f"{path} is not what its name says; save it again.")
    start = start.strip()
    if is_spread(start):
        raise UserError(
            f"{path} holds a JSON object over several lines; write one object per line (jq -c . FILE) or one array."
        )
    return "array" if start[:1] == b"[" else "lines"


def is_spread(start: bytes) -> bool:
    """Whether a file starts with a JSON object over several lines, as pretty-printers write it."""
    first, line_end, rest = start.partition(b"\n")
    first = first.rstrip()
    if not (line_end and first.startswith(b"{") and first.endswith((b"{", b"[", b",", b":"))):
        return False
    try:
        json.loads(first)
        return False
    except (ValueError, RecursionError):
        return rest.lstrip()[:1] in (b'"', b"}")


def broken_gzip(path: Path, error: Exception) -> UserError:
    """The error about a truncated or damaged gzip file."""
    return UserError(f"{path} is a broken gzip file ({error}); download it again.")
