"""Which training normals are left out together where each one is scored by a model without it.

Images of one group or part, and pictures that nearly repeat each other, have scores alike: a model
that was fitted on one of them knows the others. So they are left out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.data.base import Sample
from adray.data.near_duplicates import pairs_of_near_duplicates
from adray.data.splits import in_drawn_order

FOLDS = 10
"""Models that are fitted without a part of the images, where there are as many units."""
MOST_GROUPS = 30
"""Groups up to which each one is left out by itself; of more, several are left out together."""


@dataclass(frozen=True)
class Folds:
    """Which images are left out together."""

    number: NDArray[np.int64]
    """(N,) fold of each image, from 0."""
    by_group: bool
    """Whether each fold is one of the user's groups."""
    is_one_group: bool = False
    """Whether all images share one group, so that each is left out by itself."""

    @property
    def count(self) -> int:
        """Count the folds."""
        return int(self.number.max()) + 1

    @property
    def largest(self) -> int:
        """Count the images of the largest fold."""
        return int(np.bincount(self.number).max())


def calibration_folds(
    samples: Sequence[Sample], copies: np.ndarray | None, seed: int, folds: int = FOLDS
) -> Folds:
    """Deal images into folds, those that stay together into the same one.

    Where all images have a group, each group is a fold, up to `MOST_GROUPS` of them. Otherwise there
    are `folds` folds of about the same size and mixture of categories. Fewer units than that are
    left out one by one.

    Args:
        samples: normal images, at least two.
        copies: their small grey copies (N, H, W), by which near-duplicates are found, or None where
            nobody can look at them.
        seed: chooses which go together.
        folds: models that are fitted, where there are as many units.
    """
    units = _units(samples, copies)
    is_one_group = bool(units.max() == 0)
    if is_one_group:
        units = np.arange(len(samples))

    count = int(units.max()) + 1
    has_groups = not is_one_group and all(sample.group for sample in samples)
    by_group = has_groups and count <= MOST_GROUPS
    return Folds(
        _deal(samples, units, count if by_group else min(count, folds), seed),
        by_group,
        is_one_group,
    )


def _units(samples: Sequence[Sample], copies: np.ndarray | None) -> NDArray[np.int64]:
    """Number images so that those that stay together have the same number, (N,) from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [] if copies is None else pairs_of_near_duplicates(copies)
    first_of: dict[tuple[str, str, str], int] = {}
    for i, sample in enumerate(samples):
        if sample.stays_with:
            name = (sample.dataset, sample.category, sample.stays_with)
            pairs.append((first_of.setdefault(name, i), i))

    # Two images are connected also by a third one.
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    shape = (len(samples), len(samples))
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=shape)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _deal(
    samples: Sequence[Sample], units: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Put each unit into the smallest fold, large ones first and each category in turn, (N,)."""
    members: dict[int, list[int]] = {}
    for i, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(i)

    # A unit is called after its first image by name, whatever the order of the list.
    unit_of = {}
    for rows in members.values():
        name = min(f"{samples[i].dataset}/{samples[i].category}/{samples[i].key}" for i in rows)
        unit_of[name] = rows
    drawn = in_drawn_order(unit_of, seed)
    drawn.sort(key=lambda name: (-len(unit_of[name]), samples[unit_of[name][0]].category))

    number = np.zeros(len(samples), np.int64)
    sizes = np.zeros(folds, np.int64)
    for name in drawn:
        smallest = int(sizes.argmin())
        number[unit_of[name]] = smallest
        sizes[smallest] += len(unit_of[name])
    return number
