"""Which images a condition trains on, holds out and tests on.

Every draw is an order of images in which the place of each depends on the seed, the draw and the
image alone. So it is the same for every model, whatever other categories run and in whatever order
files lie on the disk, and a smaller share is always part of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adray.conditions import GROUP, PLAIN, Condition
from adray.data.base import Sample, defects_of, normals_of, split_of
from adray.data.names import natural_key
from adray.data.splits import group_name, grouped, holdout, identity_of, in_drawn_order
from adray.errors import InputError
from adray.language.sentence import Sentence, Term

_MOST_TAKEN = 0.75
"""Part of a category's defective test images that may leave the test (as IM-IAD has it, Xie et al.
2024)."""


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
        InputError: where the data have too few images or defects for the condition.
    """
    moved = _moved(samples, condition) if condition.leave_out else {}
    if condition.leave_out:
        samples = [*_staying(samples, condition), *moved]
        _check_left(samples, condition)
    train, held_out = holdout(samples, fraction, seed)
    parts = Parts(train, held_out, split_of(samples, "test"), moved)
    if condition.has_fewer:
        parts = replace(parts, train=_fewer(parts.train, seed, condition))
    return _with_defects(parts, seed, condition) if condition.is_dirty else parts


# One group left out


def values_of(samples: Iterable[Sample], leave_out: str) -> list[str]:
    """List the values of a group or column that some image has, in natural order."""
    values = {_value(sample, leave_out) for sample in samples}
    return sorted(values - {""}, key=natural_key)


def names_to_leave_out(samples: Iterable[Sample]) -> list[str]:
    """List what `Condition.leave_out` may be for some images: their columns, and their groups."""
    names: set[str] = set()
    for sample in samples:
        names.update(dict(sample.columns))
    return [GROUP, *sorted(names)]


def _value(sample: Sample, leave_out: str) -> str:
    """Read the group of a sample, or one of its columns. Empty where it has none."""
    if leave_out == GROUP:
        return sample.group
    return dict(sample.columns).get(leave_out, "")


def _moved(samples: Sequence[Sample], condition: Condition) -> dict[Sample, Sample]:
    """Move the images of the value that is left out into the test, each with what it was before."""
    moved = {}
    for sample in samples:
        is_left_out = _value(sample, condition.leave_out) == condition.left_out
        if is_left_out and sample.split != "test":
            moved[replace(sample, split="test")] = sample
    return moved


def _staying(samples: Sequence[Sample], condition: Condition) -> list[Sample]:
    """List the images that train or test as before.

    Of the test these are the images of the value that is left out, and defects that have no value,
    since often only the normal images come in groups.
    """
    staying = []
    for sample in samples:
        value = _value(sample, condition.leave_out)
        is_left_out = value == condition.left_out
        if sample.split != "test":
            stays = not is_left_out
        else:
            stays = is_left_out or (sample.label == 1 and not value)
        if stays:
            staying.append(sample)
    return staying


def _check_left(samples: Sequence[Sample], condition: Condition) -> None:
    """Refuse a value without which nothing trains, and one on which nothing can be judged.

    Raises:
        InputError: says which images are missing.
    """
    test = split_of(samples, "test")
    needed = {
        "no normal image trains": normals_of(split_of(samples, "train")),
        "no normal image tests": normals_of(test),
        "no defective image tests": defects_of(test),
    }
    for lack, found in needed.items():
        if not found:
            said = Sentence.of(
                "condition nothing_left",
                leave_out=f"{condition.leave_out}={condition.left_out}",
                lack=Term(lack),
            )
            raise InputError(said)


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
        said = Sentence.of(
            "condition k_shot",
            place=_place(members),
            k_shot=condition.k_shot,
            normals=len(members),
        )
        raise InputError(said)
    return condition.k_shot


# Defects among the normal images


