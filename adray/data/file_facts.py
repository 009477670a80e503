"""What the bytes of one file hold: digest, size, damage, and of a mask whether it is empty."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adray.data.pixel_meaning import covered_share

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's orientation that swap width and height."""


_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}
"""Bits of Pillow's modes that have not 8."""


@dataclass(frozen=True)
class FileFacts:
    """What one file holds."""

    digest: str
    """BLAKE2b of the bytes, 128 bits in hex; empty where the file cannot be read."""
    width: int = 0
    """Pixels, after rotation by EXIF; 0 where the image cannot be opened."""
    height: int = 0
    """As `width`."""
    problem: str | None = None
    """What is wrong with the file, or None."""
    empty: bool | None = None
    """For masks whether no pixel is set, else None."""
    format: str = ""
    """How the file is written: ``PNG``, ``JPEG``, ``TIFF`` and so on, as Pillow names it."""
    mode: str = ""
    """What a pixel is: ``L``, ``RGB``, ``I;16`` and so on, as Pillow names it."""
    bits: int = 0
    """Of one channel of a pixel."""
    compression: str = ""
    """How strongly it is compressed: a hash of a JPEG's tables, a TIFF's method, else empty."""
    covered: float | None = None
    """For masks the share of pixels that are set, else None."""

    def complaint(self, path: Path) -> str:
        """Write the sentence for the user of a file that has a problem."""
        return f"{path}: {self.problem}; replace the file or take it out of the data set"


def image_facts(data: bytes) -> FileFacts:
    """Look at an image file's bytes for damage, without decoding where the format allows."""
    return _facts(data, _verify)


def mask_facts(data: bytes) -> FileFacts:
    """Look at a mask file's bytes for damage and emptiness, which decodes them."""
    return _facts(data, _share)


def decoded_facts(data: bytes) -> FileFacts:
    """Look at an image file's bytes for damage by decoding them."""
    return _facts(data, _decode)


def picture_digest(data: bytes) -> str:
    """Hash what is on an image however its file is written, empty where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Deep pixels would be clipped by the conversion, and different ones made equal.
            is_deep = _BITS.get(image.mode, 8) > 8
            pixels = image.copy() if is_deep else image.convert("RGB")
    except Exception:  # PIL's decoders raise nearly anything on damaged bytes
        return ""
    size = repr(pixels.size).encode()
    return hashlib.blake2b(size + pixels.tobytes(), digest_size=16).hexdigest()


def _facts(data: bytes, look: Callable[[Image.Image, bytes], float | None]) -> FileFacts:
    """Open the image, take its size and let `look` find damage or the share that is set."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if not data:
        return FileFacts(digest, problem="the file is empty (0 bytes)")

    try:
        with Image.open(io.BytesIO(data)) as image:
            covered = look(image, data)
            # Afterwards, since decoding a TIFF turns it upright.
            width, height = _upright_size(image, data)
            return FileFacts(
                digest,
                width,
                height,
                empty=None if covered is None else covered == 0,
                format=image.format or "",
                mode=image.mode,
                bits=_BITS.get(image.mode, 8),
                compression=_compression(image),
                covered=covered,
            )
    except Image.UnidentifiedImageError:
        problem = "the file is not an image that can be read, or its start is damaged"
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        problem = f"the image claims more than {limit} million pixels"
    except Exception as error:  # PIL's decoders raise nearly anything on damaged bytes
        problem = f"the image is damaged or cut short ({error})"
    return FileFacts(digest, problem=problem)


def _compression(image: Image.Image) -> str:
    """Name how strongly a file is compressed, empty where its format has one way only."""
    tables = getattr(image, "quantization", None)
    if tables:
        return hashlib.blake2b(repr(sorted(tables.items())).encode(), digest_size=4).hexdigest()
    return str(image.info.get("compression", ""))


def _upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Give (width, height) as the image is seen once EXIF's rotation is applied."""
    # PNG's own getexif decodes all pixels in search of a late eXIf chunk, which is rarely there.
    if image.format == "PNG" and b"eXIf" not in data:
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()

    width, height = image.size
    return (height, width) if exif.get(_ORIENTATION) in _SIDEWAYS else (width, height)


def _verify(image: Image.Image, data: bytes) -> None:
    """Look for damage by the checksums of a PNG, the end mark of a JPEG, or by decoding.

    Raises:
        Exception: whatever PIL raises for a damaged image.
    """
    if image.format == "PNG":
        # verify() wants an image that nobody has touched
        with Image.open(io.BytesIO(data)) as fresh:
            fresh.verify()
        return

    # Marks are escaped inside compressed data: an end after the last start of scan ends the image.
    has_end = data.rfind(b"\xff\xd9") >= data.rfind(b"\xff\xda")
    if image.format not in ("JPEG", "MPO") or not has_end:
        image.load()


def _decode(image: Image.Image, data: bytes) -> None:
    """Look for damage by decoding.

    Raises:
        Exception: whatever PIL raises for a damaged image.
    """
    image.load()


def _share(mask: Image.Image, data: bytes) -> float:
    """Give the share of a mask's pixels that are set, which decodes it."""
    return covered_share(mask)
