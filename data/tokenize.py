"""Turn a file of records into flat arrays of token ids, once, and look at them without loading them.

    directory = tokenize_file("data/spo_0.json", encode_batch, cache_dir, key="glm3 max_len=1560 ...")
    dataset = TokenizedDataset(directory)
    dataset[0]  # {"input_ids": int64 [s], "labels": int64 [s]}

The directory is named by the content of the file and by `key`, so the same file under the same settings is never
tokenised twice, by whichever rank or run. Its files are raw little-endian arrays (n records, t tokens in all):

    input_ids.u32 [t]   supervised.u8 [t]   offsets.i64 [n + 1]   counts.i64 [n]   truncated.u8 [n]   empty.u8 [n]
    lines.i64 [n]   objects.i64 [n]

and meta.json, which has what became of every object of the file (`Tally`).
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

FORMAT = 3  # raised when the meaning of the files changes
IGNORE = -100  # the label of a position that is not learnt
CHUNK = 4096  # records encoded and written at a time: memory does not grow with the file
BAR_AFTER = 3.0  # seconds without a terminal before a bar is worth its lines
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

    The arrays are written beside their final place and renamed, so a directory under its final name is complete, and
    of two processes that race one wins and both return the same directory.

    Args:
        encode_batch: records -> dicts of "input_ids" (list of int), "labels" (the same, or -100 where nothing is
            learnt) and "truncated" (bool), one per record; or the same of all of them as arrays, which is faster:
            "input_ids" (int [t]), "supervised" (bool [t]: is it learnt), "lengths" (int [n]), "truncated" (bool [n]).
            Called in a thread, by one chunk after the other.
        cache_dir: where the directories of all files are; made if need be. When it cannot be written a directory of
            this user under the system's temporary one serves, with a line on stderr.
        key: everything besides the file that changes the result (mode, lengths, tokenizer hash).
        read: (path, tally=Tally) -> (line, record) of every row.
        every_answer: whether all answers of a conversation are trained, so that any empty one counts.
        chunk: records handed to `encode_batch` at a time.

    Raises:
        UserError: the file or one of its lines is wrong, or nowhere can be written.
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
            f"cannot write tokenised data to {cache_dir} ({error.strerror}); "
            "free space there or name another place with --data_cache_dir."
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
    """Whether `directory` is a finished result: its description is there and every array has its size."""
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
    """`cache_dir`, or a directory under the temporary one when nothing can be created in it."""
    if is_complete(cache_dir / digest):  # a finished result can be used from a read-only place
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
            f"neither {cache_dir} ({reason}) nor a temporary directory ({error.strerror}) can be written; "
            "name a writable place with --data_cache_dir."
        ) from None
    print(f"{cache_dir} cannot be written ({reason}): tokenized data goes to {fallback}.", file=sys.stderr)
    return fallback


def numbered_rows(
    rows: Iterator[tuple[int, dict]], tally: Tally, every_answer: bool
) -> Iterator[tuple[int, int, bool, dict]]:
    """(line, number of the object in the file from 1, is an answer empty, record) of every row."""
    for line, record in rows:  # `tally` has counted this row's object and no later one
        yield line, tally.read, has_empty_answer(record, every_answer), record


def _write_arrays(
    directory: Path, path: Path, rows: Iterator, tally: Tally, encode_batch: Callable, num_lines: int, chunk: int
) -> None:
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=num_lines,
        desc=f"tokenise {path.name}",
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
                before[1].result()  # what is wrong with an earlier record comes first
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
    learnt = supervised.copy()
    learnt[starts] = False  # nothing stands in front of a first token that could predict it
    return {**flat, "counts": np.add.reduceat(learnt, starts, dtype=np.int64)}


def _flatten(rows: list[dict]) -> dict[str, np.ndarray]:
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int64)
    ids = np.fromiter(chain.from_iterable(row["input_ids"] for row in rows), np.int64, lengths.sum())
    labels = np.fromiter(chain.from_iterable(row["labels"] for row in rows), np.int64, lengths.sum())
    supervised = labels != IGNORE
    assert (labels[supervised] == ids[supervised]).all(), "a label is its own token's id or -100"
    truncated = np.array([row["truncated"] for row in rows], bool)
    return {"input_ids": ids, "supervised": supervised, "lengths": lengths, "truncated": truncated}


def _publish(temporary: Path, final: Path) -> None:
    """Rename a finished directory to its place, unless another process (of any machine) was there first.

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
        # something under the final name lost a part of itself; another process may move it away at the same time
        broken = temporary.with_suffix(".broken")
        with suppress(FileNotFoundError):
            final.rename(broken)
            shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
    raise FileExistsError(errno.EEXIST, f"{final.name} is replaced again and again by other processes")


class TokenizedDataset:
    """A view of a directory that tokenize_file made; the token arrays stay on disk and are mapped.

    Args:
        source: the file that its rows come from, for sentences to the user.

    Attributes:
        lengths: int64 [n], tokens of each row.
        supervised: int64 [n], tokens of each row that count in the loss (labels[1:] != -100).
        truncated: bool [n], whether prompt or answer was cut.
        empty: bool [n], whether an answer to train on is empty or white space.
        lines: int64 [n], the row's line in the source file, from 1.
        objects: int64 [n], the number of the row's object in the source file, from 1.
        tally: what became of every object of the file.
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
