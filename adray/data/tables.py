"""Tables of images in a file: CSV, TSV, Excel or parquet, each row with its number."""

from __future__ import annotations

import codecs
import csv
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.errors import InputError
from adray.language.sentence import Sentence, Value

TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".parquet")
"""What a table's name may end with, in lower case."""
_DELIMITERS = ",;\t|"
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    table: Path
    """The file."""
    number: int
    """As people count: the line of a text or sheet, or the place in a parquet file from 1 on."""
    cells: Mapping[str, str]
    """Texts by the name of their column."""

    def __getitem__(self, column: str) -> str:
        """Give the text in a column, empty where the table has no such column."""
        return self.cells.get(column, "")

    @property
    def place(self) -> Sentence:
        """Name the row for the user."""
        return Sentence.of("table row", table=str(self.table), number=self.number)

    @property
    def where(self) -> str:
        """Name the row in English."""
        return str(self.place)

    def refused(self, key: str, **values: Value) -> InputError:
        """Make the error of a row, with the sentence of a key in the catalogue without ``list``."""
        return InputError(Sentence.of(f"list {key}", where=self.place, **values))


def read_table(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Sequence[Row]:
    """Read the rows of a table with a header. Rows without any text are left out.

    A column is also known by a name with other capitals, or with spaces or hyphens between words.

    Args:
        path: the file, whose ending says what it is.
        columns: names that the header must have.
        optional: names that it may have.

    Raises:
        InputError: for a file that is missing or cannot be read, or a header without one of the
            columns or with one twice.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _refused("unreadable", path, error=str(error.strerror)) from None
    return _read_table(path, columns, optional, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_table(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...], size: int, mtime: int
) -> tuple[Row, ...]:
    """Read a table as it was of this size at this time."""
    lines = _read_lines(path)
    number, header = next(lines, (1, []))
    names = _known_names(header, columns + optional)
    _check_header(path, names, columns)

    rows = []
    for number, values in lines:
        cells = [_as_text(value) for value in values]
        if not any(cells):
            continue
        if len(cells) > len(names) and any(cells[len(names) :]):
            where = Sentence.of("table row", table=str(path), number=number)
            raise InputError(
                Sentence.of("table too_many", where=where, values=len(cells), columns=len(names))
            )
        padded = cells + [""] * (len(names) - len(cells))
        rows.append(Row(path, number, dict(zip(names, padded, strict=False))))
    return tuple(rows)


def read_header(path: Path, known: tuple[str, ...]) -> list[str]:
    """Give the names of a text table's columns, none where it cannot be read.

    Args:
        path: the file. What is no UTF-8 in it does not matter here.
        known: columns that may be spelt in another way, as `read_table` takes them.
    """
    try:
        _, header = next(_read_text(path, "replace"), (1, []))
    except InputError:
        return []
    return _known_names(header, known)


def _known_names(header: Sequence[Any], known: Sequence[str]) -> list[str]:
    """Give the names in a header, those that mean something as they are usually spelt."""
    names = [str(name).strip() for name in header]
    usual = {_spelling(name): name for name in known if name not in names}
    return [usual.get(_spelling(name), name) for name in names]


def _spelling(name: str) -> str:
    """Write a column's name as all its spellings share it, such as ``Image Path``."""
    return name.casefold().replace(" ", "_").replace("-", "_")


def _check_header(path: Path, names: list[str], columns: Iterable[str]) -> None:
    """Refuse a header without one of the columns, or with one twice.

    Raises:
        InputError: names the column.
    """
    for name in columns:
        if name not in names:
            there = ", ".join(filter(None, names)) or "-"
            raise _refused("column", path, name=name, columns=", ".join(columns), there=there)
    for name in names:
        if name and names.count(name) > 1:
            raise _refused("column_twice", path, name=name)


def _read_lines(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Give the lines of a table with their numbers, the header first.

    Raises:
        InputError: for a file that cannot be read as its ending says.
    """
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv", ".txt"):
        return _read_text(path)
    if ending == ".xlsx":
        return _read_excel(path)
    if ending == ".parquet":
        return _read_parquet(path)
    raise _refused("ending", path, ending=ending or "-")


def _read_text(path: Path, errors: str = "strict") -> Iterator[tuple[int, Sequence[str]]]:
    """Give the lines of a CSV or TSV file.

    Args:
        path: the file.
        errors: ``strict``, or ``replace`` to read what is no UTF-8 too.
    """
    try:
        with path.open(encoding=_encoding_of(path), errors=errors, newline="") as file:
            first = file.readline()
            # A first line for Excel alone may name the separator.
            above = int(first.lower().startswith("sep="))
            header = file.readline() if above else first

            file.seek(0)
            for _ in range(above):
                file.readline()
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=header.count))
            for values in reader:
                yield above + reader.line_num, values
    except (UnicodeError, csv.Error, OSError) as error:
        raise _refused("csv", path, error=str(error)) from None


def _encoding_of(path: Path) -> str:
    """Tell how a text was written: its "Unicode text" Excel begins with a mark of UTF-16."""
    with path.open("rb") as file:
        start = file.read(2)
    # Excel begins UTF-8 with a mark too, and separates by semicolons in some countries.
    return "utf-16" if start in _UTF_16_MARKS else "utf-8-sig"


def _read_excel(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Give the lines of the first sheet of an Excel file."""
    try:
        import openpyxl
    except ImportError:
        raise _refused("no_excel", path) from None

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises nearly anything on damaged files
        raise _refused("excel", path, error=str(error)) from None
    try:
        yield from enumerate(book.worksheets[0].iter_rows(values_only=True), start=1)
    finally:
        book.close()


def _read_parquet(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Give the lines of a parquet file, counted from the first below the header."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _refused("parquet", path, error=str(error)) from None

    yield 0, table.column_names
    columns = [column.to_pylist() for column in table.columns]
    yield from enumerate(zip(*columns, strict=True), start=1)


def _refused(key: str, path: Path, **values: Value) -> InputError:
    """Make the error of a table, with the sentence of a key in the catalogue without ``table``."""
    return InputError(Sentence.of(f"table {key}", path=str(path), **values))


def _as_text(value: Any) -> str:
    """Write a cell as text. Nothing and not-a-number are empty, whole numbers have no point."""
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()
