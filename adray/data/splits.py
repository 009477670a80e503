"""Which images train, which are held out, which test: chosen by seed and name.

The order of a list never matters.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from adray.config import check_holdout
from adray.data.base import Sample, defects_of, normals_of, split_of
from adray.data.names import natural_key
from adray.errors import InputError
from adray.language.sentence import Sentence

logger = logging.getLogger(__name__)
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_LEAST_TRAINING = 2
"""Normal images that a hold-out leaves: a covariance needs two."""
_SHOWN_GROUPS = 4


def split_normals(
    samples: Sequence[Sample],
    test_fraction: float = 0.2,
    seed: int = 42,
    *,
    train_defects: float = 0.0,
    group: Callable[[Sample], str] = lambda sample: sample.stays_with or sample.key,
) -> list[Sample]:
    """Split data that come without a split, per (data set, category).

    Args:
        samples: all images; their `split` is ignored.
        test_fraction: part of the normal images that tests.
        seed: chooses which.
        train_defects: part of the defects that trains, chosen within each defect type; the rest
            tests.
        group: images with the same group stay on one side, normal and each defect type apart.

    Returns:
        The samples in the order given, each with its split. Images that share their
        `Sample.stays_with` with a defect that tests do so too, unless these are most of the normal
        ones or all defects that train. Normal images that share it with one that trains do so too.

    Raises:
        InputError: for a fraction outside [0, 0.9].
    """
    check_fraction("test_fraction", test_fraction)
    check_fraction("train_defects", train_defects)
    kinds = grouped(samples, lambda s: (s.dataset, s.category, s.label, s.defect_type))

    trains: set[str] = set()
    for members in kinds.values():
        if members[0].label:
            trains.update(map(identity_of, _choose_groups(members, train_defects, seed, group)))
    for defects in grouped(defects_of(samples), lambda s: (s.dataset, s.category)).values():
        trains -= _torn_among_types(defects, trains)

    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for sample in samples:
        if sample.label and sample.stays_with:
            sides[identity_of(sample) in trains].add(group_name(sample))
    taken = _GroupsOfDefects(sides[True], sides[False])
    for members in kinds.values():
        if not members[0].label:
            trains.update(_training_part(members, taken, test_fraction, seed, group))

    split = []
    for sample in samples:
        split.append(replace(sample, split="train" if identity_of(sample) in trains else "test"))
    return split


@dataclass(frozen=True)
class _GroupsOfDefects:
    """Names of the groups that have defects."""

    trained: Collection[str]
    """With a defect that trains."""
    tested: Collection[str]
    """With a defect that tests."""


def _torn_among_types(defects: Sequence[Sample], trains: Collection[str]) -> set[str]:
    """Find the defects of a category that train while their group tests with another type of defect.

    Each type of defect is divided by itself, so that two of them may part a group. Nothing is found
    where no defect would be left to train.
    """
    together = [sample for sample in defects if sample.stays_with]
    torn: set[str] = set()
    for members in grouped(together, group_name).values():
        training = [sample for sample in members if identity_of(sample) in trains]
        types = {sample.defect_type for sample in training}
        others = {sample.defect_type for sample in members if identity_of(sample) not in trains}
        if types and others and types.isdisjoint(others):
            torn.update(map(identity_of, training))

    left = [sample for sample in defects if identity_of(sample) in trains]
    if not torn or any(identity_of(sample) not in torn for sample in left):
        return torn
    logger.warning(
        "%s: defects of one group both train and test, since no other group would have any to train",
        _place(defects),
    )
    return set()


def _training_part(
    normals: Sequence[Sample],
    taken: _GroupsOfDefects,
    test_fraction: float,
    seed: int,
    group: Callable[[Sample], str],
) -> set[str]:
    """Choose the normal images of a category that train, by their identities.

    Args:
        normals: all of them.
        taken: groups of which the side is settled by their defects.
        test_fraction: part that tests.
        seed: chooses which.
        group: images with the same group stay on one side.
    """
    with_defects = [sample for sample in normals if group_name(sample) in taken.tested]
    if 2 * len(with_defects) > len(normals):
        logger.warning(
            "%s/%s: %d of %d normal images share their group with a defect that tests; "
            "they are split without regard to it, since too few others would train",
            normals[0].dataset,
            normals[0].category,
            len(with_defects),
            len(normals),
        )
        with_defects = []

    apart = set(map(identity_of, with_defects))
    others = [sample for sample in normals if identity_of(sample) not in apart]

    # Those of a group with a defect that trains are left to train, where there are others.
    free = [sample for sample in others if group_name(sample) not in taken.trained] or others
    spare = int(len(free) == len(others))

    # What tests already counts towards the part that does.
    if len(free) < len(normals):
        wanted = len(normals) * test_fraction - len(with_defects)
        test_fraction = max(wanted, 0) / len(free)
    chosen = set(map(identity_of, _choose_groups(free, test_fraction, seed, group, spare)))
    return set(map(identity_of, others)) - chosen


def holdout(
    samples: Sequence[Sample], part: int | float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Set some of the normals apart that do not test, per (data set, category).

    Args:
        samples: any samples; those of the test are left out.
        part: of the normal training images, in [0, 0.9]; above 0 at least one where there are three
            or more. From 1 on a number of images of each category. Nothing is taken where the data
            bring normal images for validation.
        seed: chooses which. Images of one group are taken together.

    Returns:
        ``(train, held_out)``, both in the order given; training defects stay in ``train``.

    Raises:
        InputError: for a part outside [0, 0.9], and for a number that leaves too few images.
    """
    check_holdout(part)
    ours = split_of(samples, "train", "validation")
    normals = normals_of(ours)

    chosen: set[str] = set()
    for members in grouped(normals, lambda s: (s.dataset, s.category)).values():
        held = split_of(members, "validation")
        if not held:
            fraction = _as_fraction(members, part)
            held = _choose_groups(members, fraction, seed, group_name, _LEAST_TRAINING)
        chosen.update(map(identity_of, held))

    train = []
    held_out = []
    for sample in ours:
        if sample.label == 0 and identity_of(sample) in chosen:
            held_out.append(sample)
        elif sample.split == "train":
            train.append(sample)
    return train, held_out


