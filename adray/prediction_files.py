"""Predictions as files: what is written of each image.

Maps and overlays have the size of their image. What was written never comes back as an image, and
tables open in a spreadsheet as they are.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adray.data.decode import decode_full
from adray.errors import InputError
from adray.files import atomic_path, readable_name, spreadsheet_text
from adray.found_images import COLUMNS, LINES, MAP_NAME, MAPS, PAGE, TABLE
from adray.regions import Region
from adray.results.figures import overlay
from adray.thresholds import check_threshold
from adray.types import Json

if TYPE_CHECKING:
    from adray.predictor import Outcome

_FURTHER_COLUMNS = ("explanation", "accepted")
"""Of the table, behind `COLUMNS` where some image has one."""
UNREADABLE = "unreadable"
"""The verdict on an image that has no score."""
REGION_COLUMNS = (
    "image",
    "region",
    "x0",
    "y0",
    "x1",
    "y1",
    "area",
    "peak",
    "centroid_x",
    "centroid_y",
)
"""Of the table of regions. Columns x0 to x1 - 1 and rows y0 to y1 - 1 are the box."""
REGIONS = "regions.csv"
"""Name of the table of regions."""
_OVERLAY = "_overlay.png"
_MOST_STEM_BYTES = 100
"""How much of an image's name goes into that of its map; some file systems take 143 bytes."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\/:*?"<>|]')
"""What some file systems refuse in a name."""
_DIGITS = 7
"""Significant digits of a float32."""
_FIGURES = Context(prec=_DIGITS, Emin=-300)
"""The figures of a table, none of them so small that a float has no such number."""
_TINY = 1e-30


# The folder


def open_folder(out: Path) -> str:
    """Make the folder of predictions, and take out those of an earlier run.

    Returns:
        A sentence on what is replaced, empty where nothing is.

    Raises:
        InputError: where it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _take_out(out)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written as a folder ({error.strerror}); name another"
        ) from error


def _take_out(out: Path) -> str:
    """Delete the predictions of an earlier run: its tables, and the maps that they name."""
    lines = out / LINES
    table = out / TABLE
    if not lines.exists() and not table.exists():
        return ""

    rows = 0
    for name in _written_maps(lines):
        rows += 1
        if name:
            (out / MAPS / name).unlink(missing_ok=True)
            (out / MAPS / _overlay_name(name)).unlink(missing_ok=True)
    lines.unlink(missing_ok=True)
    table.unlink(missing_ok=True)
    (out / REGIONS).unlink(missing_ok=True)
    (out / PAGE).unlink(missing_ok=True)
    return f"{out} held predictions of {rows} images, which these replace"


def _written_maps(lines: Path) -> Iterator[str]:
    """Give the file name of each row's map, empty where it has none."""
    if not lines.is_file():
        return
    for line in lines.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the run was killed in the middle of it
        name = Path(str(row.get("map", ""))).name if isinstance(row, dict) else ""
        yield name if MAP_NAME.fullmatch(name) else ""


def _overlay_name(map_name: str) -> str:
    """Name the overlay that belongs to a map."""
    return map_name.removesuffix(".png") + _OVERLAY


# What is written


def write_predictions(
    outcomes: Iterable[Outcome],
    out: Path,
    threshold: float | None,
    maps: str,
    map_range: tuple[float, float] | None,
    unsure: float | None = None,
) -> list[Json]:
    """Write `predictions.jsonl` line by line, `predictions.csv` at the end, and the maps.

    Args:
        outcomes: of a predictor.
        out: an existing folder.
        threshold: of the verdicts, None for none.
        maps: ``none``, ``values`` for 16-bit PNGs, or ``all`` for overlays too.
        map_range: of the trial's maps, for the colours of the overlays.
        unsure: below `threshold`; a score that reaches it alone is ``unsure``. None for none.

    Returns:
        The rows of the table, as JSON.

    Raises:
        InputError: for a threshold that is NaN or infinite.
    """
    for value in (threshold, unsure):
        if value is not None:
            check_threshold(value)
    rows = []
    # What is not UTF-8 in a name becomes an escape that JSON reads back.
    with (out / LINES).open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for number, outcome in enumerate(outcomes):
            row = _row(outcome, threshold, unsure)
            if maps != "none" and outcome.anomaly_map is not None:
                name = _map_name(number, outcome.name)
                row |= _write_map(outcome, out, name)
                if maps == "all" and outcome.image is not None:
                    _write_overlay(outcome, out, name, map_range)
            rows.append(row)
            lines.write(_line(row))
            lines.flush()
    _write_table(out / TABLE, rows)
    return rows


