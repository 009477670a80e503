"""Drawn products and their defects: two textures and an object.

Light, position and noise vary. They are what `adray.data.synthetic` writes. Nothing here knows
files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def draw_normal(category: str, size: int, rng: np.random.Generator) -> Array:
    """Draw a normal image, (S, S, 3) float in [0, 255]."""
    clean = CATEGORIES[category](size, rng)

    # The lamp is a little brighter or darker, and stands to one side.
    brightness = 1 + rng.uniform(-0.06, 0.06)
    slope = rng.uniform(-0.05, 0.05, 2) @ (_grid(size) - 0.5).reshape(2, -1)
    light = (brightness + slope).reshape(size, size, 1)
    return clean * light + rng.normal(0, 3.5, (size, size, 1))


def add_defect(kind: str, image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Damage a normal image.

    Args:
        kind: one of `DEFECTS`.
        image: (S, S, 3) float.
        rng: places the defect.

    Returns:
        The damaged image, (S, S, 3) float, and the mask, (S, S) bool, outside of which nothing
        changed.
    """
    mask, paint = DEFECTS[kind](image, rng)
    return np.where(mask[:, :, None], paint, image), mask


def _weave(size: int, rng: np.random.Generator) -> Array:
    """Draw threads that cross over and under, at a random phase."""
    y, x = (_grid(size) + rng.uniform(0, 1, (2, 1, 1))) * 2 * np.pi * 10
    over = 0.5 + 0.5 * np.tanh(4 * np.sin(x / 2) * np.sin(y / 2))
    threads = over * np.abs(np.sin(x)) + (1 - over) * np.abs(np.sin(y))
    return _tint(0.35 + 0.5 * threads, (190, 175, 150))


def _grain(size: int, rng: np.random.Generator) -> Array:
    """Draw rings as wood has them, bent by slow waves."""
    y, x = _grid(size)
    bend = np.zeros_like(y)
    for waves in (1, 2, 3):
        height = rng.uniform(0.01, 0.03)
        bend += height * np.sin(2 * np.pi * (waves * y + rng.uniform()))
    rings = np.sin(2 * np.pi * (9 * (x + bend) + rng.uniform()))
    return _tint(0.7 + 0.16 * rings + 0.05 * np.sin(5.3 * np.pi * rings), (180, 125, 80))


def _gasket(size: int, rng: np.random.Generator) -> Array:
    """Draw a ring with six bolt holes on a dark table, turned and shifted a little."""
    y, x = _grid(size) - 0.5 - rng.uniform(-0.02, 0.02, (2, 1, 1))
    radius = np.hypot(x, y)
    turn = rng.uniform(0, 2 * np.pi)

    body = _soft(0.4 - radius, size) * _soft(radius - 0.17, size)
    for k in range(6):
        angle = turn + k * np.pi / 3
        to_hole = np.hypot(x - 0.285 * np.cos(angle), y - 0.285 * np.sin(angle))
        body = body * _soft(to_hole - 0.04, size)
    return _tint(0.12 + body * (0.62 + 0.1 * np.cos(60 * radius)), (170, 185, 200))


CATEGORIES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "gasket": _gasket,
    "grain": _grain,
    "weave": _weave,
}
"""(size, rng) -> a clean image, (S, S, 3) float."""


def _scratch(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a thin bent line, lighter or darker than what it crosses."""
    center = _place(image, rng)
    along, across = _turned_grid(len(image), center, rng.uniform(0, np.pi))
    across = across - rng.uniform(-2, 2) * along**2

    length = rng.uniform(0.1, 0.2)
    width = max(rng.uniform(0.008, 0.014), 0.8 / len(image))
    mask = (np.abs(along) < length) & (np.abs(across) < width)
    return mask, image + rng.choice([-1, 1]) * rng.uniform(50, 90)


def _spot(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a blot with a wavy edge and a colour of its own."""
    y, x = _grid(len(image)) - _place(image, rng).reshape(2, 1, 1)
    angle = np.arctan2(y, x)
    radius = rng.uniform(0.05, 0.08)
    waves = 1 + 0.2 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(7 * angle)
    color = rng.uniform(20, 200, 3)
    return np.hypot(x, y) < radius * waves, 0.3 * image + 0.7 * color


def _missing(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a patch without its structure: level in the darkest tone around it."""
    along, across = _turned_grid(len(image), _place(image, rng), rng.uniform(0, np.pi))
    half_length = rng.uniform(0.05, 0.1)
    half_width = rng.uniform(0.04, 0.08)
    mask = (np.abs(along) < half_length) & (np.abs(across) < half_width)
    floor = np.percentile(image, 5, axis=(0, 1)) + rng.normal(0, 3.5, (*image.shape[:2], 1))
    return mask, np.broadcast_to(floor, image.shape)


DEFECTS: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Array]]] = {
    "missing": _missing,
    "scratch": _scratch,
    "spot": _spot,
}
"""(image, rng) -> mask (S, S) bool and what shows through it, (S, S, 3) float."""


def _grid(size: int) -> Array:
    """Give row and column of each pixel's centre in [0, 1], (2, S, S)."""
    return (np.mgrid[:size, :size] + 0.5) / size


def _turned_grid(size: int, center: Array, angle: float) -> tuple[Array, Array]:
    """Measure how far all pixels lie along and across a line through `center`, (S, S) each."""
    y, x = _grid(size) - center.reshape(2, 1, 1)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return along, across


def _soft(distance: Array, size: int) -> Array:
    """Give 1 where the distance is positive and 0 where negative, with an edge of two pixels."""
    return np.clip(0.5 + distance * size / 2, 0, 1)


def _tint(gray: Array, color: tuple[int, int, int]) -> Array:
    """Colour grey levels: (S, S) in [0, 1] -> (S, S, 3)."""
    return gray[:, :, None] * np.array(color, float)


def _place(image: Array, rng: np.random.Generator) -> Array:
    """Choose a point on the product, as row and column in [0, 1].

    It is away from the border, and brighter than an empty table.
    """
    gray = image.mean(axis=2)
    low = len(gray) // 8
    inner = gray[low:-low, low:-low]
    place = rng.choice(np.flatnonzero(inner > 0.5 * inner.mean()))
    row, column = np.unravel_index(place, inner.shape)
    return (np.array([row, column]) + low + 0.5) / len(gray)
