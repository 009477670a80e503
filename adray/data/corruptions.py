"""What a site does to its pictures: other light, a lens out of focus, a shaken part, dust.

`corrupt` changes one decoded image, and its mask where pixels move. It works at the size that an
image is resized to, before a centre crop, and not at that of its file. So a severity means the same
for every camera, all models of one size see the same pixels, and nothing is decoded again. Noise
and the blocks of JPEG are those that a resize leaves, which averages finer ones away.

What is drawn, such as the place of a glare, depends on the image's name and the kind alone. A
severity says how strong it is. So an image at severity 4 is the one at severity 3, and more.
Families and severities follow Hendrycks and Dietterich (ICLR 2019), with what a line has besides.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from einops import repeat
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from adray.conditions import CORRUPTION_VERSION, Corruption

_REFERENCE_SIDE = 256
"""Side of an image on which blurs are said in pixels; on others they grow with the side."""
_LEAST_SIDE = 128
"""Below it a blur no longer shrinks with the side, since 8 bits would not show it."""

Pixels = NDArray[np.uint8]
"""(C, H, W), one channel for a grey image and else three."""


@dataclass(frozen=True)
class CorruptedImage:
    """An image under a corruption."""

    pixels: NDArray[np.uint8]
    """(3, H, W)."""
    mask: NDArray[np.uint8] | None
    """(H, W) with 1 on defects, moved as the image was; None without a mask."""


def corrupt(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    corruption: Corruption,
    name: str,
) -> CorruptedImage:
    """Change an image as a corruption says, and its mask with it.

    Args:
        pixels: (3, H, W).
        mask: (H, W) with 1 on defects, or None.
        corruption: what happens, and how strongly.
        name: of the image, by which directions, places and noise are drawn.
    """
    rng = _generator(name, corruption.kind)
    if corruption.kind in _MOVES:
        move = _MOVES[corruption.kind](corruption.severity - 1, min(pixels.shape[1:]), rng)
        moved = None if mask is None else _moved_mask(mask, move)
        return CorruptedImage(_changed(pixels, lambda image: _moved(image, move)), moved)

    change = _CHANGES[corruption.kind]
    changed = _changed(pixels, lambda image: change(image, corruption.severity - 1, rng))
    return CorruptedImage(changed, mask)


def _generator(name: str, kind: str) -> np.random.Generator:
    """Make the generator of an image and a kind, the same in every process."""
    text = f"{CORRUPTION_VERSION}\0{kind}\0{name}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _changed(pixels: NDArray[np.uint8], change: Callable[[Pixels], Pixels]) -> NDArray[np.uint8]:
    """Apply a change to an image (3, H, W). One that is grey stays grey."""
    is_grey = np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    if is_grey:
        return repeat(change(pixels[:1]), "1 h w -> 3 h w")
    return change(pixels)


def _eight_bits(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round values to whole grey levels from 0 to 255. The array itself is spent."""
    np.rint(values, out=values)
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8)


def _sign(rng: np.random.Generator) -> int:
    """Draw a direction, -1 or 1."""
    return 1 if rng.random() < 0.5 else -1


# ---- light ----

_BRIGHTNESS = (0.08, 0.16, 0.25, 0.36, 0.5)
_CONTRAST = (0.1, 0.2, 0.32, 0.46, 0.62)
_GAMMA = (0.1, 0.2, 0.33, 0.5, 0.7)
_WHITE_BALANCE = (0.04, 0.08, 0.13, 0.19, 0.27)
_GRADIENT = (0.15, 0.3, 0.45, 0.6, 0.75)
_GLARE_STRENGTH = (0.3, 0.5, 0.7, 0.85, 1.0)
_GLARE_RADIUS = (0.06, 0.09, 0.12, 0.16, 0.21)
_GREY_LEVELS = np.arange(256, dtype=np.float64)


