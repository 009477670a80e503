"""Defective twins of normal images, so that a search can judge without one look at the test set.

From a normal image a twin is made that differs in one place, as real defects do: a strange texture, a displaced piece,
a scratch, a stain, a blurred, bent or missing part. Sizes and strengths go from hardly visible to obvious, so that an
easy product does not leave every setting at the same perfect figure.

Sources of the kinds: `texture` is DRAEM's patch of noise-shaped texture (V. Zavrtanik et al., ICCV 2021,
https://arxiv.org/abs/2108.07610), filled from another place of the same image instead of from another data set;
`displaced` and `scratch` are CutPaste's patch and scar (C.-L. Li et al., CVPR 2021, https://arxiv.org/abs/2104.04015);
that a piece is blended in and stays on the product follows NSA (H. M. Schlueter et al., ECCV 2022,
https://arxiv.org/abs/2109.15222). Nothing but the image itself is needed, so a twin depends on nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

VERSION = 1
"""Raised by hand when twins change, so that searches judge anew."""
SPLIT = "synthetic"
"""`Sample.split` of a twin."""

Array = np.ndarray

_WANTED = 96
"""Twins per category that are aimed at: enough to tell settings apart that differ by a few points of AUROC."""
_MOST_PER_IMAGE = 24
_AREA = (0.004, 0.06)
"""Smallest and largest part of the image that a defect covers, drawn evenly over its logarithm."""
_STRENGTH = (0.4, 1.0)
"""Weakest and strongest defect, drawn evenly over its logarithm; 1 replaces what was there."""
_LEAST_CHANGE = 3.0
"""Mean change in grey levels below which a defect would be a wrong label; it is made stronger."""
_ATTEMPTS = 6
_LATTICE = 64
"""Side of the noise that shapes are cut from; it is stretched, so that a defect looks alike at every image size."""


@dataclass(frozen=True)
class Twin:
    """A normal image with one defect.

    Attributes:
        image: (3, S, S) uint8.
        mask: (S, S) uint8, 1 on the defect; outside nothing changed.
        kind: one of `DEFECTS`.
    """

    image: Array
    mask: Array
    kind: str


def twins_per_image(count: int) -> int:
    """Twins that each of `count` held-out images of a category gets: the more, the fewer images there are."""
    return min(max(math.ceil(_WANTED / max(count, 1)), 1), _MOST_PER_IMAGE)


def draw_twins(image: Array, name: str, seed: int, count: int) -> list[Twin]:
    """Make twins of an image; the first ones are the same however many are asked for, and whatever other images exist.

    Args:
        image: (3, S, S) uint8.
        name: of the image, unique in its category; part of the seed.
        seed: of the trial.
        count: of twins; the kinds take turns, beginning at one that the name chooses.
    """
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    pixels = image.transpose(1, 2, 0).astype(np.float32)  # (3, S, S) -> (S, S, 3)
    product, kinds = foreground(pixels), list(DEFECTS)
    return [
        _draw(
            pixels,
            product,
            kinds[(digest + number) % len(kinds)],
            np.random.default_rng([seed, digest, number]),
        )
        for number in range(count)
    ]


def _draw(pixels: Array, product: Array, kind: str, rng: np.random.Generator) -> Twin:
    for attempt in range(_ATTEMPTS):
        strength = min(_log_uniform(rng, _STRENGTH) * 1.5**attempt, 1.0)
        mask, paint = DEFECTS[kind](pixels, product, rng)
        if mask.any():
            twin = _blend(pixels, mask, paint, strength)
            if np.abs(twin[mask] - pixels[mask]).mean() >= _LEAST_CHANGE:
                return _finished(twin, mask, kind)
    mask, paint = _stain(
        pixels, product, rng
    )  # on an even surface pieces look alike, a stain does not
    return _finished(_blend(pixels, mask, paint, 1.0), mask, "stain")


def foreground(pixels: Array) -> Array:
    """Where the product is, (S, S) bool: what differs from an even border; everywhere where none can be told.

    Args:
        pixels: (S, S, 3) float in [0, 255].
    """
    side = len(pixels)
    ring = np.ones((side, side), bool)
    ring[side // 16 : -(side // 16), side // 16 : -(side // 16)] = False
    distance = np.abs(pixels - np.median(pixels[ring], axis=0)).max(axis=2)
    distance = ndimage.gaussian_filter(distance, side / 128)
    product = distance > _two_class_threshold(distance)
    product = ndimage.binary_fill_holes(
        ndimage.binary_opening(product, iterations=max(side // 128, 1))
    )
    even_border = (
        product[ring].mean() < 0.15 * product[~ring].mean()
    )  # a texture is the same at the border
    told = even_border and 0.03 < product.mean() < 0.9
    return product if told else np.ones((side, side), bool)


def _two_class_threshold(values: Array) -> float:
    """Threshold that separates two classes best (N. Otsu, IEEE SMC 1979), over 64 levels."""
    counts, edges = np.histogram(values, 64)
    centers = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * centers)
    share = below[:-1] / total
    between = (sums[-1] / total * share - sums[:-1] / total) ** 2 / np.maximum(
        share * (1 - share), 1e-9
    )
    return float(edges[1 + int(np.argmax(between))])


# Kinds of defects: (pixels (S, S, 3), product (S, S), rng) -> mask (S, S) bool, paint (S, S, 3)


def _texture(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """An irregular patch of the image's own texture from elsewhere, turned and in another tone."""
    turned = np.rot90(pixels, int(rng.integers(1, 4))).copy()
    elsewhere = np.roll(turned, rng.integers(0, len(pixels), 2), axis=(0, 1))
    contrast, tone = rng.uniform(0.6, 1.6), rng.uniform(-60, 60) + _tint(pixels, rng)
    mean = elsewhere.mean(axis=(0, 1))
    return _patch(product, rng), (elsewhere - mean) * contrast + mean + tone


