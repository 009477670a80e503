"""Synthetic defects on copies of normal images, for a search that must not see the test set.

A defective copy differs from its normal image in one place, as real defects do: a strange texture,
a displaced piece, a scratch, a stain, a blurred, bent or missing part. Sizes and strengths go from
hardly visible to obvious, so that an easy product does not leave every setting at the same perfect
figure.

Sources of the kinds: `texture` is DRAEM's patch of noise-shaped texture (V. Zavrtanik et al., ICCV
2021, https://arxiv.org/abs/2108.07610), filled from another place of the same image instead of from
another data set; `displaced` and `scratch` are CutPaste's patch and scar (C.-L. Li et al., CVPR
2021, https://arxiv.org/abs/2104.04015); that a piece is blended in and stays on the product follows
NSA (H. M. Schlueter et al., ECCV 2022, https://arxiv.org/abs/2109.15222). Nothing but the image
itself is needed, so a copy depends on nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from scipy import ndimage

VERSION = 1
"""Raised by hand when defective copies change, so that searches judge anew."""

Array = np.ndarray

_WANTED = 96
"""Copies per category that are aimed at: enough to tell settings apart that differ by a few points
of AUROC."""
_MOST_PER_IMAGE = 24
_AREA = (0.004, 0.06)
"""Smallest and largest part of the image that a defect covers, drawn evenly over its logarithm."""
_STRENGTH = (0.4, 1.0)
"""Weakest and strongest defect, drawn evenly over its logarithm; 1 replaces what was there."""
_LEAST_CHANGE = 3.0
"""Mean change in grey levels below which a defect would be a wrong label; it is made stronger."""
_ATTEMPTS = 6
_LATTICE = 64
"""Side of the noise that shapes are cut from; it is stretched, so that a defect looks alike at
every image size."""


@dataclass(frozen=True)
class DefectiveCopy:
    """A copy of a normal image with one defect drawn on it."""

    image: Array
    """(3, H, W) uint8."""
    mask: Array
    """(H, W) uint8, 1 on the defect; outside nothing changed."""
    kind: str
    """One of `DEFECTS`."""


def copies_per_image(count: int) -> int:
    """Count the copies that each of `count` held-out images of a category gets.

    They are the more, the fewer images there are.
    """
    return min(max(math.ceil(_WANTED / max(count, 1)), 1), _MOST_PER_IMAGE)


def draw_defective_copies(image: Array, name: str, seed: int, count: int) -> list[DefectiveCopy]:
    """Draw defects on copies of an image.

    The first ones are the same however many are asked for, and whatever other images exist.

    Args:
        image: (3, H, W) uint8.
        name: of the image, unique in its category; part of the seed.
        seed: of the trial.
        count: of copies; the kinds take turns, beginning at one that the name chooses.
    """
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    pixels = rearrange(image, "c h w -> h w c").astype(np.float32)
    product = foreground(pixels)
    kinds = list(DEFECTS)

    copies = []
    for number in range(count):
        kind = kinds[(digest + number) % len(kinds)]
        rng = np.random.default_rng([seed, digest, number])
        copies.append(_draw(pixels, product, kind, rng))
    return copies


def _draw(pixels: Array, product: Array, kind: str, rng: np.random.Generator) -> DefectiveCopy:
    """Draw one defect that can be seen.

    Args:
        pixels: (H, W, 3) float in [0, 255].
        product: (H, W) bool, where the product is.
        kind: one of `DEFECTS`.
        rng: chooses place, size, strength and looks.
    """
    for attempt in range(_ATTEMPTS):
        strength = min(_log_uniform(rng, _STRENGTH) * 1.5**attempt, 1.0)
        mask, paint = DEFECTS[kind](pixels, product, rng)
        if not mask.any():
            continue
        drawn = _blend(pixels, mask, paint, strength)
        if np.abs(drawn[mask] - pixels[mask]).mean() >= _LEAST_CHANGE:
            return _finished(drawn, mask, kind)

    # On an even surface pieces look alike, a stain does not.
    mask, paint = _stain(pixels, product, rng)
    return _finished(_blend(pixels, mask, paint, 1.0), mask, "stain")


def foreground(pixels: Array) -> Array:
    """Find the product, (H, W) bool: what differs from an even border.

    It is everywhere where the border is not even.

    Args:
        pixels: (H, W, 3) float in [0, 255].
    """
    shape = pixels.shape[:2]
    side = min(shape)
    width = side // 16
    border = np.ones(shape, bool)
    border[width:-width, width:-width] = False

    distance = np.abs(pixels - np.median(pixels[border], axis=0)).max(axis=2)
    distance = ndimage.gaussian_filter(distance, side / 128)
    product = distance > _two_class_threshold(distance)
    product = ndimage.binary_opening(product, iterations=max(side // 128, 1))
    product = ndimage.binary_fill_holes(product)

    # A texture is the same at the border as inside.
    even_border = product[border].mean() < 0.15 * product[~border].mean()
    if even_border and 0.03 < product.mean() < 0.9:
        return product
    return np.ones(shape, bool)


def _two_class_threshold(values: Array) -> float:
    """Find the best threshold between two classes (N. Otsu, IEEE SMC 1979), over 64 levels."""
    counts, edges = np.histogram(values, 64)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centers)
    total = counts.sum()

    # Variance between the classes for a cut behind each level but the last.
    share = below[:-1] / total
    between = (sums[-1] / total * share - sums[:-1] / total) ** 2
    between = between / np.maximum(share * (1 - share), 1e-9)
    return float(edges[1 + int(np.argmax(between))])


# Kinds of defects: (pixels (H, W, 3), product (H, W), rng) -> mask (H, W) bool, paint (H, W, 3).


def _texture(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw an irregular patch of the image's own texture, turned and in another tone."""
    turned = np.rot90(pixels, int(rng.integers(1, 4)))
    # A rectangle that lies across begins again where it ends.
    for axis in (0, 1):
        turned = turned.take(np.arange(pixels.shape[axis]), axis, mode="wrap")
    elsewhere = np.roll(turned, rng.integers(0, len(pixels), 2), axis=(0, 1))
    contrast = rng.uniform(0.6, 1.6)
    tone = rng.uniform(-60, 60) + _tint(pixels, rng)
    mean = elsewhere.mean(axis=(0, 1))
    return _patch(product, rng), (elsewhere - mean) * contrast + mean + tone


