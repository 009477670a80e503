"""An image file as the pixels that a bundle's graph takes.

Ordinary pictures alone: what Pillow would change silently, such as 16-bit colors, is refused.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adray.runtime.errors import BundleError

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF")
_PNG_BITS = slice(24, 25)
"""Bits per number in the header of a PNG."""
_BITS = 258
_PHOTOMETRIC = 262
_SAMPLES = 277
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339
_OPACITY = ((1,), (2,))
"""Values of a TIFF's tag of spare channels that say so."""
MOST_PIXELS = 178_956_970
"""Larger pictures are refused before they are unpacked, as Pillow does."""


def read_picture(path: str | Path, dtype: str) -> np.ndarray:
    """Read the first picture of a file, turned upright.

    Args:
        path: of the file.
        dtype: ``uint8``, or ``uint16`` for grey pictures of 16 bits.

    Returns:
        (H, W, 3) of that type, red first; grey is repeated.

    Raises:
        BundleError: for a file that is missing, damaged, or holds other numbers.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise BundleError(f"image {path} is no file; name an image file")
    try:
        return decode_picture(path.read_bytes(), dtype)
    except FileNotFoundError as error:
        raise BundleError(f"image {path} does not exist") from error
    except BundleError as error:
        raise BundleError(f"image {path} {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow fail in many ways
        raise BundleError(f"image {path} cannot be decoded ({error}); replace the file") from error


def picture_of(data: bytes, dtype: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode the bytes of a picture that came without a file, see `read_picture`.

    Raises:
        BundleError: for what is damaged, too large, or holds other numbers.
    """
    try:
        return decode_picture(data, dtype, most_pixels)
    except BundleError as error:
        raise BundleError(f"the image {error}") from error
    except UnidentifiedImageError as error:
        raise BundleError("the image is damaged, or of no format that is read here") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow fail in many ways
        text = " ".join(str(error).split())[:200]
        raise BundleError(f"the image cannot be decoded ({text})") from error


def decode_picture(data: bytes, dtype: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode a picture, see `read_picture`.

    Raises:
        BundleError: for too many pixels, and numbers of another depth, as the end of a sentence.
        Exception: whatever Pillow raises for damaged files.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # Its header says how large it becomes, before anything is unpacked.
        if image.width * image.height > most_pixels:
            raise BundleError(
                f"has {image.width} x {image.height} pixels, at most {most_pixels} are allowed"
            )

        # Pillow would drop the lower byte of deep colors without a sign.
        depth = _depth(image, data)
        if depth != dtype:
            raise BundleError(f"has {depth} pixels, but the model was trained on {dtype}")

        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        colors = plain_colors(image) if dtype == "uint8" else image
        return three_channels(np.asarray(colors))


def _depth(image: Image.Image, data: bytes) -> str:
    """Say of which type the numbers in a file are."""
    if image.mode in ("I", "F"):
        return "deep"
    if image.mode.startswith("I;16"):
        return "uint16" if _is_plain_deep(image) else "deep"
    if image.format == "PNG" and data[_PNG_BITS] == b"\x10":
        return "16-bit color"
    if image.format == "TIFF" and not _is_plain_tiff(image):
        return "deep or more than three"
    return "uint8"


def _is_plain_deep(image: Image.Image) -> bool:
    """Tell whether 16-bit numbers are whole, not negative, and black at zero."""
    if image.format != "TIFF":
        return True
    tags = image.tag_v2  # type: ignore[attr-defined]
    return tags.get(_PHOTOMETRIC, 1) == 1 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1


def _is_plain_tiff(image: Image.Image) -> bool:
    """Tell whether a TIFF holds 8-bit colors, and no channel besides but an opacity."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    photometric = tags.get(_PHOTOMETRIC, 1)
    if photometric not in (0, 1, 2):
        return True  # palettes and inks

    # A spare channel that is no opacity says that the file is no picture of colors.
    samples = int(tags.get(_SAMPLES, 1))
    colors = 3 if photometric == 2 else 1
    has_opacity = samples == colors + 1 and tuple(tags.get(_EXTRA_SAMPLES, ())) in _OPACITY
    is_whole = max(tags.get(_BITS, (1,))) <= 8 and tags.get(_SAMPLE_FORMAT, (1,))[0] in (1, 4)
    return is_whole and (samples == colors or has_opacity)


def plain_colors(image: Image.Image) -> Image.Image:
    """Give the colors of an ordinary image as ``L`` or ``RGB``, what is transparent on black.

    Black is the value that cut-outs usually hide there. A palette and CMYK become their colors.

    Raises:
        ValueError: for a mode that has no RGB form.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def three_channels(pixels: np.ndarray) -> np.ndarray:
    """Give pixels (H, W), (H, W, 1) or (H, W, 3) as (H, W, 3), where one channel is repeated.

    Raises:
        BundleError: for another shape.
    """
    deep = np.atleast_3d(pixels)
    if pixels.ndim not in (2, 3) or deep.shape[2] not in (1, 3) or not deep.size:
        raise BundleError(f"has the shape {pixels.shape}; give (H, W) or (H, W, 3), red first")
    return np.ascontiguousarray(np.broadcast_to(deep, (*deep.shape[:2], 3)))
