"""One image file, decoded into the numbers that it holds, upright and with black as zero.

Ordinary files, of 8 bits or less, come as Pillow's images. Pillow drops the low byte of 16-bit
colours, refuses half of TIFF's types and takes spare channels for opacity. Such files are read by
tifffile and imagecodecs instead, and come as `RawImage`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

# Sound files carry megabytes of text. All of it together stays below Pillow's own limit.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
"""Pillow's readers that are asked. Others may run programs."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Color type of a PNG to its numbers per pixel."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COMPLEX = (5, 6)
"""Values of a TIFF's SampleFormat for complex numbers, whole and floating."""
_PNM_STARTS = (b"P2", b"P3", b"P5", b"P6")
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"
"""Start of a codestream and the marker of its sizes."""
_ORIENTATION = 0x0112
_PARTS = 2**22
"""Bytes of a TIFF's strips or tiles that are taken at a time, so that its file is not held twice."""


@dataclass(frozen=True)
class RawHeader:
    """What the header of a file says that Pillow must not decode."""

    format: str
    """``PNG``, ``TIFF``, ``PPM`` or ``JPEG2000``."""
    width: int
    """In pixels, before it is turned upright."""
    height: int
    """As `width`."""
    channels: int
    """Numbers per pixel, with the opacity."""
    alpha: bool
    """Whether the format says that the last of them is the opacity."""
    bits: int
    """Bits per number, fewer than its type has where the file declares that."""
    is_float: bool = False
    """Whether the numbers are floating-point."""
    is_signed: bool = False
    """Whether whole numbers may be negative."""
    white_is_zero: bool = False
    """Whether zero stands for white."""
    declared: tuple[float, float] | None = None
    """Least and largest value that the file declares, or None."""
    orientation: int = 1
    """As EXIF counts the ways to turn a picture."""

    @property
    def depth(self) -> str:
        """Give the `PixelRule.depth` that suits the file."""
        if self.is_float:
            return "float"
        return "eight" if self.bits <= 8 and not self.is_signed else "deep"

    @property
    def span(self) -> tuple[float, float]:
        """Give the least and the largest value that so many bits hold, of floats 0 and 1."""
        if self.is_float:
            return 0.0, 1.0
        if self.is_signed:
            return -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1
        return 0.0, 2.0**self.bits - 1