def _displaced(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a turned rectangle of the product at another place of it."""
    mask, center = _rectangle(product, rng)
    source = _point(product, rng)
    moved = ndimage.shift(pixels, (*(center - source), 0), order=0, mode="mirror")
    return mask, moved


def _scratch(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a thin bent line, lighter or darker than what it crosses."""
    along, across = _axes(product.shape, _point(product, rng), rng.uniform(0, np.pi))
    length = rng.uniform(0.08, 0.3)
    width = max(_log_uniform(rng, (0.004, 0.02)), 1.2 / min(product.shape))
    bend = rng.uniform(-3, 3)

    mask = (np.abs(along) < length) & (np.abs(across - bend * along**2) < width / 2)
    return _on_product(mask, product), pixels + rng.choice([-1, 1]) * rng.uniform(60, 160)


def _stain(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a patch in one tone: a drop, dirt, a burn or a bleached spot."""
    mask = _patch(product, rng)
    own = float(pixels[mask].mean())
    tone = rng.uniform(0, 255)
    if abs(tone - own) < 40:
        # Too close to be seen: towards the middle of the range there is room.
        tone = own + math.copysign(60, 128 - own)
    return mask, np.broadcast_to(np.float32(tone) + _tint(pixels, rng), pixels.shape)


def _blurred(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a patch whose structure is worn away."""
    sigma = min(product.shape) * rng.uniform(0.012, 0.03)
    return _patch(product, rng), ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def _bent(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a round part whose inside is pulled to one side."""
    center = _point(product, rng)
    down, right = np.indices(product.shape) - center.reshape(2, 1, 1)
    radius = min(product.shape) * math.sqrt(_log_uniform(rng, (4 * _AREA[0], 2 * _AREA[1])) / np.pi)
    reach = np.clip(1 - (down**2 + right**2) / radius**2, 0, None)  # 1 in the centre, 0 outside

    # Each pixel shows what lies at `source`: itself, moved the more the nearer to the centre.
    angle = rng.uniform(0, 2 * np.pi)
    pull = 0.6 * radius * reach**2
    source = [center[0] + down + pull * np.sin(angle), center[1] + right + pull * np.cos(angle)]
    bent = np.empty_like(pixels)
    for channel in range(3):
        bent[:, :, channel] = ndimage.map_coordinates(
            pixels[:, :, channel], source, order=1, mode="mirror"
        )
    return _on_product(reach > 0, product), bent


def _missing(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a part that is gone: the ground shows, or else the darkest tone."""
    mask, _ = _rectangle(product, rng)
    if product.all():
        ground = np.percentile(pixels, 3, axis=(0, 1))
    else:
        ground = np.median(pixels[~product], axis=0)
    grain = rng.normal(0, 2.0, (*mask.shape, 1))
    return mask, ground + grain


DEFECTS: dict[str, Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]] = {
    "texture": _texture,
    "scratch": _scratch,
    "displaced": _displaced,
    "stain": _stain,
    "bent": _bent,
    "missing": _missing,
    "blurred": _blurred,
}
"""Kind to (pixels (H, W, 3), product (H, W), rng) -> mask (H, W) bool and what shows through it,
(H, W, 3)."""


def _tint(pixels: Array, rng: np.random.Generator) -> Array:
    """Draw a shift of hue, (3,), as wide as the image is colourful.

    So a grey product gets grey defects.
    """
    colorful = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    return rng.uniform(-1, 1, 3).astype(np.float32) * colorful


# Shapes


def _patch(product: Array, rng: np.random.Generator) -> Array:
    """Draw an irregular connected patch on the product: the top of smooth noise around a point."""
    height, width = product.shape
    area = _log_uniform(rng, _AREA)
    lattice = rng.standard_normal((_LATTICE, _LATTICE))
    smooth = ndimage.gaussian_filter(lattice, _LATTICE * math.sqrt(area) / 3)
    scales = (height / _LATTICE, width / _LATTICE)
    noise = ndimage.zoom(smooth / smooth.std(), scales, order=1)[:height, :width]

    # Noise on a slope that falls from the point: what stands highest is one patch around it.
    along, across = _axes(product.shape, _point(product, rng), rng.uniform(0, np.pi))
    stretch = rng.uniform(1, 2.5)
    radius = math.sqrt(area / np.pi)
    slope = ((along / stretch) ** 2 + (across * stretch) ** 2) / radius**2
    hill = 0.5 * noise - slope
    mask = hill > np.quantile(hill, 1 - area)
    return _on_product(mask, product)


def _rectangle(product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a turned rectangle on the product, as its mask and its centre, (2,) in pixels."""
    center = _point(product, rng)
    along, across = _axes(product.shape, center, rng.uniform(0, np.pi))
    area = _log_uniform(rng, _AREA)
    aspect = _log_uniform(rng, (1.0, 4.0))

    half_length = math.sqrt(area * aspect) / 2
    half_width = max(math.sqrt(area / aspect) / 2, 1.0 / min(product.shape))
    mask = (np.abs(along) < half_length) & (np.abs(across) < half_width)
    return _on_product(mask, product), center


def _axes(shape: tuple[int, ...], center: Array, angle: float) -> tuple[Array, Array]:
    """Measure how far all pixels lie along and across a line through `center`.

    Returns:
        Signed distances in parts of the shorter side, (H, W) each.
    """
    down, right = (np.indices(shape) - center.reshape(2, 1, 1)) / min(shape)
    along = right * math.cos(angle) + down * math.sin(angle)
    across = down * math.cos(angle) - right * math.sin(angle)
    return along, across


def _point(product: Array, rng: np.random.Generator) -> Array:
    """Choose a pixel of the product away from the image's border, as row and column, (2,)."""
    edge = min(product.shape) // 12
    inner = product[edge:-edge, edge:-edge]
    if not inner.any():
        inner = np.ones_like(inner)

    # A place in [0, 1] along the product's pixels, so that the image's size hardly moves it.
    places = np.flatnonzero(inner)
    row, column = np.unravel_index(places[int(rng.uniform() * len(places))], inner.shape)
    return np.array([row + edge, column + edge])


def _on_product(mask: Array, product: Array) -> Array:
    """Cut a mask to the product, unless hardly any of it lies there."""
    inside = mask & product
    return inside if inside.sum() >= 0.3 * mask.sum() else mask


def _blend(pixels: Array, mask: Array, paint: Array, strength: float) -> Array:
    """Paint through a mask, softly within two pixels of its edge, changing nothing outside."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    # A frame of zeros makes the edge of the box an edge of the mask too.
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    softness = np.clip(depth / 2, 0, 1)[:, :, None]

    drawn = pixels.copy()
    drawn[box] += strength * softness * (np.clip(paint[box], 0, 255) - pixels[box])
    return drawn


def _finished(drawn: Array, mask: Array, kind: str) -> DefectiveCopy:
    """Round the drawn pixels, (H, W, 3) float, to a copy's."""
    image = rearrange(np.rint(drawn).clip(0, 255).astype(np.uint8), "h w c -> c h w")
    return DefectiveCopy(np.ascontiguousarray(image), mask.astype(np.uint8), kind)


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """Draw a number evenly in its logarithm between two ends."""
    return float(math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]))))
