"""Images in overlapping tiles: where these lie, and how their maps are laid together again.

A tile's map is unsure near the tile's edge, where a network sees nothing of the neighbour. So the
outer quarter of an overlap does not count where another tile reaches, and between it and the inner
quarter the weight of the one falls as that of the other rises. At the edge of the image, which a
network sees as it sees that of a whole image, a tile counts fully.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adray.errors import InputError
from adray.language.sentence import Sentence

TINY_WEIGHT = 1e-6
"""Of the outer quarter: nothing beside another tile's, but not 0 where rounding leaves a pixel to it
alone."""


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles."""

    tile: int
    """Side of a tile in pixels of the scaled image."""
    overlap: float
    """Part of a tile that its neighbour shares at least."""
    scale: float
    """Sides of the scaled image as parts of the image's own."""

    def grid(self, height: int, width: int) -> TileGrid:
        """Lay tiles over an image of some size."""
        scaled = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        return TileGrid(self.tile, self.overlap, *scaled)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image, row by row. An image smaller than a tile lies in its upper left."""

    tile: int
    """Side of a tile in pixels."""
    overlap: float
    """As in `tile_starts`."""
    height: int
    """Of the scaled image in pixels."""
    width: int
    """Of the scaled image in pixels."""

    @cached_property
    def rows(self) -> list[int]:
        """Give the first row of each row of tiles."""
        return tile_starts(max(self.height, self.tile), self.tile, self.overlap)

    @cached_property
    def columns(self) -> list[int]:
        """Give the first column of each column of tiles."""
        return tile_starts(max(self.width, self.tile), self.tile, self.overlap)

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.rows) * len(self.columns)

    def corner(self, number: int) -> tuple[int, int]:
        """Give the first row and column of a tile."""
        down, across = divmod(number, len(self.columns))
        return self.rows[down], self.columns[across]


def tile_starts(length: int, tile_size: int, overlap: float) -> list[int]:
    """Give the first pixels of evenly spread tiles that cover a side, the last one ending there.

    Args:
        length: side of the image in pixels.
        tile_size: side of a tile in pixels, at most `length`.
        overlap: part of a tile that its neighbour shares at least, from 0 to below 1.

    Raises:
        InputError: for a tile larger than the image, and an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise InputError(Sentence.of("tile overlap", overlap=str(overlap)))
    if not 1 <= tile_size <= length:
        raise InputError(Sentence.of("tile size", tile_size=tile_size, length=length))

    # As few steps as the overlap allows, all of one length to a pixel.
    rest = length - tile_size
    steps = math.ceil(rest / max(tile_size * (1 - overlap), 1))
    return [round(k * rest / max(steps, 1)) for k in range(steps + 1)]


def axis_weights(starts: list[int], tile_size: int) -> NDArray[np.float32]:
    """Weigh the pixels of each tile along one side of an image.

    Args:
        starts: of the tiles.
        tile_size: side of a tile in pixels.

    Returns:
        (tiles, `tile_size`) in (0, 1].
    """
    weights = np.ones((len(starts), tile_size), np.float32)
    middles = np.arange(tile_size) + 0.5
    for number in range(len(starts) - 1):
        shared = starts[number] + tile_size - starts[number + 1]
        if shared <= 0:
            continue
        # From 0 in the outer quarter of what is shared to 1 in the inner one.
        rise = np.clip((middles - shared / 4) / (shared / 2), TINY_WEIGHT, 1)
        weights[number] = np.minimum(weights[number], rise[::-1])
        weights[number + 1] = np.minimum(weights[number + 1], rise)
    return weights


class MapJoiner:
    """Lays the maps of an image's tiles together, one after the other.

    Args:
        grid: where the tiles lie.
    """

    def __init__(self, grid: TileGrid) -> None:
        self.grid = grid
        self._down = axis_weights(grid.rows, grid.tile)
        self._across = axis_weights(grid.columns, grid.tile)
        shape = (max(grid.height, grid.tile), max(grid.width, grid.tile))
        self._sum = np.zeros(shape, np.float32)
        self._total = np.zeros(shape, np.float32)

    def add(self, number: int, anomaly_map: NDArray[np.float32]) -> None:
        """Add the map of a tile, of any size."""
        side = self.grid.tile
        if anomaly_map.shape != (side, side):
            picture = Image.fromarray(np.ascontiguousarray(anomaly_map, np.float32))
            anomaly_map = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
        down, across = divmod(number, len(self.grid.columns))
        weight = np.outer(self._down[down], self._across[across])
        top, left = self.grid.corner(number)
        place = np.s_[top : top + side, left : left + side]
        self._sum[place] += anomaly_map * weight
        self._total[place] += weight

    def joined(self) -> NDArray[np.float32]:
        """Give the map of the scaled image, (height, width).

        What no tile was added for has the lowest value of the others.
        """
        known = self._total > 0
        whole = np.divide(self._sum, self._total, out=self._sum, where=known)
        if not known.all():
            whole[~known] = whole[known].min()
        return whole[: self.grid.height, : self.grid.width]


def image_score(scores: NDArray[np.float32], top: float) -> float:
    """Score an image by its tiles.

    Args:
        scores: of the tiles, (N,).
        top: part of the tiles, those with the highest scores, whose mean is taken; 0 takes the
            highest alone.
    """
    count = max(1, round(top * len(scores)))
    return float(np.sort(scores)[-count:].mean(dtype=np.float64))
