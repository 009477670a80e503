"""From an image file to a small uint8 array: decode, rotate, reduce to 8 bits, resize, crop.

The resize is Pillow's antialiased one on 8-bit values, to a square without regard to the aspect ratio, as the published
figures of the benchmarks are made; masks go through the same geometry by nearest neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from adray.errors import InputError, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TIFF_BITS_PER_SAMPLE = 258


@dataclass(frozen=True)
class Geometry:
    """What happens to an image between the file and the model.

    Raises:
        InputError: for a size that no model can use, a crop larger than the image, or an unknown interpolation.
    """

    img_size: int = 256
    """Side of the square that an image is resized to, in pixels, at least 8."""
    crop_size: int | None = None
    """Side of the centre crop taken afterwards, in pixels, or None for no crop."""
    interpolation: str = "bilinear"
    """One of `INTERPOLATIONS`; masks always use nearest."""

    def __post_init__(self) -> None:
        for name, value in (("img_size", self.img_size), ("crop_size", self.crop_size)):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 8
            ):
                raise InputError(f"{name} is {value!r}; give a whole number of pixels, at least 8")
        if self.crop_size is not None and self.crop_size > self.img_size:
            raise InputError(
                f"crop_size {self.crop_size} exceeds img_size {self.img_size}; crop at most img_size"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r}; {nearest(self.interpolation, INTERPOLATIONS)}"
            )

    @property
    def side(self) -> int:
        """Side of the final image in pixels."""
        return self.img_size if self.crop_size is None else self.crop_size

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Resize to the square and crop its centre, as torchvision's `CenterCrop` places it."""
        image = image.resize((self.img_size, self.img_size), resample)
        if self.crop_size is None:
            return image
        start = round((self.img_size - self.crop_size) / 2)
        return image.crop((start, start, start + self.crop_size, start + self.crop_size))


def decode_image(
    path: Path, img_size: int, crop_size: int | None = None, interpolation: str = "bilinear"
) -> np.ndarray:
    """Decode one image.

    Every mode becomes RGB: one channel is repeated; 16 bits are scaled by 255/65535 (or by the bit depth that a TIFF
    declares), not clipped; transparency is composited on black, the value that cut-outs usually hide there; a
    palette and CMYK become their colours. An EXIF rotation is applied. Of several frames the first counts.

    Returns:
        (3, S, S) uint8 with S = `crop_size` or `img_size`.

    Raises:
        InputError: for a file that cannot be decoded.
    """
    return decode_pair(path, None, Geometry(img_size, crop_size, interpolation))[0]


def decode_full(path: Path) -> np.ndarray:
    """Decode one image at its own size, (3, H, W) uint8; colours and errors as in `decode_image`."""
    pixels = np.asarray(_to_8_bits(_open(path, "image"), path))
    return (
        np.repeat(pixels[None], 3, axis=0) if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
    )


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
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,))
        or not array.size
    ):
        raise InputError(
            f"image array is {array.dtype} of shape {array.shape}; give uint8 of shape (H, W) or (H, W, 3), RGB"
        )
    return _image_array(Image.fromarray(np.ascontiguousarray(array)), Path("array"), geometry)


def decode_mask(
    path: Path, img_size: int, crop_size: int | None = None, image_path: Path | None = None
) -> np.ndarray:
    """Decode one mask: any non-zero pixel, in any channel, is a defect.

    Args:
        path: the mask file.
        img_size: side of the resized square in pixels.
        crop_size: side of the centre crop in pixels, or None.
        image_path: the image that the mask must match in size, or None to skip that check.

    Returns:
        (S, S) uint8 with 1 on defects.

    Raises:
        InputError: for a file that cannot be decoded, or one whose size differs from that of its image.
    """
    mask = _open(path, "mask")
    if image_path is not None:
        _check_same_size(mask, path, _open(image_path, "image"), image_path)
    return _mask_array(mask, path, Geometry(img_size, crop_size))


def decode_pair(
    path: Path, mask_path: Path | None, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an image, and its mask where there is one, with one geometry.

    Returns:
        (3, S, S) uint8 as `decode_image` gives, and (S, S) uint8 as `decode_mask` gives, or None.

    Raises:
        InputError: see `decode_image` and `decode_mask`.
    """
    image = _open(path, "image")
    mask_array = None
    if mask_path is not None:
        mask = _open(mask_path, "mask")
        _check_same_size(mask, mask_path, image, path)
        mask_array = _mask_array(mask, mask_path, geometry)
    return _image_array(image, path, geometry), mask_array


def _open(path: Path, kind: str) -> Image.Image:
    """Read the whole file, first frame, rotated as EXIF says."""
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


def _check_same_size(mask: Image.Image, mask_path: Path, image: Image.Image, path: Path) -> None:
    if mask.size != image.size:
        raise InputError(
            f"mask {mask_path} is {mask.width}x{mask.height} but its image {path} is {image.width}x{image.height}; "
            "give the mask the size of its image"
        )


def _image_array(image: Image.Image, path: Path, geometry: Geometry) -> np.ndarray:
    plain = _to_8_bits(image, path)
    pixels = np.asarray(geometry.apply(plain, INTERPOLATIONS[geometry.interpolation]))
    if pixels.ndim == 2:
        return np.repeat(pixels[None], 3, axis=0)  # (S, S) -> (3, S, S)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (S, S, 3) -> (3, S, S)


def _mask_array(mask: Image.Image, path: Path, geometry: Geometry) -> np.ndarray:
    small = geometry.apply(mask, Image.Resampling.NEAREST)
    if small.mode not in ("F", "I", "L", "1") and not small.mode.startswith("I;16"):
        small = _colors(small, path)
    pixels = np.asarray(small) != 0
    return (pixels if pixels.ndim == 2 else pixels.any(axis=2)).astype(np.uint8)


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Bring any mode to ``L`` or ``RGB``; grey stays one channel here, resizing it is cheaper."""
    if image.mode in ("L", "RGB"):
        return image if "transparency" not in image.info else _colors(image, path)
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_deep(image, path)
    if image.mode == "F":
        raise InputError(
            f"image {path} holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits"
        )
    return _colors(image, path)


def _scale_deep(image: Image.Image, path: Path) -> Image.Image:
    bits = _bit_depth(image)
    if not 8 <= bits <= 16:
        raise InputError(
            f"image {path} has {bits} bits per pixel, allowed are 8 to 16; save it with 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.float32) * (255.0 / (2**bits - 1))
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _bit_depth(image: Image.Image) -> int:
    """Bits per sample; only TIFF declares other than 16 (PNG is exact, Pillow stretches PGM to 16)."""
    declared = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (16,))
    return int(declared[0])


def _colors(image: Image.Image, path: Path) -> Image.Image:
    try:
        if image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
            return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(
            f"image {path} has mode {image.mode}, which has no RGB form; save it as RGB"
        ) from error
