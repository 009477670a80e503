"""Reads the tables that `predict` wrote, so that they can be audited later."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.data.tables import read_table
from adray.errors import InputError
from adray.language.sentence import Sentence

LOG_SUFFIXES = (".csv", ".jsonl", ".xlsx")
"""Endings of the files that `read_log` reads."""
_NEEDED = ("image", "pred_score", "p_value")
"""Columns without which a table is no log."""


@dataclass(frozen=True)
class LoggedImage:
    """What a log says of one image."""

    image: str
    """Its path, as the prediction had it."""
    pred_score: float | None
    """With the digits of the table, None where it has no score."""
    p_value: float | None
    """How rare its score is among normals, None where that was not known."""
    peak: float | None
    """Highest value of its map, at the image's own size; None where no map was written."""
    reason: str
    """Why it has no score, else empty."""


def read_logs(paths: Iterable[Path]) -> tuple[LoggedImage, ...]:
    """Read the images of logs in their order.

    Raises:
        InputError: for a file that is no log of `predict`, or holds a value that is no number.
    """
    images: list[LoggedImage] = []
    for path in paths:
        images += _read_lines(path) if path.suffix.lower() == ".jsonl" else _read_rows(path)
    return tuple(images)


def _read_rows(path: Path) -> list[LoggedImage]:
    """Read `predictions.csv`."""
    return [_image(row.where, row.cells) for row in read_table(path, _NEEDED)]


def _read_lines(path: Path) -> list[LoggedImage]:
    """Read `predictions.jsonl`; its last line may be torn, where the prediction was killed."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            Sentence.of("log unreadable", path=str(path), error=str(error.strerror))
        ) from None

    images = []
    # Names of images may hold what else ends a line, such as U+2028.
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise InputError(Sentence.of("log no json", where=where)) from None
        if not isinstance(row, dict) or any(name not in row for name in _NEEDED):
            raise InputError(Sentence.of("log other line", where=where, needed=", ".join(_NEEDED)))
        images.append(_image(where, row))
    return images


def _image(where: str, row: Mapping[str, Any]) -> LoggedImage:
    """Read one image of a table.

    Raises:
        InputError: for a value that is no number.
    """
    return LoggedImage(
        image=str(row["image"]),
        pred_score=_number(where, row, "pred_score"),
        p_value=_number(where, row, "p_value"),
        peak=_number(where, row, "map_high"),
        reason=str(row.get("reason") or ""),
    )


def _number(where: str, row: Mapping[str, Any], name: str) -> float | None:
    """Read a finite number, None for an empty cell.

    Raises:
        InputError: with the row and the value.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(Sentence.of("log finite", where=where, name=name, value=repr(value)))
    return number


def logs_among(names: Sequence[str]) -> list[Path]:
    """List the logs that somebody named in place of images, none where images are named.

    Raises:
        InputError: where both are named.
    """
    logs = [Path(name) for name in names if Path(name).suffix.lower() in LOG_SUFFIXES]
    if logs and len(logs) < len(names):
        raise InputError(Sentence.of("log mixed", logs=str(logs[0])))
    return logs