@dataclass(frozen=True)
class RegionRule:
    """Which regions of a map are written."""

    threshold: float
    """Value of the map from which on a pixel belongs to one."""
    smallest_area: int = 1
    """Pixels of the image that a region has at least."""


def write_regions(
    outcomes: Iterable[Outcome], out: Path, rule: RegionRule, counts: list[int]
) -> Iterator[Outcome]:
    """Pass outcomes on, and write the regions of their maps as `regions.csv`, there at the end.

    Args:
        outcomes: of a predictor.
        out: an existing folder.
        rule: which regions.
        counts: takes the number of regions of each image that has some.
    """
    from adray.predictor import regions_of  # loads torch, as what made the outcomes did

    with _open_table(out / REGIONS, REGION_COLUMNS) as writer:
        for outcome in outcomes:
            regions = regions_of(outcome, rule.threshold, rule.smallest_area)
            if regions:
                counts.append(len(regions))
            for number, region in enumerate(regions, start=1):
                writer.writerow(_region_row(outcome.name, number, region))
            yield outcome


def _region_row(image: str, number: int, region: Region) -> Json:
    """Give one line of the table of regions."""
    return {
        "image": _cell("image", image),
        "region": number,
        "x0": region.left,
        "y0": region.top,
        "x1": region.right,
        "y1": region.bottom,
        "area": region.area,
        "peak": _rounded(region.peak),
        "centroid_x": _rounded(region.center_x),
        "centroid_y": _rounded(region.center_y),
    }


def judge_together(rows: Sequence[Json], out: Path, rate: float) -> list[Json]:
    """Judge images as one batch, and write the table and its lines anew.

    Of those called anomalous at most `rate` are normal, on average (Y. Benjamini and Y. Hochberg
    1995; for these p-values S. Bates et al. 2023).

    Args:
        rows: what `write_predictions` gave.
        out: the folder where it wrote.
        rate: of false discoveries, in (0, 1).

    Returns:
        The rows with their verdicts. One without a p-value keeps its own.
    """
    from scipy.stats import false_discovery_control

    known = [row for row in rows if row["p_value"] is not None]
    adjusted = false_discovery_control([row["p_value"] for row in known]) if known else []
    verdicts = {}
    for row, value in zip(known, adjusted, strict=True):
        verdicts[id(row)] = "anomalous" if value <= rate else "normal"

    judged = []
    for row in rows:
        judged.append(row | {"verdict": verdicts.get(id(row), row["verdict"]), "threshold": None})
    with atomic_path(out / LINES) as temporary:
        text = "".join(map(_line, judged))
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    _write_table(out / TABLE, judged)
    return judged


def _line(row: Json) -> str:
    """Write a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _row(outcome: Outcome, threshold: float | None, unsure: float | None) -> Json:
    """Give one line of the table, empty where there is nothing to say. JSON."""
    # The verdict is that of the figures as they stand in the table.
    score = _rounded(outcome.pred_score)
    limit = _rounded(threshold)
    row: Json = {
        "image": outcome.name,
        "pred_score": score,
        "p_value": outcome.p_value,
        "verdict": _verdict(score, limit, _rounded(unsure)),
        "threshold": limit,
        "map_low": None,
        "map_high": None,
        "map": "",
        "reason": outcome.reason,
    }
    if outcome.explanation is not None:
        row["explanation"] = outcome.explanation
    if outcome.accepted:
        row["accepted"] = outcome.accepted
    return row


def _verdict(score: float | None, threshold: float | None, unsure: float | None) -> str:
    """Judge a score, empty where there is no threshold."""
    if score is None:
        return UNREADABLE
    if threshold is None:
        return ""
    if score >= threshold:
        return "anomalous"
    if unsure is not None and score >= unsure:
        return "unsure"
    return "normal"


def _rounded(value: float | None) -> float | None:
    """Give the digits of a figure that mean something."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def figure_above(score: float) -> float:
    """Give the smallest figure of a table that is above a score as the table has it.

    A score that reaches it in the table is above the given one, although both are rounded.
    """
    return float(_FIGURES.next_plus(_FIGURES.create_decimal_from_float(score)))


