"""What a survey sees of the pictures themselves, of which it decodes an even share.

Grey levels, near-duplicates and the pictures that do not look like the others come from one look at
each of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from einops import reduce

from adray.data.base import Sample
from adray.data.decode import decode_image
from adray.data.near_duplicates import find_near_duplicates
from adray.data.side_by_side import map_side_by_side
from adray.data.survey_counts import Facts, Pair
from adray.errors import InputError
from adray.types import PixelRule

PER_CATEGORY = 200
"""Pictures of a category that are decoded in any case."""
MOST_PICTURES = 5_000
"""Pictures that are decoded of all categories together, where each has few."""
MOST_PIXELS = 600_000_000
"""Pixels that are decoded of all categories together besides, some ten seconds of one core."""
BINS = 32
"""Bars of a histogram of grey levels."""
_SIDE = 256
_BLOCK = 8
"""Pixels of a look that become one of its small copy."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_ODD = 6
"""Normal pictures that are named as the least like the others."""


@dataclass(frozen=True)
class Look:
    """What is kept of one decoded picture."""

    sample: Sample
    """The picture."""
    copy: np.ndarray
    """Its small grey copy, (32, 32) uint8."""
    counts: np.ndarray
    """Its pixels at 256 px by grey level, (`BINS`,)."""


@dataclass(frozen=True)
class Levels:
    """The grey levels of the pictures of one mode, as a model sees them."""

    mode: str
    """Mode and bits of the files."""
    images: int
    """Pictures that were looked at."""
    counts: tuple[int, ...]
    """Their pixels in `BINS` steps from black to white."""


def sample_size(images: int, categories: int, pixels: float) -> int:
    """Say how many pictures of a category are looked at.

    Args:
        images: in the category.
        categories: in the data set.
        pixels: of an image, on average.

    Returns:
        All where the whole set is small, at least `PER_CATEGORY` otherwise.
    """
    affordable = min(MOST_PICTURES, MOST_PIXELS / max(pixels, 1)) / categories
    return min(images, max(PER_CATEGORY, int(affordable)))


def evenly_spaced(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Choose `number` of the samples at equal steps, the first among them."""
    return [samples[i * len(samples) // number] for i in range(number)]


def look_at_all(
    samples: Sequence[Sample], rule: PixelRule, advance: Callable[[], object]
) -> list[Look]:
    """Decode pictures side by side and leave out those that cannot be.

    Args:
        samples: the pictures.
        rule: how their numbers become grey levels.
        advance: is called after each.
    """
    looks = []
    for look in map_side_by_side(partial(_look_at, rule), samples):
        advance()
        if look is not None:
            looks.append(look)
    return looks


def gather_levels(looks: Sequence[Look], facts: Facts) -> tuple[Levels, ...]:
    """Add the grey levels of pictures up, by mode and bits of their files."""
    by_mode: dict[str, list[np.ndarray]] = defaultdict(list)
    for look in looks:
        found = facts[look.sample.path]
        by_mode[f"{found.mode}, {found.bits} bit"].append(look.counts)

    levels = []
    for mode, counts in by_mode.items():
        total = tuple(np.sum(counts, axis=0).tolist())
        levels.append(Levels(mode, len(counts), total))
    return tuple(levels)


def near_pairs(looks: Sequence[Look], facts: Facts) -> list[Pair]:
    """Find the pictures of the test that nearly repeat one of the training, the closest first.

    Those of the same bytes are left out.
    """
    tests = [look for look in looks if look.sample.split == "test"]
    training = [look for look in looks if look.sample.split == "train"]
    near = find_near_duplicates(_copies(tests), _copies(training))

    pairs = []
    for found in near:
        test = tests[found.index].sample.path
        train = training[found.other].sample.path
        if facts[test].digest != facts[train].digest:
            pairs.append(Pair(test, train, found.distance))
    return sorted(pairs, key=lambda pair: pair.distance)


def odd_normals(looks: Sequence[Look]) -> list[Sample]:
    """Find the normal training pictures that are farthest from the middle one, farthest first."""
    normals = []
    for look in looks:
        if look.sample.split == "train" and look.sample.label == 0:
            normals.append(look)
    # Of very few pictures none is the odd one.
    if len(normals) < 2 * _ODD:
        return []

    copies = _copies(normals).astype(np.float32)
    away = np.square(copies - np.median(copies, axis=0)).mean(axis=(1, 2))
    farthest = np.argsort(-away, kind="stable")[:_ODD]
    return [normals[i].sample for i in farthest]


def _look_at(rule: PixelRule, sample: Sample) -> Look | None:
    """Decode one picture, None where it cannot be."""
    try:
        pixels = decode_image(sample.path, _SIDE, rule=rule)
    except InputError:
        return None
    grey = np.einsum("chw,c->hw", pixels, _LUMINANCE)
    levels = np.bincount(np.rint(grey).astype(np.uint8).ravel() // (256 // BINS), minlength=BINS)
    small = reduce(grey, "(h a) (w b) -> h w", "mean", a=_BLOCK, b=_BLOCK)
    return Look(sample, np.rint(small).astype(np.uint8), levels)


def _copies(looks: Sequence[Look]) -> np.ndarray:
    """Give the small copies of pictures in one array, (N, 32, 32)."""
    if not looks:
        return np.zeros((0, _SIDE // _BLOCK, _SIDE // _BLOCK), np.uint8)
    return np.stack([look.copy for look in looks])
