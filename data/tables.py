"""Tables of records: CSV, TSV, Parquet and XLSX. A column's name is the key; an empty cell means no value.

Parquet needs pyarrow and XLSX needs openpyxl (the extra "tables").
"""

import csv
import datetime
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from zipfile import BadZipFile

from data.files import BOM, decode, open_bytes
from data.values import quoted
from errors import UserError
from texts import one_line

INSTALL = 'pip install -c constraints.txt -e ".[tables]"'
ROWS = 1024  # rows per read of a Parquet file


def read_table(path: Path, kind: str, longest: int) -> Iterator[tuple[int, str, object]]:
    """(line or row, place, record or UserError) of every row that is not blank.

    Args:
        kind: "csv", "tsv", "parquet" or "xlsx". longest: maximum characters of a cell in a CSV file.

    Raises:
        UserError: the file cannot be read.
    """
    if kind == "parquet":
        return parquet_rows(path)
    if kind == "xlsx":
        return with_header(path, sheet_rows(path))
    return with_header(path, csv_rows(path, "," if kind == "csv" else "\t", longest))


def with_header(path: Path, rows: Iterable[tuple[int, list | UserError]]) -> Iterator[tuple[int, str, object]]:
    """Convert rows to records whose keys are the cells of the first row."""
    header: list[str] = []
    for line, cells in rows:
        place = f"{path}:{line}"
        if isinstance(cells, UserError):
            yield line, place, cells
            return
        if not any(cell not in (None, "") for cell in cells):
            continue
        if not header:
            header = [str("" if cell is None else cell).strip() for cell in cells]
            while header and not header[-1]:
                header.pop()
            check_header(header, place)
        elif any(cell not in (None, "") for cell in cells[len(header) :]):
            yield (
                line,
                place,
                UserError(
                    f"{place}: the row has {len(cells)} cells for {len(header)} named columns; quote such texts."
                ),
            )
        else:
            yield line, place, dict(zip(header, cells, strict=False))


def check_header(header: list[str], place: str) -> None:
    """Raise UserError unless all columns have distinct names."""
    if "" in header:
        raise UserError(
            f"{place}: column {header.index('') + 1} has no name; give it one, or remove it (pandas writes its index "
            "without a name unless index=False is set)."
        )
    duplicates = [name for name in header if header.count(name) > 1]
    if duplicates:
        raise UserError(f"{place}: the column name {quoted(duplicates[:1])} is given twice; rename one of them.")
    separator = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
    if separator:
        raise UserError(
            f"{place}: the columns are separated by {separator!r}; write commas in a .csv file, and tabs in a .tsv "
            "file."
        )


def csv_rows(path: Path, delimiter: str, longest: int) -> Iterator[tuple[int, list | UserError]]:
    """(first line of a row, its cells) of a CSV file in UTF-8."""
    csv.field_size_limit(longest)
    with open_bytes(path) as file:
        reader = csv.reader(decoded_lines(path, file), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield line, UserError(f"{path}:{line}: not a row of a table ({error}); correct its quotes.")
                return
            except UserError as problem:
                yield line, problem
                return
            if cells is None:
                return
            yield line, cells


def decoded_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a UTF-8 file. Raises UserError at the first invalid line."""
    for line, raw in enumerate(file, 1):
        yield decode(raw.removeprefix(BOM) if line == 1 else raw, f"{path}:{line}")


def parquet_rows(path: Path) -> Iterator[tuple[int, str, object]]:
    """Rows of a Parquet file, numbered from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} is a Parquet file, which needs pyarrow: {INSTALL}.") from None
    numbers = count(1)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    line = next(numbers)
                    yield line, f"{path}:{line}", {key: plain(cell) for key, cell in row.items()}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({one_line(error)}); download it again.") from None


def sheet_rows(path: Path) -> Iterator[tuple[int, list]]:
    """(row, its cells as texts) of the only non-empty sheet of an XLSX file."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(f"{path} is an XLSX file, which needs openpyxl: {INSTALL}.") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        filled = [sheet for sheet in book.worksheets if next(sheet.iter_rows(values_only=True), ())]
        if len(filled) > 1:
            raise UserError(
                f"{path} has {len(filled)} sheets ({quoted(sheet.title for sheet in filled)}); save the one to read as "
                "a file of its own."
            )
        for sheet in filled:
            for row, cells in enumerate(sheet.iter_rows(values_only=True), 1):
                yield row, [cell_text(cell) for cell in cells]
        book.close()
    except (BadZipFile, KeyError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as XLSX ({error}); save it again.") from None


def cell_text(cell: object) -> str | None:
    """A cell as text; numbers and dates, too, because spreadsheet programs choose the type of a cell."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return str(cell)


def plain(value: object) -> object:
    """Convert a value of a Parquet file for JSON: dates and bytes become texts."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
