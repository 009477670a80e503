"""What a search gained over the defaults, corrected for having chosen the best of many.

The best of forty tries looks better than it is, since it was chosen by the figure that is shown. So
the images are split into halves again and again: on one half the best try is chosen, on the other
it is compared with the defaults. The mean over the splits is what a choice like this one gains on
images that did not choose it. A half drawn without replacement varies about the whole as the whole
does about the product, so the spread over the splits gives the interval (subsampling with half of
the data; D. Politis, J. Romano, M. Wolf, Subsampling, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.results.image_statistics import auroc_of_rows

SPLITS = 400
_LEAST_UNITS = 4


@dataclass(frozen=True)
class CellScores:
    """Scores of all tries on the images of one cell."""

    pred_score: NDArray[np.floating]
    """(S, N) of S tries."""
    label: NDArray[np.int64]
    """(N,) 0 normal, 1 anomalous."""
    unit: NDArray[np.int64]
    """(N,) whole numbers from 0. Images with the same one stay on one side, in whatever cell they
    are: an image and the synthetic defects drawn on it, and an image that is scored with several
    seeds."""


@dataclass(frozen=True)
class Gain:
    """Difference to the defaults on images that did not choose."""

    value: float
    """Mean over the splits."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""


def search_gain(
    cells: list[CellScores], default: int, seed: int = 0, splits: int = SPLITS
) -> Gain | None:
    """Estimate the image AUROC that choosing the best try gains over the defaults, mean over cells.

    Args:
        cells: one per category and seed, all with the same tries in the same order.
        default: which try has the defaults.
        seed: of the splits.
        splits: number of splits.

    Returns:
        None where a cell has too few images to be halved.
    """
    for cell in cells:
        if min(map(len, _strata(cell))) < _LEAST_UNITS:
            return None

    rng = np.random.default_rng(seed)
    units = 1 + max(int(cell.unit.max()) for cell in cells)
    gains = np.empty(splits)
    for i in range(splits):
        # One order of the units for all cells, so that a unit is on the same side everywhere.
        order = rng.random(units)
        chosen = [_half(cell, order) for cell in cells]
        choosing = _mean_auroc(cells, chosen)
        judging = _mean_auroc(cells, [~half for half in chosen])
        gains[i] = judging[int(choosing.argmax())] - judging[default]

    # A few large gains among many small ones may draw the mean beyond the percentiles.
    value = float(gains.mean())
    low, high = np.percentile(gains, [2.5, 97.5])
    return Gain(value, min(float(low), value), max(float(high), value))


def _mean_auroc(cells: list[CellScores], chosen: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Average the AUROC of each try on the chosen images over cells, (S,)."""
    parts = []
    for cell, images in zip(cells, chosen, strict=True):
        parts.append(auroc_of_rows(cell.pred_score[:, images], cell.label[images] == 1))
    return np.mean(parts, axis=0)


def _half(cell: CellScores, order: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Choose half of the cell's images, (N,): whole units, and half of each stratum.

    Args:
        cell: what is halved.
        order: (U,) by unit; the first of a stratum by it are one half, so cells with the same units
            are halved alike.
    """
    first = [units[np.argsort(order[units])[: len(units) // 2]] for units in _strata(cell)]
    return np.isin(cell.unit, np.concatenate(first))


def _strata(cell: CellScores) -> list[NDArray[np.int64]]:
    """List the units with normal images and those with defects, once where both are the same."""
    normal = np.unique(cell.unit[cell.label == 0])
    defect = np.unique(cell.unit[cell.label == 1])
    if np.isin(defect, normal).all():
        return [normal]
    return [normal, np.setdiff1d(defect, normal)]
