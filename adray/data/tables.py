"""Tables of images in a file: CSV, TSV, Excel or parquet, each row with its number."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.errors import InputError

_DELIMITERS = ",;\t"


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
    def where(self) -> str:
        """Name the row for the user."""
        return f"{self.table}, row {self.number}"


def read_table(path: Path, columns: tuple[str, ...]) -> Sequence[Row]:
    """Read the rows of a table with a header. Rows without any text are left out.

    Args:
        path: the file, whose ending says what it is.
        columns: names that the header must have.

    Raises:
        InputError: for a file that is missing or cannot be read, or a header without one of the
            columns or with one twice.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: the table cannot be read ({error.strerror})") from None
    return _read_table(path, columns, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_table(path: Path, columns: tuple[str, ...], size: int, mtime: int) -> tuple[Row, ...]:
    """Read a table as it was of this size at this time."""
    lines = _read_lines(path)
    number, header = next(lines, (1, []))
    names = [str(name).strip() for name in header]
    _check_header(path, names, columns)

    rows = []
    for number, values in lines:
        cells = [_as_text(value) for value in values]
        if not any(cells):
            continue
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise InputError(
                f"{path}, row {number}: {len(cells)} values, but the header names {len(names)} "
                "columns; put quotes around a value with a comma"
            )
        padded = cells + [""] * (len(names) - len(cells))
        rows.append(Row(path, number, dict(zip(names, padded, strict=False))))
    return tuple(rows)


def read_header(path: Path) -> list[str]:
    """Give the names of a text table's columns, none where it cannot be read."""
    try:
        _, header = next(_read_lines(path), (1, []))
    except InputError:
        return []
    return [str(name).strip() for name in header]


def _check_header(path: Path, names: list[str], columns: Iterable[str]) -> None:
    """Refuse a header without one of the columns, or with one twice.

    Raises:
        InputError: names the column.
    """
    for name in columns:
        if name not in names:
            raise InputError(
                f"{path}: column {name!r} is missing; the header must name {', '.join(columns)}"
            )
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(f"{path}: the header names column {name!r} twice; rename one")


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
    raise InputError(
        f"{path}: {ending or 'a name without ending'} is no table; save it as .csv, .tsv, .xlsx or .parquet"
    )


def _read_text(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Give the lines of a CSV or TSV file."""
    try:
        # Excel begins UTF-8 with a byte order mark, and separates by semicolons in some countries.
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=first.count))
            for values in reader:
                yield reader.line_num, values
    except (UnicodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); save it as such") from None


def _read_excel(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Give the lines of the first sheet of an Excel file."""
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{path}: Excel files are read by openpyxl, which is not installed; "
            "install adray[excel], or save the sheet as .csv"
        ) from None

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises nearly anything on damaged files
        raise InputError(f"{path}: not an Excel file ({error}); save it again as .xlsx") from None
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
        raise InputError(f"{path}: not a parquet file ({error}); write it again") from None

    yield 0, table.column_names
    columns = [column.to_pylist() for column in table.columns]
    yield from enumerate(zip(*columns, strict=True), start=1)


def _as_text(value: Any) -> str:
    """Write a cell as text. Nothing and not-a-number are empty, whole numbers have no point."""
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()
