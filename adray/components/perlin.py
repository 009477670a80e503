"""Perlin noise, and the irregular patches above a threshold of it, where synthetic defects are put.

Noise: K. Perlin, An Image Synthesizer, SIGGRAPH 1985, with the fade curve of his Improving Noise,
SIGGRAPH 2002.
Patches: V. Zavrtanik et al., DRAEM, ICCV 2021, https://arxiv.org/abs/2108.07610, section 3.3. Its
published code (https://github.com/VitjanZ/DRAEM, MIT) gives the range of scales and the threshold.
That code rotates a finished square of noise and leaves the corners empty; here the noise is
evaluated at rotated positions, so it has no corners.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LATTICE = 64
"""Gradients per axis; beyond them the noise repeats. A rotated square of 32 cells meets 47."""
_SCALE_EXPONENTS = 6
"""Cells per side are 2**0 to 2**5, as published."""


def perlin_noise(
    size: int, cells: Tensor, rotation: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw gradient noise, one square per row of `cells`, on the device of `cells`.

    Args:
        size: side of the squares in pixels.
        cells: (B, 2), lattice cells per side, vertically and horizontally. A pixel's value hangs
            together with those less than one cell away.
        rotation: (B,), radians by which the lattice is turned around the centre of the square.
        generator: of the gradients, on the same device, or None for torch's global one.

    Returns:
        (B, 1, size, size) float32 in [-1, 1], with mean 0.
    """
    gradients = _random_gradients(len(cells), generator, cells.device)  # (B, L, L, 2)
    position = _lattice_positions(size, cells, rotation)  # (B, S, S, 2)
    corner = position.floor()
    offset = position - corner  # (B, S, S, 2) in [0, 1)
    index = corner.long()
    square = torch.arange(len(cells), device=cells.device).view(-1, 1, 1)

    def slope(down: int, right: int) -> Tensor:
        """Follow the gradient of one corner of each pixel's cell to the pixel, (B, S, S)."""
        row = (index[..., 0] + down) % _LATTICE
        column = (index[..., 1] + right) % _LATTICE
        gradient = gradients[square, row, column]  # (B, S, S, 2)
        vertical = gradient[..., 0] * (offset[..., 0] - down)
        horizontal = gradient[..., 1] * (offset[..., 1] - right)
        return vertical + horizontal

    # The fade curve of 2002, 6 t^5 - 15 t^4 + 10 t^3, is flat at both ends of a cell.
    weight = offset**3 * (offset * (offset * 6 - 15) + 10)
    above = torch.lerp(slope(0, 0), slope(0, 1), weight[..., 1])
    below = torch.lerp(slope(1, 0), slope(1, 1), weight[..., 1])
    noise = torch.lerp(above, below, weight[..., 0])  # (B, S, S), at most 1 / sqrt(2)
    return math.sqrt(2.0) * noise[:, None]


def perlin_mask(
    count: int,
    size: int,
    threshold: float = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw random patches: Perlin noise of random scale and rotation above a threshold.

    Args:
        count: B, number of masks.
        size: side in pixels.
        threshold: of the noise, which lies in [-1, 1]. Higher gives fewer and smaller patches.
        generator: on `device`, or None for torch's global one.
        device: where the masks are made.

    Returns:
        (B, 1, size, size) float32, 1 inside patches and 0 outside. A mask may be empty: its image
        is then normal.
    """
    cells = 2 ** torch.randint(_SCALE_EXPONENTS, (count, 2), generator=generator, device=device)
    rotation = (torch.rand(count, generator=generator, device=device) - 0.5) * math.pi
    return (perlin_noise(size, cells, rotation, generator) > threshold).float()


def _random_gradients(
    count: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw vectors of length 1 in random directions, (B, L, L, 2)."""
    angle = 2 * math.pi * torch.rand(count, _LATTICE, _LATTICE, generator=generator, device=device)
    return torch.stack([angle.cos(), angle.sin()], -1)


def _lattice_positions(size: int, cells: Tensor, rotation: Tensor) -> Tensor:
    """Give where each pixel's centre lies on the turned lattice, in cells, (B, S, S, 2)."""
    # From the middle of the square, in parts of its side: in (-0.5, 0.5).
    center = (torch.arange(size, device=cells.device) + 0.5) / size - 0.5
    y = center.view(1, -1, 1)
    x = center.view(1, 1, -1)

    cos = rotation.cos().view(-1, 1, 1)
    sin = rotation.sin().view(-1, 1, 1)
    turned = torch.stack([y * cos + x * sin, x * cos - y * sin], -1)  # (B, S, S, 2)
    return (turned + 0.5) * cells.view(-1, 1, 1, 2)
