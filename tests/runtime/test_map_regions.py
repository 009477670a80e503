"""Regions without SciPy are those that SciPy finds."""

from __future__ import annotations

import numpy as np
import pytest

from adray import regions as with_scipy
from adray.runtime.regions import MOST_REGIONS, find_regions


def as_rows(regions):
    """What both say of a region."""
    return [
        (r.left, r.top, r.right, r.bottom, r.area, r.peak, r.center_x, r.center_y) for r in regions
    ]


def own_rows(regions):
    return [(r.x0, r.y0, r.x1, r.y1, r.area, r.peak, r.centroid_x, r.centroid_y) for r in regions]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (41, 1), (23, 31), (64, 5)])
def test_regions_of_noise_are_those_of_scipy(shape, share):
    values = np.random.default_rng(0).permutation(shape[0] * shape[1]).reshape(shape)
    noise = values.astype(np.float32)
    threshold = (1 - share) * noise.size
    expected = as_rows(with_scipy.find_regions(noise, threshold))
    found = own_rows(find_regions(noise, threshold))
    assert len(found) == min(len(expected), MOST_REGIONS)
    for one, other in zip(found, expected, strict=False):
        assert one == pytest.approx(other)


def test_a_spiral_and_a_checkerboard_are_one_region_each():
    spiral = np.zeros((41, 41), np.float32)
    row, column, step = 20, 20, (0, 1)
    for length in range(1, 20):
        for _ in range(2):
            for _ in range(2 * length):
                spiral[row, column] = 1
                row, column = row + step[0], column + step[1]
                if not (0 <= row < 41 and 0 <= column < 41):
                    break
            step = (step[1], -step[0])
            if not (0 <= row < 41 and 0 <= column < 41):
                break
        if not (0 <= row < 41 and 0 <= column < 41):
            break
    board = np.indices((40, 40)).sum(0) % 2
    for shape in (spiral, board.astype(np.float32)):
        (region,) = find_regions(shape, 1)
        assert region.area == shape.sum()