def _as_fraction(members: Sequence[Sample], part: int | float) -> float:
    """Turn a number of images of a category into a fraction of them. A fraction stays as it is.

    Raises:
        InputError: for a number that leaves too few images to train on.
    """
    if part < 1:
        return part
    most = len(members) - _LEAST_TRAINING
    if part > most:
        said = Sentence.of(
            "split holdout_too_large",
            place=_place(members),
            holdout=str(part),
            normals=len(members),
            most=max(most, 0),
        )
        raise InputError(said)
    return part / len(members)


def describe_groups(samples: Iterable[Sample]) -> list[Sentence]:
    """Say per (data set, category) which groups of images stay together, where there are any."""
    found = []
    for members in grouped(samples, lambda s: (s.dataset, s.category)).values():
        groups = sorted({s.group for s in members if s.group}, key=natural_key)
        if not groups:
            continue
        shown = ", ".join(groups[:_SHOWN_GROUPS])
        more = ", ..." if len(groups) > _SHOWN_GROUPS else ""
        said = Sentence.of(
            "split groups",
            place=_place(members),
            images=sum(bool(s.group) for s in members),
            groups=len(groups),
            names=f"{shown}{more}",
        )
        found.append(said)
    return found


def _place(members: Sequence[Sample]) -> str:
    """Name the category that samples are of."""
    return f"{members[0].dataset}/{members[0].category}"


def training_defects(samples: Iterable[Sample]) -> list[Sample]:
    """Give the labelled defects of the training split."""
    return defects_of(split_of(samples, "train"))


def check_training_defects(samples: Sequence[Sample]) -> None:
    """Refuse data that supervised training cannot learn from.

    Raises:
        InputError: where no labelled defect trains, or one has no mask.
    """
    defects = training_defects(samples)
    if not defects:
        categories = sorted({f"{s.dataset}/{s.category}" for s in samples})
        said = Sentence.of("split no_training_defects", places=", ".join(categories[:3]))
        raise InputError(said)

    bare = [sample for sample in defects if not sample.mask_paths]
    if bare:
        said = Sentence.of(
            "split training_defects_bare",
            place=_place(bare),
            bare=len(bare),
            defects=len(defects),
            first=bare[0].path.name,
        )
        raise InputError(said)


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction that leaves no training images.

    Raises:
        InputError: for anything but a number in [0, 0.9].
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 0.9:
        raise InputError(Sentence.of("split no_fraction", name=name, value=repr(value)))


def _choose_groups(
    members: Sequence[Sample],
    fraction: float,
    seed: int,
    group: Callable[[Sample], str],
    spare: int = 1,
) -> list[Sample]:
    """Choose whole groups that together come close to `fraction` of the members.

    At least `spare` members are left.
    """
    wanted = _count(len(members), fraction, spare)
    if not wanted:
        return []

    groups = grouped(members, group)
    if len(groups) == 1:
        logger.warning(
            "%s/%s: all %d images of %r share one group; they are split one by one",
            members[0].dataset,
            members[0].category,
            len(members),
            members[0].defect_type,
        )
        groups = grouped(members, identity_of)

    chosen: list[Sample] = []
    order = in_drawn_order(groups, seed)
    for name in order:
        if len(chosen) + len(groups[name]) <= wanted:
            chosen += groups[name]
    if chosen:
        return chosen

    # Even the smallest group is more than wanted.
    smallest = min((groups[name] for name in order), key=len)
    return smallest if len(members) - len(smallest) >= spare else []


def _count(total: int, fraction: float, spare: int) -> int:
    """Count how many of `total` a fraction takes.

    That is at least one and leaves `spare`, and 0 where that cannot be.
    """
    if fraction <= 0 or total <= spare:
        return 0
    return min(max(round(total * fraction), 1), total - spare)


def in_drawn_order(names: Iterable[str], seed: int | str) -> list[str]:
    """Sort names into an order in which each one's place depends on the seed and itself alone.

    Args:
        names: of images or groups.
        seed: of a draw; a text tells it from other draws of the same seed.
    """

    def lot(name: str) -> bytes:
        text = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=16).digest()

    return sorted(names, key=lot)


def identity_of(sample: Sample) -> str:
    """Give a name for a sample that is unique among merged data sets."""
    return f"{sample.dataset}/{sample.category}/{sample.key}"


def group_name(sample: Sample) -> str:
    """Give a name for a sample's group that is unique among merged data sets."""
    if not sample.stays_with:
        return identity_of(sample)
    return f"{sample.dataset}/{sample.category}/{sample.stays_with}"


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Put items into lists by their key."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
