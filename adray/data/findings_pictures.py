"""Pictures that stand where they should not: twice, under two labels, or among the normal ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from operator import attrgetter
from pathlib import Path, PurePosixPath

from adray.data.accounting import BARE_MASK, MASK_ENDINGS, UNREAD_FOLDER, Accounts
from adray.data.base import Sample, defect_types, defects_of, normals_of, split_of
from adray.data.findings import Report, found, place_of
from adray.data.names import looks_defective, same_name, sounds_normal
from adray.data.splits import grouped
from adray.language.sentence import Term

_FEW_NORMALS = 10


def find_identical_pictures(
    report: Report, samples: Sequence[Sample], pictures: Mapping[Path, str]
) -> None:
    """Find pictures that both train and test, or that stand under two labels."""
    readable = [sample for sample in samples if pictures.get(sample.path)]
    groups = grouped(readable, lambda sample: pictures[sample.path])
    copies = [group for group in groups.values() if len(group) > 1]

    crossing = list(filter(_misleads, copies))
    if crossing:
        first, second = _unlike_pair(crossing[0])
        what = found(
            "identical_pictures",
            number=len(crossing),
            one=_role(first),
            other=_role(second),
            first=first.key,
            second=second.key,
        )
        report.stop("identical_pictures", place_of(samples), what, "remedy identical_pictures")

    inside = list(filterfalse(_misleads, copies))
    if inside:
        first, second, *_ = inside[0]
        what = found(
            "copies",
            number=len(inside),
            role=_role(first),
            first=first.key,
            second=second.key,
        )
        report.remark("copies", place_of(samples), what)


def _misleads(copies: Sequence[Sample]) -> bool:
    """Tell whether copies of one picture train and test, or stand under two labels."""
    splits = set(map(attrgetter("split"), copies))
    labels = set(map(attrgetter("label"), copies))
    return len(labels) > 1 or ("test" in splits and len(splits) > 1)


def _unlike_pair(group: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Give two of a group that differ in split or label."""
    first = group[0]
    other = next(s for s in group if (s.split, s.label) != (first.split, first.label))
    return first, other


def _role(sample: Sample) -> Term:
    """Say what an image is there for."""
    return Term(f"the {'defective' if sample.label else 'normal'} {sample.split} images")


def find_defects_among_normals(report: Report, place: str, members: Sequence[Sample]) -> None:
    """Find defects and masks that are read as normal images."""
    normals = normals_of(members)
    misplaced = _in_defective_folders(normals, defect_types(members))
    misplaced |= _called_as_defects(normals)
    misplaced |= _masks_among(normals, members)
    listed = [sample for sample in normals if sample.path in misplaced]
    if listed:
        first = listed[0].key
        folder = str(PurePosixPath(first).parent)
        what = found("defects_read_as_normal", number=len(listed), folder=folder, first=first)
        report.stop("defects_below_normals", place, what, "remedy defects_read_as_normal")


def find_normals_among_defects(report: Report, place: str, members: Sequence[Sample]) -> None:
    """Find images that count as defects, although their folder sounds like normal ones."""
    by_kind = grouped(defects_of(members), lambda sample: sample.defect_type)
    for kind, samples in by_kind.items():
        if sounds_normal(kind):
            what = found(
                "normals_below_defects", number=len(samples), kind=kind, first=samples[0].key
            )
            report.stop("normals_below_defects", place, what, "remedy normals_below_defects")


def _in_defective_folders(normals: Sequence[Sample], defects: set[str]) -> set[Path]:
    """Find normal images in a folder of normals whose name sounds like a defect or a mask.

    Where all normals lie below such a folder, its name says nothing of them: it is the product's.
    """
    by_folder = grouped(normals, lambda sample: sample.key.rpartition("/")[0])
    below: dict[PurePosixPath, list[str]] = defaultdict(list)
    for folder in by_folder:
        for above in (PurePosixPath(folder), *PurePosixPath(folder).parents):
            below[above].append(folder)

    misplaced: set[Path] = set()
    for above, folders in below.items():
        of_all = len(folders) == len(by_folder)
        if not of_all and looks_defective(above.name, defects):
            for folder in folders:
                misplaced.update(map(attrgetter("path"), by_folder[folder]))
    return misplaced


def _called_as_defects(normals: Sequence[Sample]) -> set[Path]:
    """Find normal images whose own names sound like defects, such as ``NG_003.png``.

    Where most are called so, the word is the product's.
    """
    by_words = grouped(normals, lambda sample: re.sub(r"\d+", "0", sample.path.stem))
    alike: list[Sample] = []
    for words, samples in by_words.items():
        if looks_defective(words):
            alike += samples
    return set(map(attrgetter("path"), alike)) if 2 * len(alike) <= len(normals) else set()