def _displaced(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A turned rectangle of the product at another place of it."""
    mask, center = _rectangle(product, rng)
    source = _point(product, rng)
    moved = ndimage.shift(pixels, (*(center - source), 0), order=0, mode="mirror")
    return mask, moved


def _scratch(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A thin bent line, lighter or darker than what it crosses."""
    side = len(pixels)
    along, across = _axes(side, _point(product, rng), rng.uniform(0, np.pi))
    length = rng.uniform(0.08, 0.3)
    width = max(_log_uniform(rng, (0.004, 0.02)), 1.2 / side)
    bend = rng.uniform(-3, 3)
    mask = (np.abs(along) < length) & (np.abs(across - bend * along**2) < width / 2)
    return _on_product(mask, product), pixels + rng.choice([-1, 1]) * rng.uniform(60, 160)


def _stain(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A patch in one tone: a drop, dirt, a burn or a bleached spot."""
    mask = _patch(product, rng)
    own, tone = float(pixels[mask].mean()), rng.uniform(0, 255)
    if abs(tone - own) < 40:
        tone = own + math.copysign(60, 128 - own)
    return mask, np.broadcast_to(np.float32(tone) + _tint(pixels, rng), pixels.shape)


def _blurred(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A patch whose structure is worn away."""
    sigma = len(pixels) * rng.uniform(0.012, 0.03)
    return _patch(product, rng), ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def _bent(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A round part whose inside is pulled to one side."""
    side = len(pixels)
    center = _point(product, rng)
    down, right = np.mgrid[:side, :side] - center.reshape(2, 1, 1)
    radius = side * math.sqrt(_log_uniform(rng, (4 * _AREA[0], 2 * _AREA[1])) / np.pi)
    reach = np.clip(1 - (down**2 + right**2) / radius**2, 0, None)
    angle = rng.uniform(0, 2 * np.pi)
    pull = 0.6 * radius * reach**2
    source = [center[0] + down + pull * np.sin(angle), center[1] + right + pull * np.cos(angle)]
    bent = [
        ndimage.map_coordinates(pixels[:, :, c], source, order=1, mode="mirror") for c in range(3)
    ]
    return _on_product(reach > 0, product), np.stack(bent, axis=2)


def _missing(pixels: Array, product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A part that is gone: the ground shows, or where none can be told the darkest tone of the image."""
    mask, _ = _rectangle(product, rng)
    ground = (
        np.median(pixels[~product], axis=0)
        if not product.all()
        else np.percentile(pixels, 3, axis=(0, 1))
    )
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
"""Kind to (pixels (S, S, 3), product (S, S), rng) -> mask (S, S) bool and what shows through it, (S, S, 3)."""


def _tint(pixels: Array, rng: np.random.Generator) -> Array:
    """A random shift of hue, (3,), as wide as the image is colourful: a grey product gets grey defects."""
    colorful = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    return rng.uniform(-1, 1, 3).astype(np.float32) * colorful


# Shapes


def _patch(product: Array, rng: np.random.Generator) -> Array:
    """An irregular connected patch on the product: the top of smooth noise around a point."""
    side = len(product)
    area = _log_uniform(rng, _AREA)
    smooth = ndimage.gaussian_filter(
        rng.standard_normal((_LATTICE, _LATTICE)), _LATTICE * math.sqrt(area) / 3
    )
    noise = ndimage.zoom(smooth / smooth.std(), side / _LATTICE, order=1)
    along, across = _axes(side, _point(product, rng), rng.uniform(0, np.pi))
    stretch = rng.uniform(1, 2.5)
    radius = math.sqrt(area / np.pi)
    hill = (
        0.5 * noise[:side, :side] - ((along / stretch) ** 2 + (across * stretch) ** 2) / radius**2
    )
    mask = hill > np.quantile(hill, 1 - area)
    return _on_product(mask, product)


def _rectangle(product: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A turned rectangle on the product and its centre, (2,) in pixels."""
    side, center = len(product), _point(product, rng)
    along, across = _axes(side, center, rng.uniform(0, np.pi))
    area, aspect = _log_uniform(rng, _AREA), _log_uniform(rng, (1.0, 4.0))
    long, wide = math.sqrt(area * aspect) / 2, max(math.sqrt(area / aspect) / 2, 1.0 / side)
    return _on_product((np.abs(along) < long) & (np.abs(across) < wide), product), center


def _axes(side: int, center: Array, angle: float) -> tuple[Array, Array]:
    """Distances of all pixels from a line through `center` across and along it, in parts of the side, (S, S) each."""
    down, right = (np.mgrid[:side, :side] - center.reshape(2, 1, 1)) / side
    return right * math.cos(angle) + down * math.sin(angle), down * math.cos(
        angle
    ) - right * math.sin(angle)


def _point(product: Array, rng: np.random.Generator) -> Array:
    """Row and column of a pixel of the product away from the border of the image, (2,)."""
    edge = len(product) // 12
    inner = product[edge:-edge, edge:-edge]
    if not inner.any():
        inner = np.ones_like(inner)
    # a place in [0, 1] along the product's pixels, so that the image's size hardly moves it
    places = np.flatnonzero(inner)
    row, column = np.unravel_index(places[int(rng.uniform() * len(places))], inner.shape)
    return np.array([row + edge, column + edge])


def _on_product(mask: Array, product: Array) -> Array:
    """The part of a mask on the product, or all of it where hardly any is."""
    inside = mask & product
    return inside if inside.sum() >= 0.3 * mask.sum() else mask


def _blend(pixels: Array, mask: Array, paint: Array, strength: float) -> Array:
    """Paint through a mask, softly within two pixels of its edge, changing nothing outside."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[
        1:-1, 1:-1
    ]  # from the edge, in pixels
    twin = pixels.copy()
    twin[box] += (
        strength
        * np.clip(depth / 2, 0, 1)[:, :, None]
        * (np.clip(paint[box], 0, 255) - pixels[box])
    )
    return twin


def _finished(twin: Array, mask: Array, kind: str) -> Twin:
    image = np.rint(twin).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return Twin(np.ascontiguousarray(image), mask.astype(np.uint8), kind)


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    return float(math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]))))
