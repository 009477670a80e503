"""Cut large images into tiles of the size that a model takes, and lay its maps together again."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from adray.tiling import tile_starts


def tile(image: Tensor, tile_size: int, overlap: float = 0.25) -> Tensor:
    """Cut an image into tiles, row by row.

    Args:
        image: (C, H, W).
        tile_size: side of a tile in pixels.
        overlap: as in `tile_starts`.

    Returns:
        (N, C, tile_size, tile_size).

    Raises:
        InputError: as `tile_starts`.
    """
    _, height, width = image.shape
    tiles = []
    for y, x in tile_corners(height, width, tile_size, overlap):
        tiles.append(image[:, y : y + tile_size, x : x + tile_size])
    return torch.stack(tiles)


def untile(tiles: Tensor, height: int, width: int, overlap: float = 0.25) -> Tensor:
    """Lay tiles side by side.

    Where they overlap, each pixel counts the more the nearer it is to its tile's middle.

    Args:
        tiles: (N, C, S, S) of `tile` with the same sizes and overlap.
        height: of the whole in pixels.
        width: of the whole in pixels.
        overlap: as in `tile_starts`.

    Returns:
        (C, height, width). Where all tiles agree, their value stays.

    Raises:
        InputError: as `tile_starts`.
    """
    _, channels, size, _ = tiles.shape
    from_start = torch.arange(size)
    ramp = 0.5 + torch.minimum(from_start, from_start.flip(0))  # (S,), from the edge to the middle
    weight = torch.outer(ramp, ramp).to(tiles)  # (S, S)

    whole = tiles.new_zeros(channels, height, width)
    total = tiles.new_zeros(height, width)
    corners = tile_corners(height, width, size, overlap)
    for part, (y, x) in zip(tiles, corners, strict=True):
        whole[:, y : y + size, x : x + size] += part * weight
        total[y : y + size, x : x + size] += weight
    # Every pixel lies in a tile, and the weights at a tile's edge are not 0.
    return whole / total


def tile_corners(height: int, width: int, tile_size: int, overlap: float) -> list[tuple[int, int]]:
    """Give the first row and column of each tile, row by row.

    Raises:
        InputError: as `tile_starts`.
    """
    rows = tile_starts(height, tile_size, overlap)
    columns = tile_starts(width, tile_size, overlap)
    return list(itertools.product(rows, columns))
