"""What the bytes of one file hold: digest, size, kind of pixels, damage, and of a mask its defect."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from adray.data.image_file import (
    RawHeader,
    RawImage,
    decode_bytes,
    decode_raw,
    open_image,
    raw_header,
)
from adray.data.masks import Region, find_defect, find_regions
from adray.language.sentence import Sentence, Term

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's orientation that swap width and height."""
_PALETTES_AND_INKS = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes that become RGB whatever the number of their channels."""
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_STRAY_PART = 1e-4
"""Part of a file's pixels at either end that may be faulty: it does not count for its range."""
_MOST_VALUES = 2**22
"""Number of pixels that the range of a large file is measured on."""
_MOST_REGIONS = 256


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
    """For masks whether no pixel is a defect, else None."""
    format: str = ""
    """``PNG``, ``JPEG``, ``TIFF``, ...; empty where the image cannot be opened."""
    mode: str = ""
    """Pillow's mode such as ``RGB``, or the type of the numbers such as ``uint16``."""
    bits: int = 8
    """Bits per number, fewer than its type has where the file declares that."""
    depth: str = "eight"
    """``eight``, ``deep`` for more bits and signed numbers, ``float``."""
    channels: int = 1
    """Numbers per pixel, with the opacity."""
    alpha: bool = False
    """Whether the last of them is the opacity."""
    frames: int = 1
    """Pictures in the file, of which the first counts."""
    white_is_zero: bool = False
    """Whether the file is a TIFF of many bits whose zero is white."""
    declared: tuple[float, float] | None = None
    """Least and largest value of a deep file as it declares them itself, else None."""
    low: float | None = None
    """Least value of a deep file but for a few faulty pixels, with black as zero; else None."""
    high: float | None = None
    """As `low`, the largest."""
    compression: str = ""
    """How strongly it is compressed: a hash of a JPEG's tables, a TIFF's method, ``lossless`` or
    ``lossy`` of a WebP, else empty."""
    levels: str = ""
    """Of a mask the rule that finds its defect, see `adray.data.masks`."""
    covered: float = 0.0
    """Of a mask the part of its pixels that are a defect."""
    regions: tuple[Region, ...] = ()
    """Of a mask its connected regions, the smallest first and at most 256: area, left, top, right
    and bottom in pixels."""

    picture: str = ""
    """Of a small image the hash of what is on it, see `picture_digest`; else empty."""

    @property
    def colors(self) -> int:
        """Count the channels of color: 1 for grey, 3 for RGB and what becomes RGB."""
        return 3 if self.mode in _PALETTES_AND_INKS else self.channels - self.alpha

    def complaint(self, path: Path) -> Sentence:
        """Make the sentence for the user of a file that has a problem."""
        problem = Term(self.problem or "")
        return Sentence.of("found damaged_file", path=str(path), problem=problem)


def image_facts(data: bytes, small: int = 0) -> FileFacts:
    """Look at an image file's bytes for damage.

    Ordinary files are not decoded where their format has other means, deep ones are: for their
    range.

    Args:
        data: of the file.
        small: number of pixels up to which an image is decoded and hashed besides.
    """
    return _facts(data, lambda data, digest: _look_at_image(data, digest, small))


def mask_facts(data: bytes, threshold: float | None) -> FileFacts:
    """Look at a mask file's bytes for damage and for its defect, which decodes them.

    Args:
        data: of the file.
        threshold: values above it are a defect, None to tell by the values.
    """
    return _facts(data, lambda data, digest: _look_at_mask(data, digest, threshold))


def decoded_facts(data: bytes) -> FileFacts:
    """Look at an image file's bytes for damage by decoding them."""
    return _facts(data, _look_by_decoding)


def picture_digest(data: bytes) -> str:
    """Hash what is on an image however its file is written, empty where it cannot be decoded."""
    try:
        return _picture_digest(decode_bytes(data))
    except Exception:  # the decoders raise nearly anything on damaged bytes
        return ""


def _picture_digest(picture: Image.Image | RawImage) -> str:
    """Hash the pixels of an upright image."""
    if isinstance(picture, RawImage):
        pixels = picture.pixels
    else:
        pixels = np.asarray(picture.convert("RGB"))
    kind = repr((pixels.shape, pixels.dtype.str)).encode()
    return hashlib.blake2b(kind + pixels.tobytes(), digest_size=16).hexdigest()


