"""What becomes of a trial's test images at other rates of false alarms: the numbers of a slider."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from adray.results.promises import promised_figures
from adray.results.store import TrialRecord
from adray.results.trial_files import SCORES_FILE, read_judged_images
from adray.thresholds import PROMISE, promised_rate, rate_to_be_sure
from adray.types import Json

_MOST_RATES = 60
"""Rates that a slider has at most."""
_DIGITS = 4


def outcomes_by_rate(record: TrialRecord) -> Json | None:
    """Count misses and false alarms at the rates that a trial's calibration normals can promise.

    Their k-th highest score is the threshold of the k-th rate. An image is reported where its own
    score is above it, as `adray.decisions` has it.

    Returns:
        ``types`` of defects, ``images`` of each in the test, ``normals`` in the test or None where
        defects were drawn on the calibration normals, ``own`` the place of the trial's own rate,
        and ``rows``, the smallest rate first: promised rate, its bound with 95 % confidence, false
        alarms, and the misses of each type. None where the trial promises nothing, or its scores
        cannot be read. JSON.
    """
    file = record.folder / SCORES_FILE
    if promised_figures(record) is None or not file.is_file():
        return None
    promise = (record.result or {})["thresholds"][PROMISE]
    own = promise["normals"] + 1 - promise["rank"]
    tried = promise.get("tried", 1)
    return _outcomes(record.folder, own, tried, record.is_drawn, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _outcomes(folder: Path, own: int, tried: int, is_drawn: bool, mtime_ns: int) -> Json | None:
    """Count for one trial, once for all the reports that a sweep writes while it runs."""
    images = read_judged_images(folder, is_drawn=is_drawn)
    if images is None or len(images.calibration) < own:
        return None

    kinds = np.array(images.types, dtype=object)
    types = sorted(set(kinds[images.positive].tolist()))
    of_types = [images.scores[images.positive & (kinds == name)] for name in types]
    of_normals = images.scores[~images.positive]

    falling = np.sort(images.calibration)[::-1]
    places = _places(len(falling), own)
    rows = []
    for place in places:
        threshold = falling[place - 1]
        promised = promised_rate(len(falling), place, tried)
        bound = rate_to_be_sure(len(falling), place, tried)
        alarms = int((of_normals > threshold).sum())
        missed = [int((of_type <= threshold).sum()) for of_type in of_types]
        rows.append([_rounded(promised), _rounded(bound), alarms, *missed])
    return {
        "types": types,
        "images": list(map(len, of_types)),
        "normals": None if is_drawn else len(of_normals),
        "own": places.index(own),
        "rows": rows,
    }


def _places(normals: int, own: int) -> list[int]:
    """Choose places from the highest score down to the middle, close at first, with `own`."""
    most = max((normals + 1) // 2, own)
    spaced = np.geomspace(1, most, _MOST_RATES).round().astype(int).tolist()
    return sorted({*spaced, own})


def _rounded(rate: float) -> float:
    """Round a rate to some significant digits."""
    return float(f"{rate:.{_DIGITS}g}")
