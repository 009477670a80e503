"""What a search gained over the defaults, corrected for having chosen the best of many.

The best of forty tries looks better than it is, since it was chosen by the figure that is shown. So the images are
split into halves again and again: on one half the best try is chosen, on the other it is compared with the defaults.
The mean over the splits is what a choice like this one gains on images that did not choose it. A half drawn without
replacement varies about the whole as the whole does about the product, so the spread over the splits gives the interval
(subsampling with half of the data; D. Politis, J. Romano, M. Wolf, Subsampling, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

SPLITS = 400
_LEAST_UNITS = 4


@dataclass(frozen=True)
class CellScores:
    """Scores of all tries on the images of one cell.

    Attributes:
        pred_score: (S, N) of S tries.
        label: (N,) 0 normal, 1 anomalous.
        unit: (N,) whole numbers from 0; images with the same one stay on one side, in whatever cell they are: an image
            and its defective twins, and an image that is scored with several seeds.
    """

    pred_score: NDArray[np.floating]
    label: NDArray[np.int64]
    unit: NDArray[np.int64]


@dataclass(frozen=True)
class Gain:
    """Difference to the defaults on images that did not choose.

    Attributes:
        value: mean over the splits.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def search_gain(
    cells: list[CellScores], default: int, seed: int = 0, splits: int = SPLITS
) -> Gain | None:
    """Image AUROC that choosing the best try gains over the defaults, mean over cells.

    Args:
        cells: one per category and seed, all with the same tries in the same order.
        default: which try has the defaults.
        seed: of the splits.
        splits: number of splits.

    Returns:
        None where a cell has too few images to be halved.
    """
    if any(min(len(units) for units in _strata(cell)) < _LEAST_UNITS for cell in cells):
        return None
    rng = np.random.default_rng(seed)
    units = 1 + max(int(cell.unit.max()) for cell in cells)
    gains = np.empty(splits)
    for i in range(splits):
        order = rng.random(units)
        halves = [_halves(cell, order) for cell in cells]
        choosing, judging = (_mean_auroc(cells, [half[side] for half in halves]) for side in (0, 1))
        gains[i] = judging[int(choosing.argmax())] - judging[default]
    low, high = np.percentile(gains, [2.5, 97.5])
    return Gain(float(gains.mean()), float(low), float(high))


def _mean_auroc(cells: list[CellScores], chosen: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """AUROC of each try on the chosen images, mean over cells, (S,)."""
    parts = [
        auroc_of_rows(c.pred_score[:, rows], c.label[rows])
        for c, rows in zip(cells, chosen, strict=True)
    ]
    return np.mean(parts, axis=0)


def auroc_of_rows(
    pred_score: NDArray[np.floating], label: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUROC of each row of (S, N) scores, ties counted half: (S,)."""
    positive = label == 1
    count, rest = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(pred_score, axis=1)[:, positive].sum(axis=1)  # Mann and Whitney's U
    return (ranks - count * (count + 1) / 2) / (count * rest)


def _strata(cell: CellScores) -> list[NDArray[np.int64]]:
    """The units that hold normal images, and those that hold defects; one list where the same units hold both."""
    normal, defect = (np.unique(cell.unit[cell.label == value]) for value in (0, 1))
    return [normal] if np.isin(defect, normal).all() else [normal, np.setdiff1d(defect, normal)]


def _halves(
    cell: CellScores, order: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two halves of the cell's images, (N,) each; units stay whole, and both halves get their part of each stratum.

    Args:
        cell: what is halved.
        order: (U,) by unit; the first of a stratum by it are one half, so cells with the same units are halved alike.
    """
    first = [units[np.argsort(order[units])[: len(units) // 2]] for units in _strata(cell)]
    chosen = np.isin(cell.unit, np.concatenate(first))
    return chosen, ~chosen
