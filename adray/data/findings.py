"""What is odd about a data set: what would silently change a result, and what only loses a little.

Whatever would change a result stops a sweep, until ``settings.data.<name>.accept`` names its kind.
The findings themselves are in the files beside this one, by what they are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from adray.data.base import Sample
from adray.data.file_facts import FileFacts
from adray.data.visa import MISSING_MASKS
from adray.errors import InputError
from adray.language.sentence import Sentence, Value, nearest_of

Facts = Mapping[Path, FileFacts]

STOPS: Mapping[str, str] = {
    "defects_below_normals": "defects or masks lie inside the folder of the normal images",
    "normals_below_defects": "images of a folder that sounds like normal ones count as defects",
    "identical_pictures": "the same picture trains and tests, or stands under two labels",
    "names_differ_in_case": "two folders differ in capitals or accents only",
    "masks_do_not_match": "none of the files in a folder of masks fits an image",
    "masks_cover_most": "the masks cover more than half of every image",
    "unread_folders": "pictures lie in folders that are not read",
    "file_tells_label": "format, size, mode or compression alone tells normal from defective",
    "shared_mask": "two images share a mask",
    MISSING_MASKS: "a table names masks that are not there",
}
"""Kinds of findings that stop a sweep until they are accepted, each with its meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing that a user must know of a data set."""

    kind: str
    """One of `STOPS`, or another name for what only loses a little."""
    said: Sentence
    """What was found and what to do."""
    stops: bool
    """Whether nothing should start."""

    @property
    def sentence(self) -> str:
        """Say in English what was found and what to do."""
        return str(self.said)


class Report:
    """Gathers findings of one data set in the form in which a user reads them.

    Args:
        dataset: its name.
        accept: kinds that shall not stop.

    Attributes:
        findings: those so far.

    Raises:
        InputError: for a kind to accept that does not exist.
    """

    def __init__(self, dataset: str, accept: Sequence[str]) -> None:
        check_accepted(dataset, accept)
        self.findings: list[Finding] = []
        self._dataset = dataset
        self._accept = accept

    def stop(self, kind: str, place: str, what: Sentence, remedy: str) -> None:
        """Add what would silently change a result, a remark where the user has accepted it.

        Args:
            kind: one of `STOPS`.
            place: data set, or data set and category.
            what: was found.
            remedy: key of the sentence that says what to do.
        """
        if kind in self._accept:
            said = Sentence.of("finding accepted", place=place, what=what)
            self.findings.append(Finding(kind, said, stops=False))
            return
        said = Sentence.of(
            "finding stops",
            place=place,
            what=what,
            remedy=Sentence.of(remedy),
            accept=f"settings.data.{self._dataset}.accept: [{kind}]",
        )
        self.findings.append(Finding(kind, said, stops=True))

    def remark(self, kind: str, place: str, what: Sentence) -> None:
        """Add what only loses a little."""
        said = Sentence.of("finding remark", place=place, what=what)
        self.findings.append(Finding(kind, said, stops=False))


def found(key: str, **values: Value) -> Sentence:
    """Make the sentence of what was found, of its key in the catalogue without ``found``."""
    return Sentence.of(f"found {key}", **values)


def check_accepted(dataset: str, accept: Sequence[str]) -> None:
    """Refuse kinds that do not exist.

    Raises:
        InputError: with the nearest.
    """
    for kind in accept:
        if kind not in STOPS:
            said = Sentence.of(
                "finding no_kind",
                dataset=dataset,
                kind=repr(kind),
                nearest=nearest_of(kind, STOPS),
            )
            raise InputError(said)


def place_of(samples: Sequence[Sample]) -> str:
    """Name what samples are of: their data set and, where it is one, their category."""
    categories = set(map(attrgetter("category"), samples))
    dataset = samples[0].dataset
    return f"{dataset}/{categories.pop()}" if len(categories) == 1 else dataset


def path_below(path: Path, root: Path) -> str:
    """Write a path as seen from the data set's folder."""
    return path.relative_to(root).as_posix()
