"""data/files.py and data/tables.py: kinds of files that people have, and what is no file of records."""

import csv
import datetime
import gzip
import io
import json
import sys
import tarfile
import zipfile

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from conversation import as_read, messages_of
from data.files import SIGNATURES
from data.formats import ANY
from data.records import read_records, scan_records
from data.tally import Tally
from errors import UserError

ROWS = [
    {"instruction": "抽取，“三元组”", "input": "a\nb", "output": "一,二"},
    {"instruction": "q", "input": "", "output": "a"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=2).encode()


def table(delimiter, dialect="excel"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), dialect=dialect, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def sheet(rows=ROWS):
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(file)
    return file.getvalue()


def parquet(rows=ROWS):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


KINDS = {
    "lines.jsonl": LINES,
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "array.json": ARRAY,
    "lines.jsonl.gz": gzip.compress(LINES),
    "array.json.gz": gzip.compress(ARRAY),
    "lines": gzip.compress(LINES),  # the content tells, not the name
    "table.csv": table(","),
    "marked.csv": b"\xef\xbb\xbf" + table(","),
    "unix.csv": table(",", "unix"),
    "table.csv.gz": gzip.compress(table(",")),
    "table.tsv": table("\t"),
    "TABLE.TSV": table("\t"),
    "table.parquet": parquet(),
    "00000-of-00001": parquet(),
    "table.xlsx": sheet(),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(name, tmp_path):
    path, tally = tmp_path / name, Tally()
    path.write_bytes(KINDS[name])
    records = [record for _, record in read_records(path, tally=tally)]
    texts = [[message["content"] for message in messages_of(record)] for record in records]
    assert texts == [[row["instruction"] + row["input"], row["output"]] for row in ROWS]
    assert (tally.read, tally.refused, tally.formats) == (2, 0, {"instruction/output": 2})


def test_conversations_in_tables(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "chats.parquet"
    path.write_bytes(parquet([{"messages": turns, "day": datetime.date(2026, 1, 2), "n": 1}]))
    [(line, record)] = read_records(path)
    assert (line, messages_of(record)) == (1, turns) and as_read(record)["day"] == "2026-01-02"
    path = tmp_path / "chats.csv"
    path.write_text('messages,id\n"' + json.dumps(turns).replace('"', '""') + '",1\n')
    [(line, record)] = read_records(path)
    assert (line, messages_of(record)) == (2, turns)


def test_numbers_of_a_sheet_are_texts(tmp_path):
    path = tmp_path / "table.xlsx"
    path.write_bytes(sheet([{"question": 1, "answer": 2.0}, {"question": None, "answer": None}, {"q": 1.5, "a": True}]))
    texts = [[message["content"] for message in messages_of(record)] for _, record in read_records(path)]
    assert texts == [["1", "2"], ["1.5", "True"]]


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.json", LINES)
    return file.getvalue()


def tarred(mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("a.json"))
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SPREAD = json.dumps(ROWS[0], indent=2).encode()
NOT_RECORDS = {
    "pointer.json": (POINTER, "git-lfs pointer"),
    "pointer.parquet": (POINTER, "git-lfs pointer"),
    "spread.json": (SPREAD, "over several lines"),
    "spreads.jsonl": (SPREAD + b"\n" + SPREAD, "over several lines"),
    "squad.json": (json.dumps({"data": ROWS}, indent=1).encode(), "over several lines"),
    "utf16.json": (LINES.decode().encode("utf-16"), "UTF-16"),
    "utf16.csv": (table(",").decode().encode("utf-16"), "UTF-16"),
    "all.zip": (zipped(), "zip archive"),
    "all.json": (zipped(), "zip archive"),
    "not.xlsx": (LINES, "not what its name says"),
    "cut.xlsx": (sheet()[:2000], "cannot be read as XLSX"),
    "zip.xlsx": (zipped(), "cannot be read as XLSX"),
    "cut.parquet": (parquet()[:-20], "cannot be read as Parquet"),
    "all.tar": (tarred(), "tar archive"),
    "all.tgz": (tarred("w:gz"), "tar archive"),
    "cut.gz": (gzip.compress(LINES * 1000)[:-100], "broken gzip"),
    "page.json": (b"<!DOCTYPE html><html>", "web page"),
    "old.xls": (b"\xd0\xcf\x11\xe0" + bytes(100), "Excel file of the old kind"),
    "twice.csv": (b"a,a\n1,2\n", 'the column name "a" is given twice'),
    "unnamed.csv": (b"instruction,,output\n1,2,3\n", "column 2 has no name"),
    "wide.csv": (b"question,answer\nq,a,b\n", "the row has 3 cells for 2 named columns"),
    "semicolons.csv": (b"question;answer\nq;a\n", "the columns are separated by ';'"),
    "commas.tsv": (b"question,answer\nq,a\n", "the columns are separated by ','"),
    "workbook.json": (sheet(), "an Excel workbook under another name"),
    "quotes.csv": (b'question,answer\n"q,a\n', "not a row of a table"),
    "gbk.csv": ("question,answer\n问,答\n".encode("gbk"), ":2: byte 1 of the line (0xce) is not UTF-8"),
    "header.csv": (b"question,answer\n", "holds no record"),
    "empty.csv": (b"", "holds no record"),
    "empty.gz": (gzip.compress(b""), "holds no record"),
}


@pytest.mark.parametrize("name", NOT_RECORDS)
def test_what_is_no_file_of_records_is_named_once(name, tmp_path):
    content, said = NOT_RECORDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_records(path))
    assert said in str(caught.value) and str(caught.value).startswith(str(path)) and str(caught.value).endswith(".")
    try:
        problems = [result for _, result in scan_records(path) if isinstance(result, UserError)]
    except UserError as problem:
        problems = [problem]
    assert [str(problem) for problem in problems] == [str(caught.value)]


@pytest.mark.parametrize(("offset", "signature", "kind"), SIGNATURES)
def test_signatures(offset, signature, kind, tmp_path):
    path = tmp_path / "records.json"
    path.write_bytes(bytes(offset).replace(b"\0", b"x") + signature + bytes(300))
    with pytest.raises(UserError, match="records.json is ") as caught:
        read_records(path)
    assert kind in str(caught.value)


def test_two_sheets(tmp_path):
    book = openpyxl.Workbook()
    for page in (book.active, book.create_sheet("更多")):
        page.append(["question", "answer"])
    book.create_sheet("空")
    book.save(tmp_path / "two.xlsx")
    with pytest.raises(UserError, match='has 2 sheets .*"更多".*a file of its own'):
        list(read_records(tmp_path / "two.xlsx"))


@pytest.mark.parametrize(("name", "package"), [("table.parquet", "pyarrow"), ("table.xlsx", "openpyxl")])
def test_without_the_package(name, package, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install .*\[tables\]"):
        list(read_records(path, columns=ANY))
