"""Tokenize a file of records once to flat arrays of token ids on disk, and memory-map them.

    directory = tokenize_file("data/spo_0.json", encode_batch, cache_dir, key="glm3 max_len=1560 ...")
    dataset = TokenizedDataset(directory)
    dataset[0]  # {"input_ids": int64 [s], "labels": int64 [s]}

The directory is named by a hash of the file's content and `key`, so a file is tokenized once per setting by all ranks
and runs. Its files are raw little-endian arrays (n records, t tokens in all):

    input_ids.u32 [t]   supervised.u8 [t]   offsets.i64 [n + 1]   counts.i64 [n]   truncated.u8 [n]   empty.u8 [n]
    lines.i64 [n]   objects.i64 [n]

and meta.json, which has the counts of the file's objects (`Tally`).
"""

import copy
import errno
import gc
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conversation import has_empty_answer
from data.dataset import Sample
from data.files import check_readable
from data.records import read_records
from data.tally import Tally
from errors import UserError
from files import own_temporary_directory, sync_directory, try_to_write

FORMAT = 3  # incremented when the meaning of the files changes
IGNORE = -100  # the label of a position that is not supervised
CHUNK = 4096  # records encoded and written at a time, so that memory does not grow with the file
BAR_AFTER = 3.0  # seconds before a progress bar is shown without a terminal
ARRAYS = {"input_ids": "<u4", "supervised": "u1", "offsets": "<i8", "counts": "<i8", "truncated": "u1", "empty": "u1",
          "lines": "<i8", "objects": "<i8"}  # fmt: skip


