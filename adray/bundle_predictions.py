"""What a bundle says of images, as the tables and maps that `predict` writes of a trial.

No torch here, and no package that draws.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from adray.errors import InputError
from adray.files import atomic_path, readable_name, spreadsheet_text
from adray.found_images import COLUMNS, LINES, MAPS, TABLE
from adray.runtime import Result
from adray.runtime.rows import map_picture, short
from adray.types import Json

_ODD_LETTERS = re.compile(r"[^\w.-]")
_MOST_LETTERS = 30
"""Of an image's name in that of its map; some file systems take 143 bytes."""


def make_folder(out: Path) -> None:
    """Make the folder of predictions, which must hold none.

    Raises:
        InputError: where it cannot be made, or holds predictions.
    """
    if (out / LINES).exists() or (out / TABLE).exists():
        raise InputError(f"--out {out} holds predictions; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be made a folder ({error.strerror}); name another"
        ) from error


def write_results(results: Iterable[Result], out: Path, threshold: float) -> list[Json]:
    """Write a line for each image as it comes, its map if it has one, and the table at the end.

    Scores have all digits of a float32, so that a verdict is that of the figures.

    Args:
        results: of a bundle.
        out: an existing folder.
        threshold: of the bundle.

    Returns:
        The rows of the table. JSON.
    """
    rows = []

    # What is not UTF-8 in a name becomes an escape that JSON reads back.
    with (out / LINES).open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for number, result in enumerate(results):
            row = _row(result, threshold)
            if result.anomaly_map is not None:
                row |= _write_map(result.anomaly_map, out, _map_file(number, result.name))
            rows.append(row)
            lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            lines.flush()
    _write_table(out / TABLE, rows)
    return rows


def _row(result: Result, threshold: float) -> Json:
    """Give one line of the table. JSON."""
    return {
        "image": result.name,
        "pred_score": short(result.pred_score),
        "p_value": result.p_value,
        "verdict": result.verdict,
        "threshold": short(threshold),
        "map_low": None,
        "map_high": None,
        "map": "",
        "reason": result.reason,
    }


def _map_file(number: int, image: str) -> str:
    """Name the map of an image by its number and the beginning of its name."""
    stem = _ODD_LETTERS.sub("_", readable_name(Path(image).stem))
    return f"{number:06d}_{stem[:_MOST_LETTERS]}.png"


def _write_map(anomaly_map: np.ndarray, out: Path, name: str) -> Json:
    """Write a map as a 16-bit PNG: 0 is its lowest value, 65535 its highest.

    Returns:
        The row's ``map_low``, ``map_high`` and ``map``.
    """
    data, low, high = map_picture(anomaly_map)
    (out / MAPS).mkdir(exist_ok=True)
    with atomic_path(out / MAPS / name) as temporary:
        temporary.write_bytes(data)
    return {"map_low": short(low), "map_high": short(high), "map": f"{MAPS}/{name}"}


def _write_table(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the table, with a mark that tells a spreadsheet of its letters."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_cell(name, row[name]) for name in COLUMNS])


def _cell(column: str, value: object) -> object:
    """Give a cell that no spreadsheet computes. A path stays one that leads to its file."""
    if not isinstance(value, str):
        return value
    return spreadsheet_text(value, "./" if column == "image" else "'")
