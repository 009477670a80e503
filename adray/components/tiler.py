"""Cut large images into tiles of the size that a model takes, and lay what it says of them side by side again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adray.errors import InputError


def tile_starts(length: int, tile_size: int, overlap: float) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` pixels, the last one ending at the edge.

    Args:
        length: side of the image in pixels.
        tile_size: side of a tile in pixels, at most `length`.
        overlap: part of a tile that its neighbour shares at least, from 0 to below 1.

    Raises:
        InputError: for a tile larger than the image, and an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise InputError(
            f"tile overlap is {overlap}, but must be at least 0 and below 1; 0.25 suits most images"
        )
    if not 1 <= tile_size <= length:
        raise InputError(
            f"tiles of {tile_size} pixels do not fit into {length}; use images of at least that size"
        )
    count = math.ceil((length - tile_size) / max(tile_size * (1 - overlap), 1)) + 1
    return [round(k * (length - tile_size) / max(count - 1, 1)) for k in range(count)]


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
    rows, columns = (tile_starts(side, tile_size, overlap) for side in image.shape[1:])
    return torch.stack(
        [image[:, y : y + tile_size, x : x + tile_size] for y in rows for x in columns]
    )


def untile(tiles: Tensor, height: int, width: int, overlap: float = 0.25) -> Tensor:
    """Lay tiles side by side; where they overlap, each pixel counts the more the nearer it is to its tile's middle.

    Args:
        tiles: (N, C, S, S) of `tile` with the same sizes and overlap.
        height: of the whole in pixels.
        width: of the whole in pixels.
        overlap: as in `tile_starts`.

    Returns:
        (C, height, width); where all tiles agree, their value.

    Raises:
        InputError: as `tile_starts`.
    """
    size = tiles.shape[-1]
    rows, columns = (tile_starts(side, size, overlap) for side in (height, width))
    ramp = 0.5 + torch.minimum(
        torch.arange(size), torch.arange(size).flip(0)
    )  # (S,) from the edge to the middle
    weight = torch.outer(ramp, ramp).to(tiles)  # (S, S)
    whole, total = tiles.new_zeros(tiles.shape[1], height, width), tiles.new_zeros(height, width)
    for part, (y, x) in zip(tiles, [(y, x) for y in rows for x in columns], strict=True):
        whole[:, y : y + size, x : x + size] += part * weight
        total[y : y + size, x : x + size] += weight
    return whole / total