@dataclass(frozen=True)
class RawImage:
    """Pixels in a file's own numbers, upright."""

    pixels: np.ndarray
    """(H, W, C), with black as zero but for floats."""
    header: RawHeader
    """What its file says of them."""

    @property
    def size(self) -> tuple[int, int]:
        """Give width and height, as Pillow does."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def colors(self) -> np.ndarray:
        """Give the channels without the opacity, (H, W, C)."""
        return self.pixels[..., :-1] if self.header.alpha else self.pixels


def open_image(data: bytes) -> Image.Image:
    """Open a file by Pillow, which reads its header.

    Raises:
        ValueError: for numbers of many bits in a format of which `raw_header` knows nothing.
        Exception: whatever Pillow raises for damaged or unknown files.
    """
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if is_deep and raw_header(data) is None:
        raise ValueError(f"{image.format} of mode {image.mode} is not read, save it as TIFF")
    return image


def decode_bytes(data: bytes) -> Image.Image | RawImage:
    """Decode the first picture of a file, turned upright.

    Raises:
        Exception: whatever the readers raise for damaged or unknown files.
    """
    header = raw_header(data)
    if header is not None:
        return decode_raw(data, header)

    with open_image(data) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def raw_header(data: bytes) -> RawHeader | None:
    """Read the header of a file that Pillow must not decode. None for all others.

    Raises:
        Exception: for some damaged files.
    """
    if data.startswith(_PNG_START):
        return _png_header(data)
    if data.startswith(_TIFF_STARTS):
        return _tiff_header(data)
    if data.startswith(_PNM_STARTS):
        return _pnm_header(data)
    if data.startswith((b"\0\0\0\x0cjP  ", _JPEG2000_SIZE)):
        return _jpeg2000_header(data)
    return None


def decode_raw(data: bytes, header: RawHeader) -> RawImage:
    """Decode a file of which `raw_header` gave the header.

    Raises:
        Exception: whatever the readers raise for damaged files.
    """
    # Before anything is unpacked: a small file may claim any size.
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if header.width * header.height > limit:
        raise Image.DecompressionBombError(f"{header.width}x{header.height} pixels")

    pixels = _DECODERS[header.format](data)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[:2] != (header.height, header.width):
        raise ValueError(f"it holds {pixels.shape[:2]} pixels")
    # A decoder turns a PNG's transparent color into an opacity.
    if header.format == "PNG" and pixels.shape[2] == header.channels + 1:
        header = replace(header, channels=header.channels + 1, alpha=True)

    if header.white_is_zero and not header.is_float:
        pixels = _turned_around(pixels, header)
    return RawImage(_upright(pixels, header.orientation), header)


def _turned_around(pixels: np.ndarray, header: RawHeader) -> np.ndarray:
    """Make black zero of whole numbers whose zero is white."""
    if header.bits == 8 * pixels.dtype.itemsize:
        return np.invert(pixels)  # the largest value minus each, also of signed numbers
    largest = pixels.dtype.type(header.span[1])
    return largest - np.minimum(pixels, largest)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, C) as EXIF's orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# PNG


def _png_header(data: bytes) -> RawHeader | None:
    """Read the header of a PNG of 16 bits. None for one of fewer."""
    width, height, bits, color = struct.unpack(">IIBB", data[16:26])
    if bits != 16:
        return None
    declared = _significant_bits(data)
    return RawHeader(
        format="PNG",
        width=width,
        height=height,
        channels=_PNG_CHANNELS[color],
        alpha=color in (4, 6),
        bits=declared or 16,
        declared=(0.0, 2.0**declared - 1.0) if declared else None,
        orientation=_png_orientation(data),
    )


def _significant_bits(data: bytes) -> int:
    """Read the bits that a PNG of 16 bits says it uses, 0 where it says nothing or all."""
    start = data.find(b"sBIT", 0, data.find(b"IDAT"))
    bits = data[start + 4] if start > 0 else 0
    return bits if 8 < bits < 16 else 0


def _png_orientation(data: bytes) -> int:
    """Read the orientation of a PNG."""
    if b"eXIf" not in data and b"exif" not in data:
        return 1
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return int(image.getexif().get(_ORIENTATION, 1))


def _decode_png(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.png_decode(data)


# TIFF


def _tiff_header(data: bytes) -> RawHeader | None:
    """Read the header of a TIFF of many bits, of signed numbers, or of spare channels.

    None for one that Pillow decodes.
    """
    tags = _tiff_tags(data)
    photometric = tags.get(262, 1)
    samples = int(tags.get(277, 1))
    extra = tuple(tags.get(338, ()))
    bits = max(tags.get(258, (1,)))
    number_format = tags.get(339, (1,))[0]
    if photometric not in (0, 1, 2):
        return None  # palettes and inks: Pillow knows their colors
    if number_format in _COMPLEX:
        raise ValueError("its pixels are complex numbers; save their magnitudes")

    colors = 3 if photometric == 2 else 1
    has_alpha = samples == colors + 1 and extra in ((1,), (2,))
    is_ordinary = samples == colors or has_alpha
    if bits <= 8 and number_format in (1, 4) and is_ordinary:
        return None

    header = RawHeader(
        format="TIFF",
        width=int(tags[256]),
        height=int(tags[257]),
        channels=samples,
        alpha=has_alpha,
        bits=int(bits),
        is_float=number_format == 3,
        is_signed=number_format == 2,
        white_is_zero=photometric == 0,
        orientation=int(tags.get(274, 1)),
    )
    return replace(header, declared=_declared_samples(tags, header))


def _tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Read the tags of the first page."""
    is_big = b"+" in data[2:4]
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _declared_samples(
    tags: TiffImagePlugin.ImageFileDirectory_v2, header: RawHeader
) -> tuple[float, float] | None:
    """Give the range of values that the tags declare, None where it is that of the type."""
    if not header.is_float and header.bits not in (8, 16, 32, 64):
        return header.span
    if header.white_is_zero:
        return None  # the tags count from white
    for least, largest in ((340, 341), (280, 281)):
        high = _first_number(tags.get(largest))
        if high is not None:
            low = _first_number(tags.get(least)) or 0.0
            return (low, high) if low < high and (low, high) != header.span else None
    return None