def tokenize_file(
    path: str | os.PathLike,
    encode_batch: Callable[[list[dict]], list[dict] | dict[str, np.ndarray]],
    cache_dir: str | os.PathLike,
    *,
    key: str,
    read: Callable[..., Iterator[tuple[int, dict]]] = read_records,
    every_answer: bool = False,
    chunk: int = CHUNK,
) -> Path:
    """Encode every record of `path` and return the finished directory of arrays.

    The arrays are written under a temporary name and renamed, so a directory under its final name is complete. If two
    processes race, both return the directory of one of them.

    Args:
        encode_batch: records -> dicts of "input_ids" (list of int), "labels" (the same, or -100 if not supervised) and
            "truncated" (bool), one per record; or arrays of all records, which is faster: "input_ids" (int [t]),
            "supervised" (bool [t]), "lengths" (int [n]), "truncated" (bool [n]). Called in a thread, one chunk at a
            time.
        cache_dir: parent of the directories of all files; created if needed. If it is not writable, this user's
            directory in the temporary directory is used instead, with a line on stderr.
        key: everything besides the file that changes the result (mode, lengths, tokenizer hash).
        read: (path, tally=Tally) -> (line, record) of every row.
        every_answer: whether all answers of a conversation are supervised, so that any empty one counts.
        chunk: records per call of `encode_batch`.

    Raises:
        UserError: the file or one of its lines is invalid, or no directory is writable.
    """
    path = Path(path)
    check_readable(path)
    before = path.stat()
    digest, num_lines = _hash_file(path, key)
    cache_dir = _writable(Path(cache_dir), digest)
    final = cache_dir / digest
    if is_complete(final):
        return final

    temporary = cache_dir / f"{digest}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir()
        with _no_collection():
            tally = Tally()
            rows = numbered_rows(read(path, tally=tally), tally, every_answer)
            _write_arrays(temporary, path, rows, tally, encode_batch, num_lines, chunk)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise UserError(f"{path} was changed while it was read; run again when it is finished.")
        sync_directory(temporary)
        _publish(temporary, final)
    except OSError as error:
        raise UserError(
            f"cannot write tokenized data to {cache_dir} ({error.strerror}); "
            "free some space there or name another directory with --data_cache_dir."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable the cyclic GC: records create no cycles, and scanning took nearly half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_complete(directory: Path) -> bool:
    """Whether `directory` is complete: it has meta.json, and every array has its size."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        return meta["format"] == FORMAT and all(
            _file(directory, name).stat().st_size == size for name, size in meta["bytes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.{np.dtype(ARRAYS[name]).kind}{np.dtype(ARRAYS[name]).itemsize * 8}"


def _hash_file(path: Path, key: str) -> tuple[str, int]:
    """sha256 over (format, key, content) and the number of lines, in one pass."""
    digest = hashlib.sha256(json.dumps([FORMAT, key]).encode())
    num_lines = 1
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            num_lines += block.count(b"\n")
    return digest.hexdigest(), num_lines


def _writable(cache_dir: Path, digest: str) -> Path:
    """`cache_dir`, or a directory in the temporary directory if `cache_dir` is not writable."""
    if is_complete(cache_dir / digest):  # a complete result can be read from a read-only directory
        return cache_dir
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        try_to_write(cache_dir)
        return cache_dir
    except OSError as error:
        reason = error.strerror
    try:
        fallback = own_temporary_directory() / "tokens"
        fallback.mkdir(exist_ok=True)
        try_to_write(fallback)
    except OSError as error:
        raise UserError(
            f"neither {cache_dir} ({reason}) nor a temporary directory ({error.strerror}) is writable; "
            "name a writable directory with --data_cache_dir."
        ) from None
    print(f"{cache_dir} cannot be written ({reason}): tokenized data goes to {fallback}.", file=sys.stderr)
    return fallback


def numbered_rows(
    rows: Iterator[tuple[int, dict]], tally: Tally, every_answer: bool
) -> Iterator[tuple[int, int, bool, dict]]:
    """(line, number of the object in the file from 1, whether an answer is empty, record) of every row."""
    for line, record in rows:  # `tally` has counted this row's object and no later one
        yield line, tally.read, has_empty_answer(record, every_answer), record


def _write_arrays(
    directory: Path, path: Path, rows: Iterator, tally: Tally, encode_batch: Callable, num_lines: int, chunk: int
) -> None:
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=num_lines,
        desc=f"tokenize {path.name}",
        unit=" lines",
        delay=0 if terminal else BAR_AFTER,
        mininterval=0.2 if terminal else 10.0,
    )
    files = {name: _file(directory, name).open("wb") for name in ARRAYS}
    num_records, end = 0, 0
    try:
        files["offsets"].write(np.zeros(1, ARRAYS["offsets"]).tobytes())
        for numbered, arrays in _encoded_chunks(rows, encode_batch, chunk):
            arrays["offsets"] = end + np.cumsum(arrays.pop("lengths"))
            for name, column in zip(("lines", "objects", "empty"), zip(*numbered, strict=True), strict=False):
                arrays[name] = np.array(column)
            for name, dtype in ARRAYS.items():
                files[name].write(arrays[name].astype(dtype).tobytes())  # not tofile: it hides a full disk
            num_records, end = num_records + len(numbered), int(arrays["offsets"][-1])
            bar.update(numbered[-1][0] - bar.n)
        bar.update(num_lines - bar.n)
    finally:
        bar.close()
        for file in files.values():
            file.close()
    counts = {"input_ids": end, "supervised": end, "offsets": num_records + 1}
    sizes = {name: counts.get(name, num_records) * np.dtype(dtype).itemsize for name, dtype in ARRAYS.items()}
    meta = {"format": FORMAT, "source": str(path), "rows": num_records, "tokens": end, "tally": asdict(tally)}
    meta["bytes"] = sizes
    (directory / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _encoded_chunks(rows: Iterator, encode_batch: Callable, size: int) -> Iterator[tuple[list, dict]]:
    """(a list of `numbered_rows`, their arrays) of `size` rows after `size` rows.

    A thread encodes one chunk while the next one is read: sentencepiece does not hold Python's lock.
    """
    before = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            while numbered := list(islice(rows, size)):
                work = thread.submit(_encode, [row[-1] for row in numbered], encode_batch)
                if before:
                    yield before[0], before[1].result()
                before = numbered, work
        except UserError:
            if before:
                before[1].result()  # errors of earlier records are raised first
            raise
    if before:
        yield before[0], before[1].result()


def _encode(records: list[dict], encode_batch: Callable) -> dict[str, np.ndarray]:
    """Flat arrays of one chunk, and `lengths` [n]."""
    rows = encode_batch(records)
    flat = rows if isinstance(rows, dict) else _flatten(rows)
    ids, supervised, lengths = flat["input_ids"], flat["supervised"], flat["lengths"]
    assert len(lengths) == len(records), "encode_batch must return one row per record"
    assert lengths.min() > 0, "a row without a token"
    assert len(ids) == len(supervised) == lengths.sum() and ids.min() >= 0, "ids are counted from 0"
    starts = np.cumsum(lengths) - lengths
    counted = supervised.copy()
    counted[starts] = False  # no token predicts a first token
    return {**flat, "counts": np.add.reduceat(counted, starts, dtype=np.int64)}


def _flatten(rows: list[dict]) -> dict[str, np.ndarray]:
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int64)
    ids = np.fromiter(chain.from_iterable(row["input_ids"] for row in rows), np.int64, lengths.sum())
    labels = np.fromiter(chain.from_iterable(row["labels"] for row in rows), np.int64, lengths.sum())
    supervised = labels != IGNORE
    assert (labels[supervised] == ids[supervised]).all(), "a label is its own token's id or -100"
    truncated = np.array([row["truncated"] for row in rows], bool)
    return {"input_ids": ids, "supervised": supervised, "lengths": lengths, "truncated": truncated}


def _publish(temporary: Path, final: Path) -> None:
    """Rename a complete directory to its final name, unless another process (of any machine) was first.

    Raises:
        OSError: it cannot be renamed.
    """
    for _ in range(5):
        try:
            temporary.rename(final)
            return
        except OSError as error:
            if is_complete(final):
                return
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        # an incomplete directory has the final name; another process may move it away at the same time
        broken = temporary.with_suffix(".broken")
        with suppress(FileNotFoundError):
            final.rename(broken)
            shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
    raise FileExistsError(errno.EEXIST, f"{final.name} is replaced again and again by other processes")


class TokenizedDataset:
    """A view of a directory from `tokenize_file`; the token arrays stay on disk and are memory-mapped.

    Args:
        source: the file of its rows, for messages.

    Attributes:
        lengths: int64 [n], tokens of each row.
        supervised: int64 [n], supervised tokens of each row (labels[1:] != -100).
        truncated: bool [n], whether prompt or answer was truncated.
        empty: bool [n], whether an answer to train on is empty or white space.
        lines: int64 [n], the row's line in the source file, from 1.
        objects: int64 [n], the number of the row's object in the source file, from 1.
        tally: counts of the file's objects.
    """

    def __init__(self, directory: str | os.PathLike, source: str | os.PathLike = "line"):
        directory = Path(directory)
        self._source = source
        offsets = np.fromfile(_file(directory, "offsets"), ARRAYS["offsets"]).astype(np.int64)
        self._tokens = np.memmap(_file(directory, "input_ids"), ARRAYS["input_ids"], "r")
        self._mask = np.memmap(_file(directory, "supervised"), ARRAYS["supervised"], "r")
        self._starts = offsets[:-1]
        self.lengths = np.diff(offsets)
        self.supervised = np.fromfile(_file(directory, "counts"), ARRAYS["counts"]).astype(np.int64)
        self.truncated = np.fromfile(_file(directory, "truncated"), ARRAYS["truncated"]).astype(bool)
        self.empty = np.fromfile(_file(directory, "empty"), ARRAYS["empty"]).astype(bool)
        self.lines = np.fromfile(_file(directory, "lines"), ARRAYS["lines"]).astype(np.int64)
        self.objects = np.fromfile(_file(directory, "objects"), ARRAYS["objects"]).astype(np.int64)
        self.tally = Tally(**json.loads((directory / "meta.json").read_text())["tally"])

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        start, length = self._starts[index], self.lengths[index]
        ids = np.array(self._tokens[start : start + length], np.int64)
        labels = np.where(self._mask[start : start + length], ids, IGNORE)
        return {"input_ids": ids, "labels": labels}

    def place(self, index: int) -> str:
        """file:line of a row."""
        return f"{self._source}:{self.lines[index]}"

    def select(self, indices: np.ndarray | list[int]) -> "TokenizedDataset":
        """The rows at `indices`, in that order, over the same mapped tokens."""
        indices = np.asarray(indices, np.int64)
        view = copy.copy(self)
        view._starts, view.lengths, view.supervised = (
            self._starts[indices],
            self.lengths[indices],
            self.supervised[indices],
        )
        view.truncated, view.empty = self.truncated[indices], self.empty[indices]
        view.lines, view.objects = self.lines[indices], self.objects[indices]
        return view
