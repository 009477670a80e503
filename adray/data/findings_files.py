"""Properties of files that have nothing to do with what is on the images, and yet tell the label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from adray.data.base import Sample, defects_of, normals_of, split_of
from adray.data.file_facts import FileFacts
from adray.data.findings import Facts, Report, found
from adray.language.sentence import Term

_LEAST_TOLD = 3
"""Images of each label from which a property of their files may be said to tell the label."""
_CHANCE = 1e-3
"""Probability below which sizes do not lie apart by chance."""


@dataclass(frozen=True)
class _Property:
    """Something of a file that has nothing to do with what is on the image."""

    name: str
    """For the sentence."""
    of: Callable[[FileFacts], str]
    """Gives its value."""


_PROPERTIES = (
    _Property("format", lambda facts: facts.format),
    _Property("size", lambda facts: f"{facts.width}x{facts.height}"),
    _Property("mode", lambda facts: facts.mode),
    _Property("bit depth", lambda facts: f"{facts.bits} bits"),
    _Property("compression", lambda facts: facts.compression or "none"),
)
"""The first that tells the label is the one that is named."""


def find_what_tells_the_label(
    report: Report, place: str, members: Sequence[Sample], images: Facts
) -> None:
    """Find a property of the files by which alone normal and defective images are told apart."""
    normal = normals_of(members)
    of_defects = _readable(defects_of(members), images)
    of_training = _readable(split_of(normal, "train", "validation"), images)
    of_test = _readable(split_of(normal, "test"), images)

    # What the test's normal images share with its defects tells no label.
    split = "test" if len(of_test) >= _LEAST_TOLD else "training"
    normals = of_test if split == "test" else of_training
    telling = _telling_property(normals, of_defects)
    if telling is not None:
        what = found(
            "file_tells_label",
            property=Term(telling.name),
            split=Term(split),
            normal=_common_values(telling, normals),
            defective=_common_values(telling, of_defects),
        )
        report.stop("file_tells_label", place, what, "remedy file_tells_label")
        return

    shifted = _telling_property(of_training, [*of_test, *of_defects])
    if shifted is not None:
        what = found(
            "training_files_differ",
            property=Term(shifted.name),
            training=_common_values(shifted, of_training),
            test=_common_values(shifted, of_defects or of_test),
        )
        report.remark("training_files_differ", place, what)


def remark_on_several_pictures(
    report: Report, place: str, members: Sequence[Sample], images: Facts
) -> None:
    """Remark on files that hold several pictures."""
    number = sum(images[sample.path].frames > 1 for sample in members)
    if number:
        report.remark("several_pictures", place, found("several_pictures", number=number))


def _readable(samples: Iterable[Sample], images: Facts) -> list[FileFacts]:
    """List the facts of the images that can be read."""
    facts = [images[sample.path] for sample in samples]
    return [one for one in facts if one.problem is None]


def _telling_property(first: Sequence[FileFacts], second: Sequence[FileFacts]) -> _Property | None:
    """Give the first property by which two kinds of images are told apart without an error."""
    if min(len(first), len(second)) < _LEAST_TOLD:
        return None
    for kind in _PROPERTIES:
        values = [Counter(map(kind.of, first)), Counter(map(kind.of, second))]
        apart = values[0].keys().isdisjoint(values[1])
        if apart and all(map(_is_regular, values)):
            return kind
        if apart and kind.name == "size" and _lie_apart(first, second):
            return kind
    return None


def _is_regular(values: Counter[str]) -> bool:
    """Tell whether nearly all images have a value that others have too.

    Where each has its own, no value is seen twice, and what differs tells nothing.
    """
    shared = sum(count for count in values.values() if count >= _LEAST_TOLD)
    return shared >= 0.9 * values.total()


def _lie_apart(first: Sequence[FileFacts], second: Sequence[FileFacts]) -> bool:
    """Tell whether all images of one kind are larger than all of the other, hardly by chance."""
    areas = [facts.width * facts.height for facts in first]
    others = [facts.width * facts.height for facts in second]
    apart = max(areas) < min(others) or max(others) < min(areas)

    # Of all orders of n + m sizes, two have one kind before the other.
    orders = math.comb(len(areas) + len(others), len(areas))
    return apart and 2 / orders < _CHANCE


def _common_values(kind: _Property, facts: Iterable[FileFacts]) -> str:
    """Name the two values that most files have."""
    values = Counter(map(kind.of, facts))
    return " / ".join(value for value, _ in values.most_common(2))
