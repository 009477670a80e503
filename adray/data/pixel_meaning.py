"""What the numbers in a file mean: a grey level, a colour, or a defect.

Every format that Pillow opens becomes 8 bits here and nowhere else, and a mask becomes zeros and
ones. Sizes are no concern of this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from adray.errors import InputError

_TIFF_BITS_PER_SAMPLE = 258


def to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Bring any mode to ``L`` or ``RGB``.

    Grey stays one channel, which is cheaper to resize. 16 bits are scaled by 255/65535 (or by the
    bit depth that a TIFF declares), not clipped. Transparency is composited on black, the value
    that cut-outs usually hide there. A palette and CMYK become their colours.

    Args:
        image: the decoded image.
        path: names it in errors.

    Raises:
        InputError: for pixels whose range is unknown, or colours that have no RGB form.
    """
    if image.mode in ("L", "RGB"):
        return image if "transparency" not in image.info else _to_rgb(image, path)
    if image.mode == "1":
        return image.convert("L")
    if _is_deep(image):
        return _scale_deep(image, path)

    if image.mode == "F":
        raise InputError(
            f"image {path} holds floating-point pixels, whose range is unknown; "
            "save it with 8 or 16 bits"
        )
    return _to_rgb(image, path)


def defect_pixels(mask: Image.Image, path: Path) -> np.ndarray:
    """Find the defect in a mask: any pixel that is not zero, in any channel.

    Args:
        mask: the decoded mask.
        path: names it in errors.

    Returns:
        (H, W) uint8 with 1 on the defect.

    Raises:
        InputError: for colours that have no RGB form.
    """
    if not _is_one_channel(mask):
        mask = _to_rgb(mask, path)
    pixels = np.asarray(mask) != 0
    if pixels.ndim == 3:
        pixels = pixels.any(axis=2)  # (H, W, 3) -> (H, W)
    return pixels.astype(np.uint8)


def covered_share(mask: Image.Image) -> float:
    """Give the share of pixels with any channel set, also of pixels that are transparent.

    Raises:
        ValueError: for colours that have no RGB form.
    """
    pixels = np.asarray(mask if _is_one_channel(mask) else mask.convert("RGB")) != 0
    if pixels.ndim == 3:
        pixels = pixels.any(axis=2)  # (H, W, 3) -> (H, W)
    return float(pixels.mean())


def _is_deep(image: Image.Image) -> bool:
    """Tell whether pixels are one whole number of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _is_one_channel(image: Image.Image) -> bool:
    """Tell whether pixels are one number each, not a colour, an opacity or an index."""
    return image.mode in ("1", "L", "F") or _is_deep(image)


def _scale_deep(image: Image.Image, path: Path) -> Image.Image:
    """Scale the whole range of a deep image to 8 bits.

    Raises:
        InputError: for more bits than 16.
    """
    bits = _bit_depth(image)
    if not 8 <= bits <= 16:
        raise InputError(
            f"image {path} has {bits} bits per pixel, allowed are 8 to 16; "
            "save it with 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.float32) * (255.0 / (2**bits - 1))
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _bit_depth(image: Image.Image) -> int:
    """Count the bits per pixel.

    Only TIFF declares other than 16: PNG is exact, and Pillow stretches PGM to 16.
    """
    declared = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (16,))
    return int(declared[0])


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Give the colours of an image, what is transparent on black.

    Raises:
        InputError: for a mode that has no RGB form.
    """
    try:
        if image.has_transparency_data:
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(
            f"image {path} has mode {image.mode}, which has no RGB form; save it as RGB"
        ) from error
