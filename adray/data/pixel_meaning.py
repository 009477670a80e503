"""What the numbers in an image mean: a grey level or a color.

Every file becomes 8 bits here and nowhere else, as the trial's `PixelRule` says. Sizes are no
concern of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adray.data.file_facts import kind_of
from adray.data.image_file import RawImage
from adray.data.pixel_rule import refusal, refused
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.runtime.picture import plain_colors
from adray.types import PixelRule

_STRIP = 2**20
"""Numbers that are scaled at a time, so that floating-point copies stay small."""


@dataclass(frozen=True)
class EightBits:
    """An image after its pixels have got their meaning."""

    image: Image.Image
    """Of mode ``L`` or ``RGB``."""
    outside: float = 0.0
    """Part of its pixels that lay outside of the rule's range."""


def to_8_bits(image: Image.Image | RawImage, rule: PixelRule, path: Path) -> EightBits:
    """Bring any image to ``L`` or ``RGB``.

    Grey stays one channel, which is cheaper to resize. Deep pixels are scaled as the rule says, and
    clipped. Transparency is composited on black, the value that cut-outs usually hide there. A
    palette and CMYK become their colors.

    Args:
        image: decoded.
        rule: of the trial or the model.
        path: names the image in errors.

    Raises:
        InputError: for an image that does not suit the rule.
    """
    reason = refusal(kind_of(image), rule)
    if reason is not None:
        raise InputError(refused(path, reason))

    if isinstance(image, RawImage):
        eight = _scale(image, rule, path)
    elif isinstance(rule.channels, tuple):
        eight = EightBits(_picked(image, rule.channels, path))
    else:
        eight = EightBits(_colors(image, path))
    if rule.channels == "gray":
        return EightBits(eight.image.convert("L"), eight.outside)
    return eight


def _colors(image: Image.Image, path: Path) -> Image.Image:
    """Give the colors of an ordinary image, what is transparent on black.

    Raises:
        InputError: for a mode that has no RGB form.
    """
    try:
        return plain_colors(image)
    except ValueError as error:
        reason = Sentence.of("pixels no_rgb", mode=image.mode)
        raise InputError(refused(path, reason)) from error


def _picked(image: Image.Image, positions: tuple[int, int, int], path: Path) -> Image.Image:
    """Give three channels of an ordinary image, with the opacity among its channels."""
    if image.mode in ("P", "PA"):
        image = _colors(image, path)
    if image.mode == "1":
        image = image.convert("L")
    pixels = np.atleast_3d(np.asarray(image))
    return Image.fromarray(np.ascontiguousarray(pixels[..., list(positions)]))


def _scale(image: RawImage, rule: PixelRule, path: Path) -> EightBits:
    """Scale a file's own numbers.

    Raises:
        InputError: for floats outside of [0, 1] where each file is scaled by its type.
    """
    values = image.colors
    if isinstance(rule.channels, tuple):
        values = image.pixels[..., list(rule.channels)]
    low, high = _range_of(image, rule)
    if image.header.is_float:
        values = _checked_floats(image, values, (low, high), rule, path)

    outside = _part_outside(values, low, high)
    pixels = _scaled(values, low, high)
    if image.header.alpha and isinstance(rule.channels, str):
        largest = image.header.span[1]
        opacity = image.pixels[..., -1:].astype(np.float32) / largest
        pixels = np.rint(pixels * opacity.clip(0, 1)).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return EightBits(Image.fromarray(np.ascontiguousarray(pixels)), outside)


def _part_outside(values: np.ndarray, low: float, high: float) -> float:
    """Give the part of pixels (H, W, C) of which a number lies outside of a range."""
    is_outside = (values < low) | (values > high)
    return float(is_outside.any(axis=2).mean())


def _range_of(image: RawImage, rule: PixelRule) -> tuple[float, float]:
    """Give the values that become 0 and 255."""
    if rule.low is not None and rule.high is not None:
        return rule.low, rule.high
    if image.header.depth == "eight":
        return 0.0, 255.0
    span = image.header.span
    # A PNG that declares 12 bits may hold them in the upper ones of 16.
    if not image.header.is_float and image.colors.max() > span[1]:
        return 0.0, float(np.iinfo(image.pixels.dtype).max)
    return span


def _checked_floats(
    image: RawImage,
    values: np.ndarray,
    limits: tuple[float, float],
    rule: PixelRule,
    path: Path,
) -> np.ndarray:
    """Give floating-point values with black as zero, once they are known to be numbers.

    Raises:
        InputError: for values that are not finite, and those outside of [0, 1] where each file is
            scaled by its type.
    """
    if not np.isfinite(values).all():
        raise InputError(refused(path, Sentence.of("pixels not_finite")))
    if rule.depth == "dtype" and (values.min() < 0 or values.max() > 1):
        raise InputError(refused(path, Sentence.of("pixels floats_beyond")))
    return sum(limits) - values if image.header.white_is_zero else values


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values (H, W, C) so that `low` becomes 0 and `high` 255, the rest clipped."""

    def scale(some: np.ndarray) -> np.ndarray:
        levels = (some.astype(np.float64) - low) * (255.0 / (high - low))
        return np.rint(levels).clip(0, 255).astype(np.uint8)

    if values.dtype.itemsize <= 2 and values.dtype.kind in "ui":
        return _by_table(values, scale)
    rows = max(1, _STRIP // max(1, values[0].size))
    strips = [scale(values[first : first + rows]) for first in range(0, len(values), rows)]
    return np.concatenate(strips)


def _by_table(values: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Look each value up among all that its type holds, which takes no floating-point copies."""
    limits = np.iinfo(values.dtype)
    table = scale(np.arange(limits.min, limits.max + 1))
    if limits.min < 0:
        return table[values.astype(np.int32) - limits.min]
    return table[values]
