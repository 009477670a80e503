"""From an image file to a small uint8 array: decode, rotate, reduce to 8 bits, resize, crop.

The resize is Pillow's antialiased one on 8-bit values. Masks go through the same geometry by area,
see `adray.data.geometry` and `adray.data.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange, repeat
from PIL import Image, UnidentifiedImageError

from adray.data.geometry import Geometry
from adray.data.image_file import RawHeader, RawImage, decode_bytes
from adray.data.masks import find_defect, fit_to_image
from adray.data.pixel_meaning import EightBits, to_8_bits
from adray.errors import InputError
from adray.language.sentence import Sentence, Term
from adray.settings import DEFAULT_OPTIONS, DataOptions
from adray.tiling import TileGrid
from adray.types import BY_TYPE, PixelRule


@dataclass(frozen=True)
class DecodedImage:
    """An image as a model takes it, before normalization."""

    pixels: np.ndarray
    """(3, S, S) uint8, or (3, H, W) at its own size."""
    outside: float
    """Part of the file's pixels that lay outside of the rule's range, and were clipped."""
    size: tuple[int, int]
    """Height and width of the image itself, upright."""


@dataclass(frozen=True)
class DecodedPair:
    """An image and the defects that its masks show."""

    image: np.ndarray
    """(3, S, S) uint8."""
    defect: np.ndarray | None
    """(S, S) uint8 with 1 on defects, None without a mask."""
    outside: float
    """As in `DecodedImage`."""
    size: tuple[int, int]
    """As in `DecodedImage`."""


def decode_image(
    path: Path, img_size: int, crop_size: int | None = None, rule: PixelRule = BY_TYPE
) -> np.ndarray:
    """Decode one image.

    It becomes RGB as `to_8_bits` says, where one channel is repeated. An EXIF rotation is applied.
    Of several frames the first counts.

    Returns:
        (3, S, S) uint8 with S = `crop_size` or `img_size`.

    Raises:
        InputError: for a file that cannot be decoded, or that does not suit the rule.
    """
    return decode_file(path, Geometry(img_size, crop_size), rule).pixels


def decode_file(path: Path, geometry: Geometry, rule: PixelRule) -> DecodedImage:
    """Decode one image as `decode_image` does, and count what lies outside of the rule's range.

    Raises:
        InputError: for a file that cannot be decoded, or that does not suit the rule.
    """
    return _image_array(_read(path, "image"), path, geometry, rule)


def decode_full(path: Path, rule: PixelRule) -> DecodedImage:
    """Decode one image at its own size, otherwise as `decode_file` does.

    Raises:
        InputError: for a file that cannot be decoded, or that does not suit the rule.
    """
    eight = to_8_bits(_read(path, "image"), rule, path)
    return _decoded(eight, eight.image)


def full_array(array: np.ndarray, rule: PixelRule) -> DecodedImage:
    """Bring an image that is in memory to 8 bits, at its own size.

    Raises:
        InputError: for a type or shape that is no image's, or that does not suit the rule.
    """
    eight = to_8_bits(_array_image(array), rule, Path("array"))
    return _decoded(eight, eight.image)


def array_pixels(array: np.ndarray, geometry: Geometry, rule: PixelRule = BY_TYPE) -> DecodedImage:
    """Bring an image that is in memory to a size, as `decode_image` brings a file.

    Args:
        array: (H, W), (H, W, 1) or (H, W, 3), red first: uint8 from 0 to 255, or the numbers of
            deep images where the rule is theirs.
        geometry: the size.
        rule: of the model.

    Raises:
        InputError: for another type or shape.
    """
    return _image_array(_array_image(array), Path("array"), geometry, rule)


def _array_image(array: np.ndarray) -> Image.Image | RawImage:
    """See an array as a decoded image.

    Raises:
        InputError: for a type or shape that is no image's.
    """
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype.kind not in "uif" or not is_image or not array.size:
        raise InputError(Sentence.of("data array", dtype=str(array.dtype), shape=str(array.shape)))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))

    pixels = np.atleast_3d(array)
    header = RawHeader(
        format="array",
        width=pixels.shape[1],
        height=pixels.shape[0],
        channels=pixels.shape[2],
        alpha=False,
        bits=8 * array.dtype.itemsize,
        is_float=array.dtype.kind == "f",
        is_signed=array.dtype.kind == "i",
    )
    return RawImage(pixels, header)


def decode_pair(
    path: Path,
    mask_paths: Sequence[Path],
    geometry: Geometry,
    rule: PixelRule = BY_TYPE,
    options: DataOptions = DEFAULT_OPTIONS,
) -> DecodedPair:
    """Decode an image, and its masks where there are any, with one geometry.

    Args:
        path: of the image.
        mask_paths: of its masks, each of which shows some of its defects.
        geometry: the size.
        rule: how the image becomes 8 bits.
        options: what the user has said of masks.

    Raises:
        InputError: for a file that cannot be decoded or does not suit the rule, and a mask whose
            size differs from that of its image.
    """
    image = _read(path, "image")
    decoded = _image_array(image, path, geometry, rule)
    if not mask_paths:
        return DecodedPair(decoded.pixels, None, decoded.outside, decoded.size)

    defect = decode_defect(mask_paths, image.size, options, str(path))
    small = geometry.apply_to_defect(defect)
    return DecodedPair(decoded.pixels, small, decoded.outside, decoded.size)


@dataclass(frozen=True)
class ScaledImage:
    """An image that is ready to be cut into tiles."""

    whole: Image.Image
    """At its own size, 8 bits."""
    scaled: Image.Image
    """As its tiles are cut from it."""
    grid: TileGrid
    """Where these lie."""
    outside: float
    """As in `DecodedImage`."""

    @property
    def size(self) -> tuple[int, int]:
        """Give height and width of the image itself, upright."""
        width, height = self.whole.size
        return height, width

    def pixels(self) -> np.ndarray:
        """Give the pixels of the image itself, (3, H, W) uint8."""
        return _channels_first(self.whole)

    def tile(self, geometry: Geometry, number: int) -> np.ndarray:
        """Give the pixels of a tile as a model takes it, (3, S, S) uint8."""
        return _channels_first(geometry.cut(self.scaled, self.grid, number))


def scale_file(path: Path, geometry: Geometry, rule: PixelRule) -> ScaledImage:
    """Decode one image for its tiles.

    Raises:
        InputError: for a file that cannot be decoded, or that does not suit the rule.
    """
    return _scaled(to_8_bits(_read(path, "image"), rule, path), geometry)


def scale_array(array: np.ndarray, geometry: Geometry, rule: PixelRule) -> ScaledImage:
    """Bring an image that is in memory to where its tiles are cut.

    Raises:
        InputError: for a type or shape that is no image's, or that does not suit the rule.
    """
    return _scaled(to_8_bits(_array_image(array), rule, Path("array")), geometry)


def first_seen(path: Path, geometry: Geometry, rule: PixelRule) -> tuple[np.ndarray, np.ndarray]:
    """Decode what a model sees of an image, or of its tiles the one in the middle that counts.

    Returns:
        (3, S, S) uint8, and which of its pixels count, (S, S) bool.

    Raises:
        InputError: for a file that cannot be decoded, or that does not suit the rule.
    """
    if geometry.tiling is None:
        decoded = decode_file(path, geometry, rule)
        return decoded.pixels, geometry.inside(*decoded.size)
    scaled = scale_file(path, geometry, rule)
    numbers = geometry.counted_tiles(*scaled.size)
    number = numbers[len(numbers) // 2]
    return scaled.tile(geometry, number), geometry.tile_inside(*scaled.size, number)


def _scaled(eight: EightBits, geometry: Geometry) -> ScaledImage:
    """Scale a decoded image."""
    whole = eight.image
    grid = geometry.grid(whole.height, whole.width)
    return ScaledImage(whole, geometry.scaled_image(whole), grid, eight.outside)


def decode_defect(
    mask_paths: Sequence[Path], size: tuple[int, int], options: DataOptions, name: str
) -> np.ndarray:
    """Decode the defects that masks show together, (H, W) bool.

    Args:
        mask_paths: of one image.
        size: width and height of the image.
        options: what the user has said of masks.
        name: of the image, for errors.

    Raises:
        InputError: for a mask that cannot be decoded, or whose size differs from that of its image.
    """
    # Joined before any resize, which keeps each region of the whole.
    defect = np.zeros((size[1], size[0]), bool)
    for mask_path in mask_paths:
        found = _read_defect(mask_path, options.mask_threshold)
        defect |= fit_to_image(found, size, options.mask_fit, (str(mask_path), name))
    return defect


def _read_defect(path: Path, threshold: float | None) -> np.ndarray:
    """Read the defect of one mask, (H, W) bool.

    Raises:
        InputError: for a file that cannot be decoded.
    """
    mask = _read(path, "mask")
    try:
        return find_defect(mask, threshold).pixels
    except ValueError as error:
        said = Sentence.of("decode mask", path=str(path), error=str(error))
        raise InputError(said) from error


def _read(path: Path, kind: str) -> Image.Image | RawImage:
    """Decode the whole file, first frame, rotated as EXIF says.

    Args:
        path: the file.
        kind: ``"image"`` or ``"mask"``, for errors.

    Raises:
        InputError: for a file that is missing or damaged.
    """
    try:
        return decode_bytes(Path(path).read_bytes())
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise InputError(Sentence.of("decode missing", kind=Term(kind), path=str(path))) from error
    except UnidentifiedImageError as error:
        said = Sentence.of("decode no_image", kind=Term(kind), path=str(path))
        raise InputError(said) from error
    except Exception as error:  # damaged files make the readers fail in many ways
        said = Sentence.of("decode damaged", kind=Term(kind), path=str(path), error=str(error))
        raise InputError(said) from error


def _image_array(
    image: Image.Image | RawImage, path: Path, geometry: Geometry, rule: PixelRule
) -> DecodedImage:
    """Bring a decoded image to its size."""
    eight = to_8_bits(image, rule, path)
    return _decoded(eight, geometry.apply(eight.image))


def _decoded(eight: EightBits, pixels: Image.Image) -> DecodedImage:
    """Describe an image by the pixels that are taken of it."""
    width, height = eight.image.size
    return DecodedImage(_channels_first(pixels), eight.outside, (height, width))


def _channels_first(image: Image.Image) -> np.ndarray:
    """Copy the pixels of an ``L`` or ``RGB`` image, (3, H, W), where one channel is repeated."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return repeat(pixels, "h w -> 3 h w")
    return np.ascontiguousarray(rearrange(pixels, "h w c -> c h w"))