def _with_defects(parts: Parts, seed: int, condition: Condition) -> Parts:
    """Put defects of the test among the normal images, as a person does who overlooks them.

    They then look like normal images in everything but their pixels. In the test they stay with
    ``overlap``. Else they leave it, and with them all that a split would keep together with them.

    Raises:
        InputError: for a category with too few defects.
    """
    training = _by_category(normals_of(parts.train))
    held_out = _by_category(parts.held_out if condition.hold_out == "contaminated" else [])
    defects = _by_category(defects_of(parts.test))

    to_train: list[Sample] = []
    to_hold_out: list[Sample] = []
    for category, members in training.items():
        found = defects.get(category, [])
        counts = _Counts(len(members), len(held_out.get(category, [])), len(found))
        _check_enough(_place(members), counts, condition)
        trained, held = counts.added(condition.contamination)
        # From both ends, so that a larger share takes what a smaller one took, and more.
        ordered = _defects_in_order(found, f"{seed} defects {condition.draw}")
        to_train += ordered[:trained]
        to_hold_out += ordered[len(ordered) - held :]

    test = parts.test
    if condition.test_defects == "no_overlap":
        test = _without(parts.test, to_train + to_hold_out)
    made = {_as_normal(sample): sample for sample in to_train + to_hold_out}
    return Parts(
        parts.train + list(map(_as_normal, to_train)),
        parts.held_out + list(map(_as_normal, to_hold_out)),
        test,
        made,
    )


@dataclass(frozen=True)
class _Counts:
    """How many images a category has for a condition with defects."""

    training: int
    """Normal images that train."""
    held_out: int
    """Held-out normals that get defects too; 0 where they stay clean."""
    defects: int
    """Defective test images."""

    def added(self, share: float | None) -> tuple[int, int]:
        """Count the defects that train and those that are held out, to be `share` of all."""
        assert share is not None, "the condition has a share"
        # d / (n + d) = share
        ratio = share / (1 - share)
        return round(ratio * self.training), round(ratio * self.held_out)

    def largest(self, possible: int) -> float:
        """Find the largest share in hundredths that takes no more than `possible`, 0 for none."""
        for percent in range(99, 0, -1):
            if sum(self.added(percent / 100)) <= possible:
                return percent / 100
        return 0.0


def _check_enough(place: str, counts: _Counts, condition: Condition) -> None:
    """Refuse a share for which a category has too few defects, or too few images to have any.

    Raises:
        InputError: with the numbers, and the largest share that is possible.
    """
    what = Sentence.of("condition share", place=place, share=str(condition.contamination))
    trained, held = counts.added(condition.contamination)
    if not trained:
        raise InputError(Sentence.of("condition none_added", what=what, images=counts.training))

    leaves = condition.test_defects == "no_overlap"
    possible = int(counts.defects * _MOST_TAKEN) if leaves else counts.defects
    if trained + held <= possible:
        return
    if not counts.defects:
        raise InputError(Sentence.of("condition no_defects", what=what))
    said = Sentence.of(
        "condition too_few_may_leave" if leaves else "condition too_few",
        what=what,
        wanted=trained + held,
        defects=counts.defects,
        possible=possible,
        largest=f"{counts.largest(possible):g}",
    )
    raise InputError(said)


def _defects_in_order(defects: Sequence[Sample], draw: str) -> list[Sample]:
    """Sort defects into their drawn order, those of one group behind each other."""
    by_name = {identity_of(sample): sample for sample in defects}
    groups = grouped(in_drawn_order(by_name, draw), lambda name: group_name(by_name[name]))
    ordered: list[Sample] = []
    for group in in_drawn_order(groups, draw):
        ordered += [by_name[name] for name in groups[group]]
    return ordered


def _as_normal(sample: Sample) -> Sample:
    """Give a defect as it stands among the normal images that train."""
    return replace(sample, label=0, defect_type="good", split="train", mask_paths=())


def _without(test: Sequence[Sample], taken: Sequence[Sample]) -> list[Sample]:
    """Take samples out of the test, with all that are in a group with them.

    Raises:
        InputError: where no normal or no defective image of a category is left.
    """
    gone = set(map(group_name, taken))
    left = [sample for sample in test if group_name(sample) not in gone]
    kinds = {(sample.dataset, sample.category, sample.label) for sample in left}
    for sample in test:
        if (sample.dataset, sample.category, sample.label) not in kinds:
            kind = "defective" if sample.label else "normal"
            said = Sentence.of(
                "condition test_empty",
                place=_place([sample]),
                kind=Term(kind),
                taken=len(taken),
            )
            raise InputError(said)
    return left


def _by_category(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Part samples by data set and category."""
    return grouped(samples, lambda sample: (sample.dataset, sample.category))


def _place(members: Sequence[Sample]) -> str:
    """Name the category that samples are of."""
    return f"{members[0].dataset}/{members[0].category}"