def _brightness(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Dim the lamp, or turn it up, by a part of its light."""
    return _looked_up(image, _GREY_LEVELS * (1 + _sign(rng) * _BRIGHTNESS[level]))


def _contrast(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Bring grey values nearer to their mean, or further away from it."""
    mean = image.mean()
    factor = 1 + _sign(rng) * _CONTRAST[level]
    return _looked_up(image, mean + (_GREY_LEVELS - mean) * factor)


def _gamma(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Lighten the middle grey values, or darken them. Black and white stay."""
    exponent = math.exp(_sign(rng) * _GAMMA[level])
    return _looked_up(image, 255 * (_GREY_LEVELS / 255) ** exponent)


def _white_balance(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Make the light warmer or colder. A grey camera does not see it."""
    if len(image) == 1:
        return image
    tint = _sign(rng) * _WHITE_BALANCE[level]
    red = _looked_up(image[0], _GREY_LEVELS * math.exp(tint))
    blue = _looked_up(image[2], _GREY_LEVELS * math.exp(-tint))
    return np.stack([red, image[1], blue])


def _looked_up(image: Pixels, values: NDArray[np.float64]) -> Pixels:
    """Replace each of the 256 grey levels by its value in a table."""
    return _eight_bits(values.astype(np.float32))[image]


def _gradient(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Take light away from one side to the other, as a lamp does that stands aslant."""
    height, width = image.shape[1:]
    angle = rng.uniform(0, 2 * math.pi)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(math.cos(angle))
    # The furthest corners lie at -1 and 1.
    place = (x + y) / np.float32(abs(math.sin(angle)) + abs(math.cos(angle)))
    light = 1 - np.float32(_GRADIENT[level] / 2) * (1 + place)  # (H, W)
    return _eight_bits((image * light).astype(np.float32))


def _glare(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Lay a bright round reflection over the image."""
    height, width = image.shape[1:]
    center_y, center_x = rng.uniform(0.2, 0.8, 2)
    radius = _GLARE_RADIUS[level] * min(height, width)
    y = _bell(height, center_y * height, radius)
    x = _bell(width, center_x * width, radius)
    light = np.float32(_GLARE_STRENGTH[level]) * y[:, None] * x[None]  # (H, W)
    return _eight_bits((image * (1 - light) + 255 * light).astype(np.float32))


def _bell(length: int, center: float, radius: float) -> NDArray[np.float32]:
    """Give a Gaussian along an axis, (length,)."""
    distance = (np.arange(length, dtype=np.float32) + 0.5 - center) / radius
    return np.exp(-(distance**2) / 2).astype(np.float32)


# ---- lens, sensor, file ----

_DEFOCUS = (0.6, 1.0, 1.5, 2.2, 3.2)
_MOTION = (0.8, 1.4, 2.2, 3.4, 5.0)
_NOISE = (2.0, 4.0, 8.0, 14.0, 24.0)
_JPEG = (70, 45, 28, 16, 8)


def _defocus(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Blur in all directions alike, by a Gaussian."""
    return _filtered(image, ImageFilter.GaussianBlur(_of_side(_DEFOCUS[level], image)))


def _motion(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Blur along the rows or along the columns, as a part that moves while the shutter is open."""
    reach = _of_side(_MOTION[level], image)
    both = (reach, 0.0) if rng.random() < 0.5 else (0.0, reach)
    return _filtered(image, ImageFilter.BoxBlur(both))


def _of_side(pixels: float, image: Pixels) -> float:
    """Scale a length from the reference image to another."""
    return pixels * max(_LEAST_SIDE, min(image.shape[1:])) / _REFERENCE_SIDE


def _filtered(image: Pixels, kernel: ImageFilter.Filter) -> Pixels:
    """Apply a filter of Pillow."""
    return _of_pillow(_to_pillow(image).filter(kernel))


def _noise(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise, to each pixel and channel its own."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(_NOISE[level])
    noise += image
    return _eight_bits(noise)


def _jpeg(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Store the image as JPEG of a low quality, and read it again."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=_JPEG[level])
    return _of_pillow(Image.open(file))


def _to_pillow(image: Pixels) -> Image.Image:
    """Give an image to Pillow, as grey or RGB."""
    if len(image) == 1:
        return Image.fromarray(np.ascontiguousarray(image[0]))
    return Image.merge("RGB", list(map(Image.fromarray, np.ascontiguousarray(image))))


def _of_pillow(image: Image.Image) -> Pixels:
    """Copy the pixels of a grey or RGB image."""
    return np.stack(list(map(np.asarray, image.split())))


# ---- dirt ----

_SPECKS = (2, 4, 7, 11, 16)
_SPECK_RADIUS = (0.004, 0.012)
"""Least and largest radius, as a part of the side."""
_SPECK_OPACITY = (0.5, 0.9)
_SPECK_STRENGTH = (0.2, 0.35, 0.55, 0.8, 1.0)
"""By severity, what of the opacity is left."""


def _dust(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Let dark specks lie on the part or on the glass before it."""
    height, width = image.shape[1:]
    side = min(height, width)
    dirty = image.copy()
    # All specks are drawn, so that those of a lower severity are among those of a higher one.
    places = rng.uniform(0, 1, (_SPECKS[-1], 2))
    radii = rng.uniform(*_SPECK_RADIUS, _SPECKS[-1]) * side
    opacities = rng.uniform(*_SPECK_OPACITY, _SPECKS[-1]) * _SPECK_STRENGTH[level]
    for number in range(_SPECKS[level]):
        y = places[number, 0] * height
        x = places[number, 1] * width
        _darken(dirty, (y, x), max(radii[number], 0.5), opacities[number])
    return dirty


def _darken(image: Pixels, center: tuple[float, float], radius: float, opacity: float) -> None:
    """Darken a disk of an image in place, with an edge of one pixel."""
    rows = _near(center[0], radius, image.shape[1])
    columns = _near(center[1], radius, image.shape[2])
    y = np.arange(rows.start, rows.stop)[:, None] + 0.5 - center[0]
    x = np.arange(columns.start, columns.stop)[None] + 0.5 - center[1]
    inside = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    darker = image[:, rows, columns] * (1 - opacity * inside)
    image[:, rows, columns] = _eight_bits(darker.astype(np.float32))


def _near(center: float, radius: float, length: int) -> slice:
    """Give the pixels of an axis that a disk may touch."""
    first = max(0, math.floor(center - radius - 1))
    last = min(length, math.ceil(center + radius + 1))
    return slice(first, max(first, last))


# ---- place ----

_SHIFT = (0.01, 0.02, 0.035, 0.055, 0.08)
_ROTATION = (1.0, 2.0, 4.0, 7.0, 11.0)
_SCALE = (0.02, 0.05, 0.09, 0.14, 0.2)


@dataclass(frozen=True)
class _Move:
    """How pixels move about the middle of an image."""

    angle: float = 0.0
    """Turn in radians."""
    factor: float = 1.0
    """Above 1 the part becomes larger."""
    right: float = 0.0
    """Pixels."""
    down: float = 0.0
    """Pixels."""


def _shift(level: int, side: int, rng: np.random.Generator) -> _Move:
    """Move the part in any direction, by a part of the image's side."""
    angle = rng.uniform(0, 2 * math.pi)
    length = _SHIFT[level] * side
    return _Move(right=length * math.cos(angle), down=length * math.sin(angle))


def _rotation(level: int, side: int, rng: np.random.Generator) -> _Move:
    """Turn the part about the middle of the image, by degrees."""
    return _Move(angle=math.radians(_sign(rng) * _ROTATION[level]))


def _scale(level: int, side: int, rng: np.random.Generator) -> _Move:
    """Bring the camera nearer or further away."""
    return _Move(factor=math.exp(_sign(rng) * _SCALE[level]))


def _moved(image: Pixels, move: _Move) -> Pixels:
    """Move an image. What comes in from outside is its mirror image at the edge."""
    height, width = image.shape[1:]
    margin = _margin(height, width, move)
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")

    # From a pixel of the new image to the place in the old one that it comes from.
    cosine = math.cos(move.angle) / move.factor
    sine = math.sin(move.angle) / move.factor
    middle_x = width / 2
    middle_y = height / 2
    from_x = middle_x + move.right
    from_y = middle_y + move.down
    origin_x = middle_x - cosine * from_x - sine * from_y + margin
    origin_y = middle_y + sine * from_x - cosine * from_y + margin
    places = (cosine, sine, origin_x, -sine, cosine, origin_y)

    moved = _to_pillow(padded).transform(
        (width, height), Image.Transform.AFFINE, places, Image.Resampling.BILINEAR
    )
    return _of_pillow(moved)


def _margin(height: int, width: int, move: _Move) -> int:
    """Give the pixels around an image that a move may bring in."""
    reach = math.hypot(height, width) / 2
    turned = reach * abs(move.angle)
    shrunk = reach * max(0.0, 1 / move.factor - 1)
    return math.ceil(turned + shrunk + math.hypot(move.right, move.down)) + 2


def _moved_mask(mask: NDArray[np.uint8], move: _Move) -> NDArray[np.uint8]:
    """Move a mask. A defect that stays in the image keeps at least the pixels that it touches."""
    weight = _moved(mask[None] * np.uint8(255), move)[0]
    inside = weight > 127
    if not inside.any():
        inside = weight > 0
    return inside.astype(np.uint8)


_CHANGES: Mapping[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
    "white_balance": _white_balance,
    "gradient": _gradient,
    "glare": _glare,
    "defocus": _defocus,
    "motion": _motion,
    "noise": _noise,
    "jpeg": _jpeg,
    "dust": _dust,
}
_MOVES: Mapping[str, Callable[[int, int, np.random.Generator], _Move]] = {
    "shift": _shift,
    "rotation": _rotation,
    "scale": _scale,
}
MOVING = frozenset(_MOVES)
"""The kinds that move pixels, and masks with them."""
