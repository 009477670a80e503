"""Folders of pictures and masks that nothing is read from, and a count of all files that are left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from adray.data.accounting import BARE_MASK, UNREAD_FOLDER, Accounts, LeftOut
from adray.data.base import Sample, defect_types
from adray.data.findings import Report, found, path_below, place_of
from adray.data.findings_masks import find_masks_that_do_not_match
from adray.data.names import is_mask_name, looks_defective, same_name
from adray.data.splits import grouped
from adray.language.sentence import Term

_SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")


def find_in_left_out(
    report: Report, samples: Sequence[Sample], accounts: Accounts, masks_read: bool
) -> None:
    """Find what is wrong with the files that are left out.

    Args:
        report: gathers it.
        samples: what is wanted of the data set.
        accounts: of the whole data set.
        masks_read: whether the layout looks for masks.
    """
    categories = set(map(attrgetter("category"), samples))
    own: list[LeftOut] = []
    shared: list[LeftOut] = []
    for item in accounts.left_out:
        if not accounts.unreadable.isdisjoint(item.path.relative_to(accounts.root).parts):
            continue
        of = accounts.categories_at(item.path)
        if not of.isdisjoint(categories):
            (own if of <= categories else shared).append(item)

    place = place_of(samples)
    reasons = (UNREAD_FOLDER, BARE_MASK) if masks_read else (UNREAD_FOLDER,)
    unread = Counter(item.path.parent for item in own if item.reason in reasons)
    _find_unread_folders(report, place, unread, samples, accounts.root)
    if masks_read:
        find_masks_that_do_not_match(report, place, own, accounts)
    _count_left_out(report, place, own, accounts.root)
    _count_left_out(report, samples[0].dataset, shared, accounts.root)


def _find_unread_folders(
    report: Report,
    place: str,
    unread: Mapping[Path, int],
    samples: Sequence[Sample],
    root: Path,
) -> None:
    """Find folders with pictures, within those that are read, that are not read themselves."""
    labels: dict[Path, set[int]] = defaultdict(set)
    for sample in samples:
        labels[sample.path.parent].add(sample.label)

    defects = defect_types(samples)
    misplaced: Counter[Path] = Counter()
    passed_over: Counter[Path] = Counter()
    for folder, count in unread.items():
        reading = _reading_folder(folder, labels, root)
        if reading is None:
            continue
        if 0 in labels[reading] and _sounds_defective(folder, reading, defects):
            misplaced[folder] = count
        elif not any(is_mask_name(part) for part in folder.relative_to(root).parts):
            passed_over[folder] = count

    _stop_at(report, "defects_below_normals", place, misplaced, root)
    _stop_at(report, "unread_folders", place, passed_over, root)


def _stop_at(
    report: Report, kind: str, place: str, folders: Mapping[Path, int], root: Path
) -> None:
    """Report folders with pictures that are not read, the first by its name, if there are any."""
    if not folders:
        return
    first, count = next(iter(folders.items()))
    number = sum(folders.values())
    what = found(kind, number=number, count=count, folder=path_below(first, root))
    report.stop(kind, place, what, f"remedy {kind}")


def _reading_folder(folder: Path, read: Iterable[Path], root: Path) -> Path | None:
    """Give the folder above that images are read of, or that belongs to the same split.

    None where the layout has no reason to look into a folder.
    """
    for place in (folder, *folder.parents):
        if place != folder and place in read:
            return place
        if place == root:
            return None
        if same_name(place.name) in _SPLIT_NAMES:
            return next((other for other in read if place in other.parents), None)
    return None


def _sounds_defective(folder: Path, reading: Path, defects: set[str]) -> bool:
    """Tell whether a folder has the name of defects or masks, from the one that is read on."""
    names = [part for part in folder.parts if part not in reading.parts]
    return any(looks_defective(name, defects) for name in names)


def _count_left_out(report: Report, place: str, left_out: Sequence[LeftOut], root: Path) -> None:
    """Count files that are left out by reason, with an example of each."""
    parts = []
    for reason, items in grouped(left_out, lambda item: item.reason).items():
        example = path_below(items[0].path, root)
        parts.append(found("left_out_for", number=len(items), reason=Term(reason), example=example))
    if parts:
        what = found("left_out", number=len(left_out), parts=tuple(parts))
        report.remark("left_out", place, what)
