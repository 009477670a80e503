"""The results of a watcher as lines of JSON and as a table, each number once in each file.

The journal knows all results. A file gets those behind its own last number, so that it can be
written late, after a kill, or after somebody held it open. One that somebody took away begins anew.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.runtime.journal import Journal
from adray.runtime.result_log import append_whole, cut_torn_line, line_of, sync_file
from adray.runtime.rows import Row

logger = logging.getLogger(__name__)

LINES = "results.jsonl"
TABLE = "results.csv"
COLUMNS = (
    "number",
    "time",
    "image",
    "verdict",
    "pred_score",
    "p_value",
    "threshold",
    "regions",
    "map",
    "map_low",
    "map_high",
    "reason",
    "model",
    "sha256",
)
_MARK = "\ufeff"
"""By which a spreadsheet knows the letters."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_TAIL = 2**20
"""Bytes at the end of a file in which its last row begins."""


@dataclass
class _File:
    """A file of results."""

    path: Path
    """Where it lies."""
    written: int
    """Number of the last result in it, or in what was taken away."""
    line: Callable[[Row], bytes]
    """From a row to its line."""
    head: bytes
    """Its first line, may be empty."""
    is_blocked: bool = False
    """It could not be written the last time."""


class ResultFiles:
    """Both files.

    Args:
        folder: where they lie.
        journal: that knows the results.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._journal = journal
        table = _MARK.encode() + _table_line(COLUMNS)
        self._files = [
            _File(folder / LINES, 0, line_of, b""),
            _File(folder / TABLE, 0, _table_row, table),
        ]
        for file in self._files:
            known = int(journal.fact(_fact(file.path)) or 0)
            file.written = max(known, _last_number(file.path))

    def write(self) -> None:
        """Write what is missing, as far as that can be done now."""
        for file in self._files:
            try:
                self._complete(file)
                file.is_blocked = False
            except OSError as error:
                if not file.is_blocked:
                    logger.warning("%s cannot be written now (%s)", file.path, error.strerror)
                file.is_blocked = True

    def _complete(self, file: _File) -> None:
        """Write the results that a file does not have.

        Raises:
            OSError: where it cannot be written. It then has no part of a line.
        """
        while rows := self._journal.rows_after(file.written):
            for row in rows:
                head = b"" if file.path.exists() else file.head
                append_whole(file.path, head + file.line(row))
                file.written = row["number"]
            sync_file(file.path)

    @property
    def facts(self) -> dict[str, str]:
        """Say for the journal what the files have, for the day when somebody takes one away."""
        facts = {}
        for file in self._files:
            facts[_fact(file.path)] = str(file.written)
        return facts

    def note(self) -> None:
        """Note it where it changed since."""
        for name, value in self.facts.items():
            if self._journal.fact(name) != value:
                self._journal.set_fact(name, value)


def _fact(path: Path) -> str:
    """Name what the journal notes of a file."""
    return f"in {path.name}"


def _last_number(path: Path) -> int:
    """Read the number of the last whole line of a file, and cut off a torn one behind it."""
    try:
        cut_torn_line(path)
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read(_TAIL).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        number = _number_in(line)
        if number is not None:
            return number
    return 0


def _number_in(line: str) -> int | None:
    """Read the number of a line of either file, None where it has none."""
    try:
        value = json.loads(line)["number"] if line.startswith("{") else line.split(",")[0]
        return int(value)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _table_row(row: Row) -> bytes:
    """Give a row of the table."""
    cells: list[object] = []
    for name in COLUMNS:
        value = row.get(name)
        cells.append(len(value) if isinstance(value, list) else value)
    return _table_line(cells)


def _table_line(cells: Sequence[object]) -> bytes:
    """Write cells as one line, whatever is in them, none of which a spreadsheet computes."""
    buffer = io.StringIO()
    csv.writer(buffer).writerow([_cell(cell) for cell in cells])
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> object:
    """Give a cell without ends of lines."""
    if not isinstance(value, str):
        return value
    plain = "".join(letter if letter.isprintable() else _escaped(letter) for letter in value)
    return f"'{plain}" if plain.startswith(_FORMULAS) else plain


def _escaped(letter: str) -> str:
    """Write a letter that is none by its number."""
    return letter.encode("unicode_escape").decode("ascii")