def _masks_among(normals: Sequence[Sample], members: Sequence[Sample]) -> set[Path]:
    """Find masks among normal images: those of an image, and those named after one beside it."""
    masks: set[Path] = set()
    for sample in members:
        masks.update(sample.mask_paths)

    alike = [sample for sample in normals if _sounds_like_mask(sample)]
    if not alike:
        return masks
    beside = {(sample.path.parent, sample.path.stem) for sample in normals}
    for sample in alike:
        stem = sample.path.stem
        for ending in MASK_ENDINGS:
            image = (sample.path.parent, stem[: -len(ending)])
            if stem.lower().endswith(ending) and image in beside:
                masks.add(sample.path)
    return masks


def _sounds_like_mask(sample: Sample) -> bool:
    """Tell whether a file is called as a mask that lies beside its image."""
    return sample.key.rpartition(".")[0].lower().endswith(MASK_ENDINGS)


def find_folders_of_one_name(
    report: Report, place: str, members: Sequence[Sample], accounts: Accounts
) -> None:
    """Find folders that a person takes for the same one, and that are not read as the same.

    Args:
        report: gathers it.
        place: data set and category.
        members: images of the category.
        accounts: of the whole data set, since a folder of which nothing is read counts too.
    """
    paths: list[Path] = []
    for sample in members:
        paths += (sample.path, *sample.mask_paths)
    for item in accounts.left_out:
        is_picture = item.reason in (BARE_MASK, UNREAD_FOLDER)
        if is_picture and members[0].category in accounts.categories_at(item.path):
            paths.append(item.path)

    beside = _spelled_alike(accounts.root, paths)
    unlike = _defects_named_as_normals(members)
    for names in [*beside, *unlike][:1]:
        what = found("names_differ_in_case", names=", ".join(names))
        report.stop("names_differ_in_case", place, what, "remedy names_differ_in_case")


def find_categories_of_one_name(
    report: Report, wanted: Sequence[Sample], everything: Sequence[Sample]
) -> None:
    """Find categories that differ in capitals or accents only, of which one is wanted.

    Args:
        report: gathers it.
        wanted: images of the data set that are asked for.
        everything: all its images.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for sample in everything:
        spellings[same_name(sample.category)].add(sample.category)

    for name in sorted({same_name(sample.category) for sample in wanted}):
        alike = sorted(spellings[name])
        if len(alike) > 1:
            what = found("names_differ_in_case", names=", ".join(alike))
            dataset = wanted[0].dataset
            report.stop("names_differ_in_case", dataset, what, "remedy names_differ_in_case")


def _spelled_alike(root: Path, paths: Iterable[Path]) -> list[list[str]]:
    """Find names of folders in one folder that differ in capitals or accents only."""
    folders: set[Path] = set()
    for path in paths:
        folder = path.parent
        # Whoever has met a folder has met all above it.
        while folder != root and folder not in folders and folder != folder.parent:
            folders.add(folder)
            folder = folder.parent

    spellings: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for folder in sorted(folders):
        spellings[folder.parent, same_name(folder.name)].append(folder.name)
    return [names for names in spellings.values() if len(names) > 1]


def _defects_named_as_normals(members: Sequence[Sample]) -> list[list[str]]:
    """Find types of defects that are called as a folder of normal images, in another spelling."""
    normal: dict[str, str] = {}
    for sample in normals_of(members):
        folder = sample.path.parent.name
        normal[same_name(folder)] = folder

    alike = []
    for name in sorted(defect_types(members)):
        if same_name(name) in normal:
            alike.append([normal[same_name(name)], name])
    return alike


def remark_on_counts(report: Report, place: str, members: Sequence[Sample]) -> None:
    """Remark on figures that the data cannot give, or only coarsely."""
    test = split_of(members, "test")
    defects = defects_of(test)
    if defects and len(defects) == len(test):
        report.remark("no_normals", place, found("no_normals"))

    bare = sum(not sample.has_mask for sample in defects)
    if bare:
        key = "no_masks" if bare == len(defects) else "some_masks"
        report.remark("no_masks", place, found(key, bare=bare, defects=len(defects)))

    normals = len(normals_of(split_of(members, "train")))
    if normals < _FEW_NORMALS:
        report.remark("few_normals", place, found("few_normals", number=normals))
