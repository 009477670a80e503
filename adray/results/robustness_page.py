"""What the report shows of corruptions and shifts, as plain values that its script draws."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adray.results.corrupted_scores import CONTACT_SHEET
from adray.results.gallery import embedded
from adray.results.leaderboard import trial_row
from adray.results.robustness import ModelUnder, Robustness, robustness_of, shifts_of
from adray.results.store import TrialRecord

_SHEETS = 3
"""Contact sheets that the page holds; the rest is linked."""
_DIGITS = 4

Json = dict[str, Any]


def robustness_json(
    records: Sequence[TrialRecord], base: Path, safest: Sequence[Mapping[str, Any]]
) -> Json | None:
    """Give what the section on corruptions and shifts shows, None where there is nothing.

    Args:
        records: trials of one condition of training, that count.
        base: folder of the report, from which contact sheets are linked.
        safest: decisions by the worst case, as `adray.decisions.text.page_summaries` gives them.
    """
    corrupted = robustness_of(records)
    shifted = shifts_of(records)
    if corrupted is None and shifted is None:
        return None
    return {
        "corruptions": None if corrupted is None else _robustness(corrupted),
        "shifts": None if shifted is None else _robustness(shifted),
        "safest": list(safest),
        "sheets": _sheets(records, base),
    }


def _robustness(found: Robustness) -> Json:
    """Give one comparison. A model under a condition is a row of figures in a fixed order."""
    of_models: dict[str, dict[str, list[Any]]] = {name: {} for name in found.plain}
    columns = {}
    for one in found.models:
        of_models[one.configuration][one.condition] = _figures(one)
        columns[one.condition] = [one.kind, one.severity]
    models = []
    for name, plain in found.plain.items():
        models.append({"m": name, "p": _rounded(plain), "u": of_models[name]})

    ranks = []
    for rank in found.ranks:
        values = {name: _plain(value) for name, value in vars(rank).items()}
        ranks.append(values)
    return {
        "cells": len(found.cells),
        "columns": columns,
        "models": models,
        "ranks": ranks,
        "safest": [found.safest, _rounded(found.safest_worst), found.safest_where],
        "leftOut": list(found.left_out),
    }


def _figures(one: ModelUnder) -> list[Any]:
    """Give AUROC, loss, false alarms, misses, cells with a broken promise, images left out."""
    values = (one.image_auroc, one.drop, one.alarms, one.misses, one.broken, one.gone)
    return list(map(_plain, values))


def _plain(value: Any) -> Any:
    """Round a broken number. All else stays."""
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float | None:
    """Round a number to a few digits behind the point, None where it is none."""
    return round(value, _DIGITS) if math.isfinite(value) else None


def _sheets(records: Sequence[TrialRecord], base: Path) -> list[Json]:
    """Give a contact sheet for each cell, the first few with their picture."""
    by_cell: dict[str, Path] = {}
    for record in records:
        row = trial_row(record)
        sheet = record.folder / CONTACT_SHEET
        if sheet.is_file():
            by_cell.setdefault(f"{row.dataset}/{row.category}", sheet)

    found = []
    for number, (cell, sheet) in enumerate(sorted(by_cell.items())):
        image = embedded(sheet) if number < _SHEETS else None
        found.append({"cell": cell, "href": os.path.relpath(sheet, base), "image": image})
    return found
