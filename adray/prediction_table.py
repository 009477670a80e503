"""The files of predictions, as a trial and a bundle both write them: a table, its lines, and maps.

No torch here, and no package that draws.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from adray.files import atomic_path, readable_name, spreadsheet_text
from adray.runtime.rows import map_picture
from adray.types import Json

COLUMNS = (
    "image",
    "pred_score",
    "p_value",
    "verdict",
    "threshold",
    "map_low",
    "map_high",
    "map",
    "reason",
)
"""Of the table of predictions."""
LINES = "predictions.jsonl"
TABLE = "predictions.csv"
MAPS = "maps"
PAGE = "index.html"
"""Name of the page of predictions."""
MAP_NAME = re.compile(r"\d{6,}_.*\.png", re.DOTALL)
"""Of a map or an overlay in the folder `MAPS`."""
TINY = 1e-30
"""Range of a map that counts as constant."""
_MOST_STEM_BYTES = 100
"""How much of an image's name goes into that of its map; some file systems take 143 bytes."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\/:*?"<>|]')
"""What some file systems refuse in a name."""


# Rows


@contextmanager
def open_lines(out: Path) -> Iterator[TextIO]:
    """Write the lines of predictions, each there as soon as it is written.

    Args:
        out: an existing folder.
    """
    # What is not UTF-8 in a name becomes an escape that JSON reads back.
    with (out / LINES).open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        yield file


def line_of(row: Json) -> str:
    """Write a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def open_table(path: Path, columns: Sequence[str]) -> Iterator[csv.DictWriter[str]]:
    """Write the rows of a table, which is there at the end, whole or not at all."""
    # The mark at the start tells a spreadsheet that Hangul is UTF-8.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        yield writer


def write_table(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write some columns of rows as a table, empty where a row says nothing."""
    with open_table(path, columns) as writer:
        for row in rows:
            writer.writerow({name: cell(name, row.get(name)) for name in columns})


def cell(column: str, value: object) -> object:
    """Give a cell that no spreadsheet computes. A path stays one that leads to its file."""
    if not isinstance(value, str):
        return value
    return spreadsheet_text(value, "./" if column == "image" else "'")


# Maps


def map_name(number: int, image: str) -> str:
    """Name the map of an image: by its number, and its stem as far as file systems take it."""
    stem = _UNSAFE.sub("_", readable_name(Path(image).stem))
    while len(stem.encode()) > _MOST_STEM_BYTES:
        stem = stem[:-1]
    return f"{number:06d}_{stem}.png"


def write_map(anomaly_map: np.ndarray, out: Path, name: str) -> tuple[float, float]:
    """Write a map as a 16-bit PNG of its size: 0 is its lowest value, 65535 its highest.

    Args:
        anomaly_map: (H, W) float32.
        out: an existing folder.
        name: of the file in `MAPS`.

    Returns:
        The lowest and the highest value.
    """
    data, low, high = map_picture(anomaly_map)
    (out / MAPS).mkdir(exist_ok=True)
    with atomic_path(out / MAPS / name) as temporary:
        temporary.write_bytes(data)
    return low, high


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write an array as a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
