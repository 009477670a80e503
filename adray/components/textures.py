"""Textures that are laid over normal images as synthetic defects: photographs, or noise without any."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from adray.components.perlin import perlin_noise
from adray.errors import InputError

logger = logging.getLogger(__name__)


def find_photographs(loaders: Any, name: str, size: int, instead: str) -> Any:
    """Open the photographs to paint with, see `LoaderSet.auxiliary`.

    Args:
        loaders: of the training.
        name: of the folder of photographs.
        size: side in pixels that they are brought to.
        instead: what is done without them, for the log.

    Returns:
        The photographs, or None where they are missing.
    """
    try:
        return loaders.auxiliary(name, size)
    except InputError as missing:  # the plan has said it before
        logger.info("%s; until then %s", missing, instead)
        return None


def draw_textures(photographs: Any, count: int, size: int, device: torch.device) -> Tensor:
    """Draw photographs, or noise where there are none, (count, 3, size, size) uint8."""
    if photographs is None:
        return noise_textures(count, size, device)
    index = torch.randint(len(photographs), (count,)).numpy()
    return torch.from_numpy(photographs[index]).to(device)


def noise_textures(count: int, size: int, device: torch.device) -> Tensor:
    """Draw colourful Perlin noise to paint with where there are no photographs.

    Returns:
        (count, 3, size, size) uint8.
    """
    cells = 2 ** torch.randint(1, 6, (3 * count, 2), device=device)
    rotation = torch.rand(3 * count, device=device) * math.pi
    noise = perlin_noise(size, cells, rotation)
    noise = rearrange(noise, "(b colors) 1 h w -> b colors h w", colors=3)
    return (127.5 + 127.5 * noise).byte()


def draw_number(low: float, high: float) -> float:
    """Draw a number of torch's global generator on the CPU, so that no device is waited for."""
    return low + (high - low) * torch.rand(()).item()


def image_functions() -> Any:
    """Give torchvision's changes of images as functions.

    To import it takes seconds that a plan does not pay.
    """
    from torchvision.transforms.v2 import functional

    return functional


def turned_texture(image: Tensor, degrees: float) -> Tensor:
    """Turn (3, H, W) about its middle, bilinearly. The corners become black."""
    from torchvision.transforms import InterpolationMode

    return image_functions().rotate(image, degrees, InterpolationMode.BILINEAR)