def _first_number(value: object) -> float | None:
    """Give the first number of a tag's value, None where there is none."""
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) else None


def _decode_tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        # Files are read in threads already. Few of a page's parts are copied at a time.
        pixels = page.asarray(maxworkers=1, buffersize=_PARTS)
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, 2)  # planes: (C, H, W) -> (H, W, C)
        return pixels


# PGM and PPM


def _pnm_header(data: bytes) -> RawHeader | None:
    """Read the header of a PGM or PPM of more than 8 bits. None for one of fewer."""
    _, width, height, largest = _pnm_words(data)
    if largest <= 255:
        return None
    return RawHeader(
        format="PPM",
        width=width,
        height=height,
        channels=3 if data[1:2] in (b"3", b"6") else 1,
        alpha=False,
        bits=largest.bit_length(),
        declared=None if largest == 65535 else (0.0, float(largest)),
    )


def _pnm_words(data: bytes) -> tuple[int, int, int, int]:
    """Read the head of a PGM or PPM: where the pixels start, width, height and largest value.

    Raises:
        ValueError: where these are no numbers.
    """
    place = 2
    words: list[int] = []
    while len(words) < 3:
        while data[place : place + 1].isspace():
            place += 1
        if data[place : place + 1] == b"#":
            place = data.index(b"\n", place)
            continue

        start = place
        while data[place : place + 1].isdigit():
            place += 1
        words.append(int(data[start:place]))
    # A single white space ends the head.
    return place + 1, words[0], words[1], words[2]


def _decode_pnm(data: bytes) -> np.ndarray:
    start, width, height, _ = _pnm_words(data)
    channels = 3 if data[1:2] in (b"3", b"6") else 1
    count = width * height * channels
    if data[1:2] in (b"2", b"3"):
        values = np.array(data[start:].split()[:count], dtype=np.uint16)
    else:
        values = np.frombuffer(data, ">u2", count, start).astype(np.uint16)
    return values.reshape(height, width, channels)


# JPEG 2000


def _jpeg2000_header(data: bytes) -> RawHeader | None:
    """Read the header of a JPEG 2000 of more than 8 bits. None for one of fewer."""
    start = data.index(_JPEG2000_SIZE)
    right, bottom, left, top = struct.unpack(">IIII", data[start + 8 : start + 24])
    channels, depth = struct.unpack(">HB", data[start + 40 : start + 43])
    bits = (depth & 0x7F) + 1
    is_signed = bool(depth & 0x80)
    if bits <= 8 and not is_signed:
        return None
    header = RawHeader(
        format="JPEG2000",
        width=right - left,
        height=bottom - top,
        channels=channels,
        alpha=_has_opacity_box(data, channels),
        bits=bits,
        is_signed=is_signed,
    )
    return replace(header, declared=None if bits in (8, 16) else header.span)


def _has_opacity_box(data: bytes, channels: int) -> bool:
    """Tell whether the box of channel definitions names the last channel as the opacity."""
    start = data.find(b"cdef", 0, data.index(_JPEG2000_SIZE))
    if start < 0:
        return False
    (count,) = struct.unpack(">H", data[start + 4 : start + 6])
    for number in range(count):
        place = start + 6 + 6 * number
        channel, kind = struct.unpack(">HH", data[place : place + 4])
        if channel == channels - 1 and kind in (1, 2):
            return True
    return False


def _decode_jpeg2000(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpeg2k_decode(data)


_DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "PNG": _decode_png,
    "TIFF": _decode_tiff,
    "PPM": _decode_pnm,
    "JPEG2000": _decode_jpeg2000,
}
