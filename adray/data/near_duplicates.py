"""Pictures that show the same thing once more: saved again, made smaller, taken a moment later.

Two pictures are compared by small grey copies. Parts in a fixture all look alike, so a distance
means something only beside the distance that other pictures of the same parts have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MOST_LEVELS = 1.0
"""Grey levels of 255 that two near-duplicates may differ by, as the root of the mean square. On
MVTec AD, saving a picture again as a JPEG of quality 50, or at half of its size, moves its small
copy by 0.6 at most, and no two pictures are closer than 5.9."""
_PART_OF_USUAL = 1 / 3
"""Part of the usual distance that they may differ by besides."""
_BLOCK = 512
"""Rows of the table of distances that are made at a time."""


_SIDE = 32
"""Pixels along a side of a small copy."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Nearest:
    """A picture of one side, with the picture of the other side that is most like it."""

    index: int
    """Of the picture."""
    other: int
    """Of the one that it is most like."""
    distance: float
    """Grey levels between their small copies, as the root of the mean square."""


def find_near_duplicates(copies: np.ndarray, others: np.ndarray) -> list[Nearest]:
    """Find the pictures that nearly repeat one of the other side.

    All pairs are compared, by a matrix product for every 512 pictures.

    Args:
        copies: small grey copies (N, H, W) of the pictures, such as those of a test set.
        others: the same (M, H, W) of the other side, such as those that train.

    Returns:
        Those that differ by at most one grey level, and by at most a third of what is usual between
        the two sides, in the order of `copies`.
    """
    if not len(copies) or not len(others):
        return []
    rows = _flat(copies)
    columns = _flat(others)

    limit = _MOST_LEVELS
    found = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squares = _squared_distances(block, columns)
        if start == 0:
            usual = float(np.sqrt(np.median(squares)))
            limit = min(_MOST_LEVELS, _PART_OF_USUAL * usual)

        closest = squares.argmin(axis=1)
        # The product loses digits where two rows are nearly equal: this distance is taken anew.
        distances = np.sqrt(np.square(block - columns[closest]).mean(axis=1))
        for i in np.flatnonzero(distances <= limit):
            found.append(Nearest(start + int(i), int(closest[i]), float(distances[i])))
    return found


def small_copies(images: np.ndarray) -> np.ndarray:
    """Make small grey copies of (B, 3, H, W) uint8 pictures, (B, 32, 32) uint8.

    A side that is shorter than that stays as it is.
    """
    sums = np.einsum("bchw,c->bhw", images, _LUMINANCE)
    lengths = []
    for axis in (1, 2):
        size = sums.shape[axis]
        side = min(_SIDE, size)
        # A pixel of a copy is the mean of a block, of which some may be a pixel wider than others.
        edges = np.arange(side) * size // side
        lengths.append(np.diff(edges, append=size))
        sums = np.add.reduceat(sums, edges, axis=axis)
    return np.rint(sums / np.outer(*lengths)).astype(np.uint8)


def pairs_of_near_duplicates(copies: np.ndarray) -> list[tuple[int, int]]:
    """Find the pictures of one set that nearly repeat each other, as `find_near_duplicates` does.

    Args:
        copies: small grey copies (N, H, W) of the pictures.

    Returns:
        Positions of two pictures each, the lower one first.
    """
    if len(copies) < 2:
        return []
    rows = _flat(copies)
    limit = _MOST_LEVELS
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squares = _squared_distances(block, rows)
        if start == 0:
            usual = float(np.sqrt(np.median(squares)))
            limit = min(_MOST_LEVELS, _PART_OF_USUAL * usual)

        # The product is off by less than a level, so that what it finds is measured anew.
        near = np.argwhere(squares <= np.square(limit + _MOST_LEVELS))
        for i, other in near:
            first = start + int(i)
            distance = np.sqrt(np.square(rows[first] - rows[other]).mean())
            if first < other and distance <= limit:
                pairs.append((first, int(other)))
    return pairs


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Give the mean squared distances of rows (N, D) to columns (M, D), (N, M)."""
    # |a - b|^2 = |a|^2 - 2ab + |b|^2
    of_rows = np.square(rows).sum(axis=1)[:, None]
    of_columns = np.square(columns).sum(axis=1)[None, :]
    squares = of_rows - 2 * rows @ columns.T + of_columns
    return np.maximum(squares, 0) / rows.shape[1]


def _flat(copies: np.ndarray) -> np.ndarray:
    """Lay each copy out in a row, (N, H, W) -> (N, H * W), about the middle grey."""
    return copies.reshape(len(copies), -1).astype(np.float32) - 127.5