def _facts(data: bytes, look: Callable[[bytes, str], FileFacts]) -> FileFacts:
    """Give what `look` finds, or what keeps it from finding anything."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if not data:
        return FileFacts(digest, problem="the file is empty (0 bytes)")

    try:
        return look(data, digest)
    except Image.UnidentifiedImageError:
        problem = "the file is not an image that can be read, or its start is damaged"
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        problem = f"the image claims more than {limit} million pixels"
    except NotFiniteError as error:
        problem = str(error)
    except Exception as error:  # the decoders raise nearly anything on damaged bytes
        problem = f"the image is damaged or cut short ({error})"
        if "MAX_TEXT" in str(error):
            problem = "the file carries more text beside its picture than can be read"
    return FileFacts(digest, problem=problem)


class NotFiniteError(ValueError):
    """Pixels that are no numbers."""


def _look_at_image(data: bytes, digest: str, small: int) -> FileFacts:
    """Give the facts of an image, with the hash of what is on it up to `small` pixels."""
    header = raw_header(data)
    if header is not None:
        image = decode_raw(data, header)
        facts = _with_range(_facts_of_raw(image.header, data, digest), image)
        is_small = facts.width * facts.height <= small
        return replace(facts, picture=_picture_digest(image)) if is_small else facts

    with open_image(data) as opened:
        _verify(opened, data)
        facts = _pillow_facts(opened, data, digest)
        is_small = facts.width * facts.height <= small
        return replace(facts, picture=_digest_of_opened(opened)) if is_small else facts


def _digest_of_opened(image: Image.Image) -> str:
    """Hash what is on an opened file, empty where it cannot be decoded."""
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _picture_digest(image)
    except Exception:  # the decoders raise nearly anything on damaged bytes
        return ""


def _look_at_mask(data: bytes, digest: str, threshold: float | None) -> FileFacts:
    """Give the facts of a mask."""
    header = raw_header(data)
    if header is not None:
        facts = _facts_of_raw(header, data, digest)
    else:
        with open_image(data) as image:
            facts = _pillow_facts(image, data, digest)

    mask = decode_bytes(data)
    defect = find_defect(mask, threshold)
    return replace(
        facts,
        width=mask.size[0],
        height=mask.size[1],
        empty=not defect.pixels.any(),
        levels=defect.levels,
        covered=float(defect.pixels.mean()),
        regions=find_regions(defect.pixels, _MOST_REGIONS),
    )


def _look_by_decoding(data: bytes, digest: str) -> FileFacts:
    """Decode a file, and give its size."""
    width, height = decode_bytes(data).size
    return FileFacts(digest, width, height)


def kind_of(image: Image.Image | RawImage) -> FileFacts:
    """Give what a decoded image says of its file, without a digest."""
    if isinstance(image, RawImage):
        return _raw_facts(image.header)

    has_mark = "transparency" in image.info  # a color or palette entries that are transparent
    alpha = image.mode in _ALPHA_MODES or has_mark
    return FileFacts(
        digest="",
        width=image.width,
        height=image.height,
        format=image.format or "",
        mode=image.mode,
        bits=1 if image.mode == "1" else 8,
        channels=len(image.getbands()) + (has_mark and image.mode not in _ALPHA_MODES),
        alpha=alpha,
    )


def _raw_facts(header: RawHeader) -> FileFacts:
    """Give what the header of a file says that Pillow does not decode."""
    kind = "float" if header.is_float else "int" if header.is_signed else "uint"
    size = next(size for size in (8, 16, 32, 64, 128) if header.bits <= size)
    is_sideways = header.orientation in _SIDEWAYS
    return FileFacts(
        digest="",
        width=header.height if is_sideways else header.width,
        height=header.width if is_sideways else header.height,
        format=header.format,
        mode=f"{kind}{size}",
        bits=header.bits,
        depth=header.depth,
        channels=header.channels,
        alpha=header.alpha,
        white_is_zero=header.white_is_zero,
        declared=header.declared,
    )


def _pillow_facts(image: Image.Image, data: bytes, digest: str) -> FileFacts:
    """Give what Pillow says of an opened file."""
    # Behind all else, since decoding a TIFF turns it upright.
    width, height = _upright_size(image, data)
    frames = _count_frames(image)
    return replace(
        kind_of(image),
        digest=digest,
        width=width,
        height=height,
        frames=frames,
        compression=_compression(image, data),
    )


def _compression(image: Image.Image, data: bytes) -> str:
    """Name how strongly a file is compressed, empty where its format has one way only."""
    if image.format == "WEBP":
        return "lossless" if b"VP8L" in data else "lossy"
    tables = getattr(image, "quantization", None)
    if tables:
        return hashlib.blake2b(repr(sorted(tables.items())).encode(), digest_size=4).hexdigest()
    return str(image.info.get("compression", ""))


def _count_frames(image: Image.Image) -> int:
    """Count the pictures in a file, 1 where they cannot be counted."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a later picture is damaged, which the first need not mind
        return 1


def _facts_of_raw(header: RawHeader, data: bytes, digest: str) -> FileFacts:
    """Give what a file says that Pillow does not decode, with its digest and pages."""
    frames = _count_pages(data) if header.format == "TIFF" else 1
    return replace(_raw_facts(header), digest=digest, frames=frames)


def _count_pages(data: bytes) -> int:
    """Count the pages of a TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return len(file.pages)
    except Exception:  # a later page is damaged, which the first need not mind
        return 1


def _with_range(facts: FileFacts, image: RawImage) -> FileFacts:
    """Add the range of an image's values.

    Raises:
        NotFiniteError: for values that are no numbers.
    """
    values = image.colors
    if image.header.is_float and not np.isfinite(values).all():
        raise NotFiniteError("the image holds values that are not finite (NaN or infinite)")
    if facts.depth == "eight":
        return facts

    flat = values.reshape(-1)
    flat = flat[:: -(-len(flat) // _MOST_VALUES)]
    stray = int(len(flat) * _STRAY_PART)
    ordered = np.partition(flat, (stray, len(flat) - 1 - stray))
    return replace(facts, low=float(ordered[stray]), high=float(ordered[len(flat) - 1 - stray]))


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
        with open_image(data) as fresh:
            fresh.verify()
        return

    # Marks are escaped inside compressed data: an end after the last start of scan ends the image.
    has_end = data.rfind(b"\xff\xd9") >= data.rfind(b"\xff\xda")
    if image.format not in ("JPEG", "MPO") or not has_end:
        image.load()
