"""Damaged images from whole ones, so that a network can be taught to mend them."""

from __future__ import annotations

import torch
from torch import Tensor

from adray.components.perlin import perlin_mask, perlin_noise

_PATCH_THRESHOLD = 0.3
"""Of the Perlin noise that shapes the patches; they cover about a sixth of an image."""
_OPACITY = (0.3, 1.0)
"""Least and most share of a patch's colour at a covered pixel; the rest is the image."""
_TEXTURE_EXPONENTS = (2, 7)
"""Cells per side of the texture inside patches: 2**2 to 2**6."""


def corrupt(image: Tensor, share: float, noise_std: float) -> Tensor:
    """Cover irregular patches with random colour and texture, and add noise everywhere.

    All is drawn with torch's global generators.

    Args:
        image: (B, 3, S, S) in [0, 1].
        share: probability in [0, 1] that an image is damaged at all.
        noise_std: standard deviation of the noise of a damaged image, in the image's unit.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    count = len(image)
    size = image.shape[-1]
    device = image.device

    # Every image is damaged, and then taken or not: so no step waits for the device.
    low, high = _OPACITY
    opacity = low + (high - low) * torch.rand(count, 1, 1, 1, device=device)
    mask = perlin_mask(count, size, _PATCH_THRESHOLD, device=device)
    damaged = torch.lerp(image, _textures(count, size, device), mask * opacity)
    damaged = (damaged + noise_std * torch.randn_like(image)).clamp(0, 1)

    is_damaged = torch.rand(count, 1, 1, 1, device=device) < share
    return torch.where(is_damaged, damaged, image)


def _textures(count: int, size: int, device: torch.device) -> Tensor:
    """Draw Perlin noise around a random colour, along another: (B, 3, S, S) in [0, 1]."""
    cells = 2 ** torch.randint(*_TEXTURE_EXPONENTS, (count, 2), device=device)
    noise = perlin_noise(size, cells, torch.zeros(count, device=device))  # (B, 1, S, S)
    color, direction = torch.rand(2, count, 3, 1, 1, device=device)
    return (color + noise * (2 * direction - 1)).clamp(0, 1)
