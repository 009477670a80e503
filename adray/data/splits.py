"""Which images train, which are held out, which test: chosen by seed and name, never by the order of a list."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from adray.data.base import Sample
from adray.errors import InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def split_normals(
    samples: Sequence[Sample],
    test_fraction: float = 0.2,
    seed: int = 42,
    *,
    train_defects: float = 0.0,
    group: Callable[[Sample], str] = lambda sample: sample.key,
) -> list[Sample]:
    """Split data that come without a split, per (data set, category).

    Args:
        samples: all images; their `split` is ignored.
        test_fraction: part of the normal images that tests.
        seed: chooses which.
        train_defects: part of the defects that trains, chosen within each defect type; the rest tests.
        group: images with the same group stay on one side, normal and each defect type apart.

    Returns:
        The samples in the order given, each with its split.

    Raises:
        InputError: for a fraction outside [0, 0.9].
    """
    check_fraction("test_fraction", test_fraction)
    check_fraction("train_defects", train_defects)
    chosen: set[str] = set()
    for members in _gather(
        samples, lambda s: (s.dataset, s.category, s.label, s.defect_type)
    ).values():
        fraction = train_defects if members[0].label else test_fraction
        chosen |= {_identity(sample) for sample in _choose_groups(members, fraction, seed, group)}
    return [
        replace(s, split="train" if (_identity(s) in chosen) == bool(s.label) else "test")
        for s in samples
    ]


def holdout(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Set some of the training normals apart, per (data set, category).

    Args:
        samples: any samples; those of the test are left out.
        fraction: part of the normal training images, in [0, 0.9]; above 0 at least one where there are two or more.
        seed: chooses which.

    Returns:
        ``(train, held_out)``, both in the order given; training defects stay in ``train``.

    Raises:
        InputError: for a fraction outside [0, 0.9].
    """
    check_fraction("holdout", fraction)
    training = [sample for sample in samples if sample.split == "train"]
    normals = [sample for sample in training if sample.label == 0]
    held: set[str] = set()
    for members in _gather(normals, lambda s: (s.dataset, s.category)).values():
        names = sorted(
            {_identity(sample) for sample in members}, key=lambda name: _draw(seed, name)
        )
        held.update(names[: _count(len(names), fraction)])
    return (
        [s for s in training if s.label == 1 or _identity(s) not in held],
        [s for s in normals if _identity(s) in held],
    )


def training_defects(samples: Iterable[Sample]) -> list[Sample]:
    """The labelled defects of the training split."""
    return [sample for sample in samples if sample.split == "train" and sample.label == 1]


def check_training_defects(samples: Sequence[Sample]) -> None:
    """Refuse data that supervised training cannot learn from.

    Raises:
        InputError: where no labelled defect trains, or one has no mask.
    """
    defects = training_defects(samples)
    if not defects:
        names = ", ".join(sorted({f"{s.dataset}/{s.category}" for s in samples})[:3])
        raise InputError(
            f"{names}: the training split has no labelled defects, which supervised training needs; set "
            "split_mode: 2cls_highshot for VisA, train_defects: 0.5 for a folder of your own with masks (MVTec and "
            "BTAD have none)"
        )
    bare = [sample for sample in defects if sample.mask_path is None]
    if bare:
        raise InputError(
            f"{bare[0].dataset}/{bare[0].category}: {len(bare)} of {len(defects)} labelled training defects have no "
            f"mask, such as {bare[0].path.name}, and supervised training learns from masks; name a folder of masks "
            "under settings.folders, or take another configuration"
        )


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction that leaves no training images.

    Raises:
        InputError: for anything but a number in [0, 0.9].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 0.9:
        raise InputError(
            f"{name}: {value!r} is not a fraction in [0, 0.9]; 0 turns it off, 0.1 takes every tenth image"
        )


def _choose_groups(
    members: Sequence[Sample], fraction: float, seed: int, group: Callable[[Sample], str]
) -> list[Sample]:
    """Whole groups that together come close to `fraction` of the members without passing it."""
    wanted = _count(len(members), fraction)
    if not wanted:
        return []
    groups = _gather(members, group)
    if len(groups) == 1:
        logger.warning(
            "%s/%s: all %d images of %r share one group of near-duplicates; they are split one by one",
            members[0].dataset,
            members[0].category,
            len(members),
            members[0].defect_type,
        )
        groups = _gather(members, _identity)
    chosen: list[Sample] = []
    order = sorted(groups, key=lambda name: _draw(seed, name))
    for name in order:
        if len(chosen) + len(groups[name]) <= wanted:
            chosen += groups[name]
    return chosen or groups[min(order, key=lambda name: len(groups[name]))]


def _count(total: int, fraction: float) -> int:
    """How many of `total` a fraction takes: at least one and never all, 0 where that cannot be."""
    return min(max(round(total * fraction), 1), total - 1) if fraction > 0 and total > 1 else 0


def _draw(seed: int, name: object) -> bytes:
    """A place in the lot that depends on the seed and the name alone."""
    return hashlib.blake2b(
        f"{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


def _identity(sample: Sample) -> str:
    """A name for a sample, unique among merged data sets."""
    return f"{sample.dataset}/{sample.category}/{sample.key}"


def _gather(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Lists of items by key."""
    lists: dict[K, list[T]] = defaultdict(list)
    for item in items:
        lists[key(item)].append(item)
    return dict(lists)
