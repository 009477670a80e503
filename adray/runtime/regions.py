"""Where a map stands out, without SciPy: its connected regions at or above a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_REGIONS = 100
"""Regions of one image that are told, those with the highest peaks."""


@dataclass(frozen=True)
class Region:
    """Connected pixels at or above a threshold. Pixels are counted from 0 at the upper left."""

    x0: int
    """First column."""
    y0: int
    """First row."""
    x1: int
    """Column behind the last."""
    y1: int
    """Row below the last."""
    area: int
    """Number of its pixels."""
    peak: float
    """Highest value of the map in it."""
    centroid_x: float
    """Mean column of its pixels."""
    centroid_y: float
    """Mean row of its pixels."""


@dataclass(frozen=True)
class _Runs:
    """Pixels of a row that touch, as many as there are. (R,) whole numbers each, in reading order."""

    row: np.ndarray
    """Row of each run."""
    start: np.ndarray
    """Its first column."""
    end: np.ndarray
    """Column behind its last."""


def find_regions(anomaly_map: np.ndarray, threshold: float) -> list[Region]:
    """Find the connected regions of a map at or above a threshold. Corners connect.

    Args:
        anomaly_map: (H, W), finite.
        threshold: in the unit of the map.

    Returns:
        At most `MOST_REGIONS`, that with the highest peak first.
    """
    above = anomaly_map >= threshold
    if not above.any():
        return []

    runs = _runs_of(above)
    labels = _connected(runs, anomaly_map.shape[1])
    return _measured(anomaly_map[above], runs, labels)


def _runs_of(above: np.ndarray) -> _Runs:
    """Find the runs of a mask (H, W)."""
    # A column of nothing on both sides makes each run begin and end.
    framed = np.pad(above, ((0, 0), (1, 1)))
    change = np.diff(framed.astype(np.int8), axis=1)
    row, start = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    return _Runs(row, start, end)


def _connected(runs: _Runs, width: int) -> np.ndarray:
    """Number the regions that runs belong to, (R,), from 0 on."""
    # Rows lie one behind the other, so far apart that their runs never touch.
    stride = width + 2
    starts = runs.row * stride + runs.start
    ends = runs.row * stride + runs.end

    # Those of the next row that touch a run follow each other.
    first = np.searchsorted(ends, starts + stride, side="left")
    last = np.searchsorted(starts, ends + stride, side="right")
    count = last - first
    upper = np.repeat(np.arange(len(starts)), count)
    before = np.cumsum(count) - count
    lower = np.arange(count.sum()) - np.repeat(before - first, count)

    # Each run takes the lowest number among its neighbours, until none changes.
    label = np.arange(len(starts))
    while True:
        least = np.minimum(label[upper], label[lower])
        most = np.maximum(label[upper], label[lower])
        if np.array_equal(least, most):
            return np.unique(label, return_inverse=True)[1]
        np.minimum.at(label, most, least)
        while not np.array_equal(label, label[label]):
            label = label[label]


def _measured(values: np.ndarray, runs: _Runs, labels: np.ndarray) -> list[Region]:
    """Measure regions.

    Args:
        values: of the pixels at or above the threshold, in reading order.
        runs: that they form.
        labels: region of each run.
    """
    length = runs.end - runs.start
    regions = int(labels.max()) + 1
    area = np.bincount(labels, length, regions)

    # The columns of a run sum to its length times their mean.
    sum_x = np.bincount(labels, length * (runs.start + runs.end - 1) / 2, regions)
    sum_y = np.bincount(labels, length * runs.row, regions)
    peak = np.full(regions, -np.inf)
    np.maximum.at(peak, labels, np.maximum.reduceat(values, np.cumsum(length) - length))
    x0 = _lowest(runs.start, labels, regions)
    y0 = _lowest(runs.row, labels, regions)
    x1 = -_lowest(-runs.end, labels, regions)
    y1 = -_lowest(-runs.row - 1, labels, regions)

    found = []
    for i in np.argsort(-peak, kind="stable")[:MOST_REGIONS]:
        region = Region(
            int(x0[i]),
            int(y0[i]),
            int(x1[i]),
            int(y1[i]),
            int(area[i]),
            float(peak[i]),
            float(sum_x[i] / area[i]),
            float(sum_y[i] / area[i]),
        )
        found.append(region)
    return found


def _lowest(values: np.ndarray, labels: np.ndarray, regions: int) -> np.ndarray:
    """Give the lowest value of each region, (regions,)."""
    lowest = np.full(regions, np.iinfo(np.int64).max)
    np.minimum.at(lowest, labels, values)
    return lowest
