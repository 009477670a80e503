"""Which images a condition trains on, holds out and tests on.

Every draw is an order of images in which the place of each depends on the seed, the draw and the
image alone. So it is the same for every model, whatever other categories run and in whatever order
files lie on the disk, and a smaller share is always part of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from adray.conditions import PLAIN, Condition
from adray.data.base import Sample, normals_of, split_of
from adray.data.splits import grouped, holdout, identity_of, in_drawn_order
from adray.errors import InputError


@dataclass(frozen=True)
class Parts:
    """The images of one trial by what they are for."""

    train: list[Sample]
    """Those that train, with the labelled defects of the training split."""
    held_out: list[Sample]
    """Those that are held out."""
    test: list[Sample]
    """Those that test."""
    made: Mapping[Sample, Sample] = field(default_factory=dict)
    """Samples that a condition changed, each to the one of the data set that it was."""


def divide(
    samples: Sequence[Sample], fraction: float, seed: int, condition: Condition = PLAIN
) -> Parts:
    """Divide the images of a trial as its condition asks.

    Args:
        samples: all images, with their split.
        fraction: see `adray.data.splits.holdout`. The hold-out is that of the plain case, so it
            counts into no `k_shot`.
        seed: of the hold-out and of all draws.
        condition: what differs from the plain case.

    Raises:
        InputError: where the data have too few images for the condition.
    """
    train, held_out = holdout(samples, fraction, seed)
    parts = Parts(train, held_out, split_of(samples, "test"))
    if condition.has_fewer:
        parts = replace(parts, train=_fewer(parts.train, seed, condition))
    return parts


# Fewer images


def _fewer(train: Sequence[Sample], seed: int, condition: Condition) -> list[Sample]:
    """Choose some of the normal images of each category. Labelled defects stay."""
    chosen: set[str] = set()
    for members in _by_category(normals_of(train)).values():
        count = _wanted(members, condition)
        names = list(map(identity_of, members))
        chosen.update(in_drawn_order(names, f"{seed} fewer {condition.draw}")[:count])
    return [sample for sample in train if sample.label or identity_of(sample) in chosen]


def _wanted(members: Sequence[Sample], condition: Condition) -> int:
    """Count how many normal images of a category train.

    Raises:
        InputError: for more than there are.
    """
    if condition.k_shot is None:
        assert condition.train_fraction is not None, "one of both is given"
        return max(1, round(condition.train_fraction * len(members)))
    if condition.k_shot > len(members):
        raise InputError(
            f"{_place(members)}: k_shot {condition.k_shot} is more than the {len(members)} normal "
            "training images beside the held-out ones; ask for fewer, or add images"
        )
    return condition.k_shot


def _by_category(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Part samples by data set and category."""
    return grouped(samples, lambda sample: (sample.dataset, sample.category))


def _place(members: Sequence[Sample]) -> str:
    """Name the category that samples are of."""
    return f"{members[0].dataset}/{members[0].category}"
