"""Predictions as files: what is written of each image.

Maps and overlays have the size of their image. What was written never comes back as an image, and
tables open in a spreadsheet as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adray.data.decode import decode_full
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.sentence import Sentence
from adray.prediction_table import (
    COLUMNS,
    LINES,
    MAP_NAME,
    MAPS,
    PAGE,
    TABLE,
    TINY,
    cell,
    line_of,
    map_name,
    open_lines,
    open_table,
    save_png,
    write_map,
    write_table,
)
from adray.regions import Region
from adray.results.figures import overlay
from adray.thresholds import Promise, check_threshold
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
_DIGITS = 7
"""Significant digits of a float32."""
_FIGURES = Context(prec=_DIGITS, Emin=-300)
"""The figures of a table, none of them so small that a float has no such number."""


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
            Sentence.of("predict out folder", out=str(out), error=str(error.strerror))
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
    # Names of images may hold what else ends a line, such as U+2028.
    for line in lines.read_text(encoding="utf-8", errors="replace").split("\n"):
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
    with open_lines(out) as lines:
        for number, outcome in enumerate(outcomes):
            row = _row(outcome, threshold, unsure)
            if maps != "none" and outcome.anomaly_map is not None:
                name = map_name(number, outcome.name)
                row |= _write_map(outcome, out, name)
                if maps == "all" and outcome.image is not None:
                    _write_overlay(outcome, out, name, map_range)
            rows.append(row)
            lines.write(line_of(row))
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

    with open_table(out / REGIONS, REGION_COLUMNS) as writer:
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
        "image": cell("image", image),
        "region": number,
        "x0": region.left,
        "y0": region.top,
        "x1": region.right,
        "y1": region.bottom,
        "area": region.area,
        "peak": figure(region.peak),
        "centroid_x": figure(region.center_x),
        "centroid_y": figure(region.center_y),
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
        text = "".join(map(line_of, judged))
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    _write_table(out / TABLE, judged)
    return judged


def _row(outcome: Outcome, threshold: float | None, unsure: float | None) -> Json:
    """Give one line of the table, empty where there is nothing to say. JSON."""
    # The verdict is that of the figures as they stand in the table.
    score = figure(outcome.pred_score)
    limit = figure(threshold)
    row: Json = {
        "image": outcome.name,
        "pred_score": score,
        "p_value": outcome.p_value,
        "verdict": _verdict(score, limit, figure(unsure)),
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


def figure(value: float | None) -> float | None:
    """Give a figure with the digits of the tables."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def figure_above(score: float) -> float:
    """Give the smallest figure of a table that is above a score as the table has it.

    A score that reaches it in the table is above the given one, although both are rounded.
    """
    return float(_FIGURES.next_plus(_FIGURES.create_decimal_from_float(score)))


def as_in_tables(promise: Promise) -> Promise:
    """Give a promise whose score has the digits of the tables.

    A score of a table is above it exactly where the verdict of that row is anomalous.
    """
    return replace(promise, score=figure(promise.score))


def _write_map(outcome: Outcome, out: Path, name: str) -> Json:
    """Write a map at its image's size, and give the row's ``map_low``, ``map_high`` and ``map``."""
    from adray.predictor import own_map

    low, high = write_map(own_map(outcome), out, name)
    return {"map_low": figure(low), "map_high": figure(high), "map": f"{MAPS}/{name}"}


def _write_overlay(
    outcome: Outcome, out: Path, name: str, map_range: tuple[float, float] | None
) -> None:
    """Draw a map over its image, on the trial's scale of colours where that is known."""
    from adray.predictor import own_map

    whole = own_map(outcome)
    low, high = map_range or (float(whole.min()), float(whole.max()))
    heat = (whole - low) * np.float32(1 / max(high - low, TINY))
    save_png(out / MAPS / _overlay_name(name), overlay(_own_picture(outcome), heat))


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
        planes.append(map_of_image(channel, outcome.placement, width, height))
    return np.round(np.stack(planes)).astype(np.uint8)


def _write_table(path: Path, rows: list[Json]) -> None:
    """Write the table, with a further column where some image has something to say in it."""
    columns = list(COLUMNS)
    for name in _FURTHER_COLUMNS:
        if any(name in row for row in rows):
            columns.append(name)
    write_table(path, rows, columns)
