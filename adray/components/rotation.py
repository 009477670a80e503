"""Images turned about their middle, as few-shot methods do with their references."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def rotate(image: Tensor, degrees: Tensor, mode: str, border: str) -> Tensor:
    """Turn images counter-clockwise about their middle, at the same size.

    Args:
        image: (B, C, H, W) float32.
        degrees: (B,), multiples of 90 exchange the pixels of a square image.
        mode: ``"nearest"`` or ``"bilinear"``.
        border: what lies outside of the image: ``"zeros"``, or ``"reflection"`` that does not
            repeat the edge.

    Returns:
        (B, C, H, W).
    """
    height, width = image.shape[2:]
    radians = degrees.to(image.device, torch.float64).deg2rad()
    sine = radians.sin()
    cosine = radians.cos()
    # Each coordinate runs from -1 to 1, along the longer side over more pixels.
    aspect = (height - 1) / max(1, width - 1)

    # Where in the image a pixel of the turned one comes from: (B, 2, 3)
    zero = torch.zeros_like(sine)
    to_x = torch.stack([cosine, -sine * aspect, zero], dim=1)
    to_y = torch.stack([sine / aspect if aspect else zero, cosine, zero], dim=1)
    affine = torch.stack([to_x, to_y], dim=1)
    grid = F.affine_grid(affine, list(image.shape), align_corners=True)

    return F.grid_sample(image, grid.to(image.dtype), mode, border, align_corners=True)


def turned_views(image: Tensor, count: int) -> Iterator[Tensor]:
    """Yield views of (B, C, H, W) images turned by equal parts of a full turn.

    The images themselves are the first of the `count` views, and are left out. The border is
    mirrored.
    """
    for number in range(1, count):
        degrees = image.new_full((len(image),), 360.0 * number / count)
        yield rotate(image, degrees, "bilinear", "reflection")
