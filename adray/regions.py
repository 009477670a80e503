"""Where a map of anomalies stands out: its regions at or above a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.errors import InputError
from adray.language.sentence import Sentence

_TOUCHING = np.ones((3, 3))  # pixels that share a corner are of one region, as in masks


@dataclass(frozen=True)
class Region:
    """Connected pixels at or above a threshold. Pixels are counted from 0 at the upper left."""

    left: int
    """First column."""
    top: int
    """First row."""
    right: int
    """Column behind the last, so that `right - left` is the width."""
    bottom: int
    """Row below the last, so that `bottom - top` is the height."""
    area: int
    """Number of its pixels."""
    peak: float
    """Highest value of the map in it."""
    center_x: float
    """Mean column of its pixels."""
    center_y: float
    """Mean row of its pixels."""


def check_area(name: str, smallest_area: int) -> None:
    """Refuse a smallest area that no region can have.

    Raises:
        InputError: with the name and the value.
    """
    if smallest_area < 1:
        raise InputError(Sentence.of("regions area", name=name, smallest_area=smallest_area))


def find_regions(anomaly_map: NDArray, threshold: float, smallest_area: int = 1) -> list[Region]:
    """Find the connected regions of a map at or above a threshold.

    Args:
        anomaly_map: (H, W), finite.
        threshold: in the unit of the map.
        smallest_area: regions of fewer pixels are left out, at least 1.

    Returns:
        That with the highest peak first; of equal ones that which begins higher up.

    Raises:
        InputError: for an area below 1.
    """
    from scipy import ndimage

    check_area("smallest_area", smallest_area)
    labels, count = ndimage.label(anomaly_map >= threshold, _TOUCHING)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    numbers = 1 + np.flatnonzero(areas[1:] >= smallest_area)
    peaks = np.asarray(ndimage.maximum(anomaly_map, labels, numbers))
    centers = ndimage.center_of_mass(np.ones_like(labels), labels, numbers)
    places = ndimage.find_objects(labels)

    found = []
    for i in np.argsort(-peaks, kind="stable"):
        number = numbers[i]
        rows, columns = places[number - 1]
        center_y, center_x = centers[i]
        region = Region(
            columns.start,
            rows.start,
            columns.stop,
            rows.stop,
            int(areas[number]),
            float(peaks[i]),
            float(center_x),
            float(center_y),
        )
        found.append(region)
    return found


def outline(mask: np.ndarray) -> np.ndarray:
    """Give the pixels around the regions of a mask, (H, W) bool, none of which is in a region."""
    from scipy import ndimage

    marked = mask > 0
    return ndimage.binary_dilation(marked, np.ones((3, 3)), iterations=2) & ~marked
