"""From uint8 pixels to what a network was trained on."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from adray.data.preprocessing import NORMALIZATIONS
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of


def normalization_name(normalize: str | bool) -> str:
    """Give the row of `NORMALIZATIONS` that is meant.

    True and False are the specification's imagenet and none.

    Raises:
        InputError: for another name.
    """
    if isinstance(normalize, bool):
        return "imagenet" if normalize else "none"
    if normalize not in NORMALIZATIONS:
        raise InputError(
            Sentence.of(
                "data normalize",
                normalize=repr(normalize),
                nearest=nearest_of(normalize, NORMALIZATIONS),
            )
        )
    return normalize


def normalize_images(images: Tensor, how: str = "imagenet") -> Tensor:
    """Normalise pixels on their device: (x / 255 - mean) / std per channel.

    Args:
        images: (B, 3, H, W) uint8.
        how: one of `NORMALIZATIONS`.

    Returns:
        (B, 3, H, W) float32.
    """
    scale, shift = _scale_and_shift(how, images.device)
    return images.to(torch.float32).mul_(scale).add_(shift)


@functools.cache
def _scale_and_shift(how: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make factor and summand of `normalize_images`, (3, 1, 1) each, kept on the device."""
    mean, std = torch.tensor(NORMALIZATIONS[how], dtype=torch.float64)[..., None, None]
    scale = 1 / (255 * std)  # (3, 1, 1)
    shift = -mean / std
    return scale.to(device, torch.float32), shift.to(device, torch.float32)