def _map_name(number: int, image: str) -> str:
    """Name the map of an image: by its number, and its stem as far as file systems take it."""
    stem = _UNSAFE.sub("_", readable_name(Path(image).stem))
    while len(stem.encode()) > _MOST_STEM_BYTES:
        stem = stem[:-1]
    return f"{number:06d}_{stem}.png"


def _write_map(outcome: Outcome, out: Path, name: str) -> Json:
    """Write a map as a 16-bit PNG of its image's size: 0 is its lowest value, 65535 its highest.

    Returns:
        The row's ``map_low``, ``map_high`` and ``map``.
    """
    from adray.predictor import own_map

    (out / MAPS).mkdir(exist_ok=True)
    whole = own_map(outcome)
    low = float(whole.min())
    high = float(whole.max())
    scaled = (whole - low) * np.float32(65535 / max(high - low, _TINY))
    _save_png(out / MAPS / name, np.round(scaled).astype(np.uint16))
    return {"map_low": _rounded(low), "map_high": _rounded(high), "map": f"{MAPS}/{name}"}


def _write_overlay(
    outcome: Outcome, out: Path, name: str, map_range: tuple[float, float] | None
) -> None:
    """Draw a map over its image, on the trial's scale of colours where that is known."""
    from adray.predictor import own_map

    whole = own_map(outcome)
    low, high = map_range or (float(whole.min()), float(whole.max()))
    heat = (whole - low) * np.float32(1 / max(high - low, _TINY))
    _save_png(out / MAPS / _overlay_name(name), overlay(_own_picture(outcome), heat))


def _own_picture(outcome: Outcome) -> np.ndarray:
    """Give an image at its own size, (3, H, W) uint8: from its file, else from what the model saw."""
    from adray.predictor import map_of_image, own_size

    assert outcome.image is not None, "asked only where there are pixels"
    height, width = own_size(outcome)
    if outcome.pixels is not None:
        try:
            return decode_full(Path(outcome.name), outcome.pixels).pixels
        except InputError:
            pass  # it went away after it was scored

    planes = []
    for channel in outcome.image.astype(np.float32):
        planes.append(map_of_image(channel, outcome.view, width, height))
    return np.round(np.stack(planes)).astype(np.uint8)


def _save_png(path: Path, pixels: np.ndarray) -> None:
    """Write an array as a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)


def _write_table(path: Path, rows: list[Json]) -> None:
    """Write the table, with a further column where some image has something to say in it."""
    columns = list(COLUMNS)
    for name in _FURTHER_COLUMNS:
        if any(name in row for row in rows):
            columns.append(name)

    with _open_table(path, columns) as writer:
        for row in rows:
            writer.writerow({name: _cell(name, row.get(name)) for name in columns})


@contextmanager
def _open_table(path: Path, columns: Sequence[str]) -> Iterator[csv.DictWriter[str]]:
    """Write the rows of a table, which is there at the end, whole or not at all."""
    # The mark at the start tells a spreadsheet that Hangul is UTF-8.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        yield writer


def _cell(column: str, value: str | float | None) -> str | float | None:
    """Give a cell of the table. A path stays one that leads to its file."""
    if not isinstance(value, str):
        return value
    return spreadsheet_text(value, "./" if column == "image" else "'")
