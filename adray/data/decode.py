"""From an image file to a small uint8 array: decode, rotate, reduce to 8 bits, resize, crop.

The resize is Pillow's antialiased one on 8-bit values, to a square without regard to the aspect
ratio, as the published figures of the benchmarks are made; masks go through the same geometry by
nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange, repeat
from PIL import Image, ImageOps

from adray.data.pixel_meaning import defect_pixels, to_8_bits
from adray.errors import InputError, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """What happens to an image between the file and the model.

    Raises:
        InputError: for a size that no model can use, a crop larger than the image, or an unknown
            interpolation.
    """

    img_size: int = 256
    """Side of the square that an image is resized to, in pixels, at least 8."""
    crop_size: int | None = None
    """Side of the centre crop taken afterwards, in pixels, or None for no crop."""
    interpolation: str = "bilinear"
    """One of `INTERPOLATIONS`; masks always use nearest."""

    def __post_init__(self) -> None:
        """Check sizes, and that the crop lies inside of the image."""
        _check_side("img_size", self.img_size)
        if self.crop_size is not None:
            _check_side("crop_size", self.crop_size)
            if self.crop_size > self.img_size:
                raise InputError(
                    f"crop_size {self.crop_size} exceeds img_size {self.img_size}; "
                    "crop at most img_size"
                )
        if self.interpolation not in INTERPOLATIONS:
            hint = nearest(self.interpolation, INTERPOLATIONS)
            raise InputError(f"interpolation {self.interpolation!r}; {hint}")

    @property
    def side(self) -> int:
        """Give the side of the final image in pixels."""
        return self.img_size if self.crop_size is None else self.crop_size

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Resize to the square and crop its centre, as torchvision's `CenterCrop` places it."""
        image = image.resize((self.img_size, self.img_size), resample)
        if self.crop_size is None:
            return image
        start = round((self.img_size - self.crop_size) / 2)
        return image.crop((start, start, start + self.crop_size, start + self.crop_size))


def _check_side(name: str, value: int) -> None:
    """Refuse a side in pixels that no model can use.

    Raises:
        InputError: for anything but a whole number from 8 on.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < 8:
        raise InputError(f"{name} is {value!r}; give a whole number of pixels, at least 8")


def decode_image(path: Path, img_size: int, crop_size: int | None = None) -> np.ndarray:
    """Decode one image.

    Every mode becomes RGB, as `to_8_bits` says, where one channel is repeated. An EXIF rotation is
    applied. Of several frames the first counts.

    Returns:
        (3, S, S) uint8 with S = `crop_size` or `img_size`.

    Raises:
        InputError: for a file that cannot be decoded.
    """
    return _image_array(_read(path, "image"), path, Geometry(img_size, crop_size))


def decode_full(path: Path) -> np.ndarray:
    """Decode one image at its own size, (3, H, W) uint8, otherwise as `decode_image` does."""
    return _channels_first(to_8_bits(_read(path, "image"), path))


def array_pixels(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bring an image that is in memory to a size, as `decode_image` brings a file.

    Args:
        array: (H, W) or (H, W, 3) uint8.
        geometry: the size.

    Returns:
        (3, S, S) uint8.

    Raises:
        InputError: for another type or shape.
    """
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise InputError(
            f"image array is {array.dtype} of shape {array.shape}; "
            "give uint8 of shape (H, W) or (H, W, 3), RGB"
        )
    return _image_array(Image.fromarray(np.ascontiguousarray(array)), Path("array"), geometry)


def decode_pair(
    path: Path, mask_paths: Sequence[Path], geometry: Geometry
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an image, and its masks where there are any, with one geometry.

    Returns:
        (3, S, S) uint8 as `decode_image` gives, and (S, S) uint8 with 1 on defects, or None.

    Raises:
        InputError: for a file that cannot be decoded, and a mask whose size differs from that of
            its image.
    """
    image = _read(path, "image")
    defect = None
    for mask_path in mask_paths:
        # Compared before the resize, after which all sizes are equal.
        mask = _read(mask_path, "mask")
        if mask.size != image.size:
            raise InputError(
                f"mask {mask_path} is {mask.width}x{mask.height} but its image {path} is "
                f"{image.width}x{image.height}; give the mask the size of its image"
            )
        marked = defect_pixels(geometry.apply(mask, Image.Resampling.NEAREST), mask_path)
        defect = marked if defect is None else defect | marked
    return _image_array(image, path, geometry), defect


def _read(path: Path, kind: str) -> Image.Image:
    """Read the whole file, first frame, rotated as EXIF says.

    Args:
        path: the file.
        kind: ``"image"`` or ``"mask"``, for errors.

    Raises:
        InputError: for a file that is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{kind} {path} does not exist; restore the file or remove it from the data set"
        ) from error
    except Exception as error:  # damaged files make Pillow's readers fail in many ways
        raise InputError(
            f"{kind} {path} cannot be decoded ({error}); replace or remove the file"
        ) from error


def _image_array(image: Image.Image, path: Path, geometry: Geometry) -> np.ndarray:
    """Bring a decoded image to its size, (3, S, S) uint8."""
    resample = INTERPOLATIONS[geometry.interpolation]
    return _channels_first(geometry.apply(to_8_bits(image, path), resample))


def _channels_first(image: Image.Image) -> np.ndarray:
    """Copy the pixels of an ``L`` or ``RGB`` image, (3, H, W), where one channel is repeated."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return repeat(pixels, "h w -> 3 h w")
    return np.ascontiguousarray(rearrange(pixels, "h w c -> c h w"))
