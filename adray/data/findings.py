"""What is odd about a data set: what would silently change a result, and what only loses a little.

Whatever would change a result stops a sweep, until ``settings.data.<name>.accept`` names its kind.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse, takewhile
from operator import attrgetter
from pathlib import Path, PurePosixPath

from adray.data.accounting import (
    BARE_MASK,
    MASK_ENDINGS,
    UNREAD_FOLDER,
    Accounts,
    LeftOut,
)
from adray.data.base import Sample, defect_types, defects_of, normals_of, split_of
from adray.data.file_facts import FileFacts
from adray.data.inspect_files import Inspected, inspect_pictures
from adray.data.names import is_mask_name, looks_defective, same_name
from adray.data.readers import resolve_dataset
from adray.data.splits import grouped
from adray.data.visa import MISSING_MASKS
from adray.errors import InputError, nearest
from adray.settings import Settings

Facts = Mapping[Path, FileFacts]

STOPS: Mapping[str, str] = {
    "defects_below_normals": "defects or masks lie inside the folder of the normal images",
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

_FEW_NORMALS = 10
_LEAST_TOLD = 3
"""Images of each label from which a property of their files may be said to tell the label."""
_MOST_PIXELS = 10**8
"""Of all images together, up to which they are decoded to be compared: about two seconds."""
_CHANCE = 1e-3
"""Probability below which sizes do not lie apart by chance."""
_LAYOUTS_OF_TABLES = ("json", "kaputt", "list")
_SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class Finding:
    """One thing that a user must know of a data set."""

    kind: str
    """One of `STOPS`, or another name for what only loses a little."""
    sentence: str
    """What was found and what to do."""
    stops: bool
    """Whether nothing should start."""


def examine(
    samples: Sequence[Sample],
    accounts: Mapping[str, Accounts],
    settings: Settings,
    facts: Inspected,
) -> list[Finding]:
    """Find what is odd about the images of a trial, of one data set or several.

    Args:
        samples: of the trial.
        accounts: of each of its data sets.
        settings: what the user accepts, and where facts of files are remembered.
        facts: of the files of the samples.

    Returns:
        What stops, then remarks.

    Raises:
        InputError: for a kind to accept that does not exist.
    """
    images, masks = facts
    found: list[Finding] = []
    for dataset, members in grouped(samples, lambda sample: sample.dataset).items():
        accept = settings.options_of(dataset).accept
        masks_read = _looks_for_masks(dataset, settings)
        pictures = _pictures(members, images, settings.cache_dir)
        found += find(members, accounts[dataset], images, masks, accept, masks_read, pictures)
    return sorted(found, key=lambda finding: not finding.stops)


def _looks_for_masks(dataset: str, settings: Settings) -> bool:
    """Tell whether a data set's layout looks for masks by their names.

    A table names those that it means, and a described folder may have none.
    """
    found = resolve_dataset(dataset, settings)
    if found.layout in _LAYOUTS_OF_TABLES:
        return False
    return found.folder is None or found.folder.mask is not None


def _pictures(samples: Sequence[Sample], images: Facts, cache_dir: str) -> Mapping[Path, str]:
    """Hash what is on images where decoding them all takes a moment, else what is in their files."""
    readable = [sample.path for sample in samples if images[sample.path].digest]
    pixels = sum(images[path].width * images[path].height for path in readable)
    if pixels <= _MOST_PIXELS:
        return inspect_pictures(readable, cache_dir)
    return {path: images[path].digest for path in readable}


def find(
    samples: Sequence[Sample],
    accounts: Accounts,
    images: Facts,
    masks: Facts,
    accept: Sequence[str] = (),
    masks_read: bool = True,
    pictures: Mapping[Path, str] | None = None,
) -> list[Finding]:
    """Find what is odd about the images of one data set, and about the files beside them.

    Args:
        samples: what is wanted of the data set, of one category or several.
        accounts: of the whole data set.
        images: facts of the images in `samples`.
        masks: facts of their masks.
        accept: kinds that shall not stop.
        masks_read: whether the layout looks for masks, which a described folder may not.
        pictures: what is on each image, as a hash; None for what is in its file.

    Returns:
        What stops, then remarks.

    Raises:
        InputError: for a kind to accept that does not exist.
    """
    if not samples:
        return []
    dataset = samples[0].dataset
    check_accepted(dataset, accept)
    report = _Report(dataset, accept)

    if pictures is None:
        pictures = {sample.path: images[sample.path].digest for sample in samples}
    _find_identical_pictures(report, samples, pictures)
    _find_shared_masks(report, samples)
    for category, members in grouped(samples, lambda sample: sample.category).items():
        place = f"{dataset}/{category}"
        _find_defects_among_normals(report, place, members)
        _find_folders_of_one_name(report, place, members, accounts.root)
        _find_masks_that_cover_most(report, place, members, masks)
        _find_what_tells_the_label(report, place, members, images)
        _remark_on_counts(report, place, members)

    _find_in_left_out(report, samples, accounts, masks_read)
    return sorted(report.findings, key=lambda finding: not finding.stops)


def check_accepted(dataset: str, accept: Sequence[str]) -> None:
    """Refuse kinds that do not exist.

    Raises:
        InputError: with the nearest.
    """
    for kind in accept:
        if kind not in STOPS:
            raise InputError(
                f"settings.data.{dataset}.accept: {kind!r} is no kind of finding; "
                f"{nearest(kind, STOPS)}"
            )


class _Report:
    """Gathers findings in the form in which a user reads them."""

    def __init__(self, dataset: str, accept: Sequence[str]) -> None:
        self.findings: list[Finding] = []
        self._dataset = dataset
        self._accept = accept

    def stop(self, kind: str, place: str, what: str, remedy: str) -> None:
        """Add what would silently change a result, a remark where the user has accepted it."""
        if kind in self._accept:
            self.remark(kind, place, f"{what} (accepted)")
            return
        way_on = f"settings.data.{self._dataset}.accept: [{kind}]"
        sentence = f"{place}: {what}; {remedy}, or go on with {way_on}"
        self.findings.append(Finding(kind, _printable(sentence), stops=True))

    def remark(self, kind: str, place: str, what: str) -> None:
        """Add what only loses a little."""
        self.findings.append(Finding(kind, _printable(f"{place}: {what}"), stops=False))


def _printable(text: str) -> str:
    """Replace the bytes of names that are not UTF-8, which cannot be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- pictures ----


def _find_identical_pictures(
    report: _Report, samples: Sequence[Sample], pictures: Mapping[Path, str]
) -> None:
    """Find pictures that both train and test, or that stand under two labels."""
    readable = [sample for sample in samples if pictures.get(sample.path)]
    groups = grouped(readable, lambda sample: pictures[sample.path])
    copies = [group for group in groups.values() if len(group) > 1]

    crossing = list(filter(_misleads, copies))
    if crossing:
        pair = _unlike_pair(crossing[0])
        report.stop(
            "identical_pictures",
            report_place(samples),
            f"{_count(len(crossing), 'picture')} both in {_role(pair[0])} and in {_role(pair[1])}, "
            f"such as {pair[0].key} and {pair[1].key}, which are identical",
            "remove one of each",
        )

    inside = list(filterfalse(_misleads, copies))
    if inside:
        group = inside[0]
        report.remark(
            "copies",
            report_place(samples),
            f"{_count(len(inside), 'picture')} more than once among {_role(group[0])}, "
            f"such as {group[0].key} and {group[1].key}",
        )


def _misleads(copies: Sequence[Sample]) -> bool:
    """Tell whether copies of one picture train and test, or stand under two labels."""
    splits = set(map(attrgetter("split"), copies))
    labels = set(map(attrgetter("label"), copies))
    return len(labels) > 1 or ("test" in splits and len(splits) > 1)


def report_place(samples: Sequence[Sample]) -> str:
    """Name what samples are of: their data set and, where it is one, their category."""
    categories = set(map(attrgetter("category"), samples))
    dataset = samples[0].dataset
    return f"{dataset}/{categories.pop()}" if len(categories) == 1 else dataset


def _unlike_pair(group: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Give two of a group that differ in split or label."""
    first = group[0]
    other = next(s for s in group if (s.split, s.label) != (first.split, first.label))
    return first, other


def _role(sample: Sample) -> str:
    """Say what an image is there for."""
    return f"the {'defective' if sample.label else 'normal'} {sample.split} images"


def _find_shared_masks(report: _Report, samples: Sequence[Sample]) -> None:
    """Find masks that stand for two images, unless these show the same part under other lights."""
    users: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        for path in sample.mask_paths:
            users[path].append(sample)

    shared = {path: of for path, of in users.items() if len({s.part or s.path for s in of}) > 1}
    for path, of in list(shared.items())[:1]:
        report.stop(
            "shared_mask",
            report_place(samples),
            f"{_count(len(shared), 'mask')} for two images, such as {path.name} "
            f"for {of[0].key} and {of[1].key}",
            "give each image a mask of its own name",
        )


# ---- folders ----


def _find_defects_among_normals(report: _Report, place: str, members: Sequence[Sample]) -> None:
    """Find defects and masks that are read as normal images."""
    normals = normals_of(members)
    misplaced = _in_defective_folders(members) | _masks_among(normals, members)
    found = [sample for sample in normals if sample.path in misplaced]
    if found:
        folder = PurePosixPath(found[0].key).parent
        report.stop(
            "defects_below_normals",
            place,
            f"{_count(len(found), 'image')} read as normal in {folder} by the name no normal one, "
            f"such as {found[0].key}",
            "move defects and masks out of the folder of the normals",
        )


def _in_defective_folders(members: Sequence[Sample]) -> set[Path]:
    """Find normal images in a folder of normals whose name sounds like a defect or a mask.

    Where all normals lie below such a folder, its name says nothing of them: it is the product's.
    """
    normals = normals_of(members)
    defects = defect_types(members)
    below: dict[PurePosixPath, list[Path]] = defaultdict(list)
    for sample in normals:
        for folder in PurePosixPath(sample.key).parents:
            below[folder].append(sample.path)

    found: set[Path] = set()
    for folder, paths in below.items():
        of_all = len(paths) == len(normals)
        if not of_all and looks_defective(folder.name, defects):
            found.update(paths)
    return found


def _masks_among(normals: Sequence[Sample], members: Sequence[Sample]) -> set[Path]:
    """Find masks among normal images: those of an image, and those named after one beside it."""
    of_images: set[Path] = set()
    for sample in members:
        of_images.update(sample.mask_paths)

    beside = {(sample.path.parent, sample.path.stem) for sample in normals}
    found = set()
    for sample in normals:
        stem = sample.path.stem
        for ending in MASK_ENDINGS:
            image = (sample.path.parent, stem[: -len(ending)])
            if stem.lower().endswith(ending) and image in beside:
                found.add(sample.path)
    return found | of_images


def _find_folders_of_one_name(
    report: _Report, place: str, members: Sequence[Sample], root: Path
) -> None:
    """Find folders that a person takes for the same one, and that are not read as the same."""
    beside = _twins(root, (sample.path for sample in members))
    unlike = _defects_named_as_normals(members)
    for names in [*beside, *unlike][:1]:
        report.stop(
            "names_differ_in_case",
            place,
            f"the folders {' and '.join(names)} differ in capitals or accents only",
            "rename one as the other, or to a name of its own",
        )


def _twins(root: Path, paths: Iterable[Path]) -> list[list[str]]:
    """Find names of folders in one folder that differ in capitals or accents only."""
    folders: set[Path] = set()
    for path in paths:
        inside = takewhile(lambda folder: folder != root, path.parents)
        folders.update(inside)

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

    found = []
    for name in sorted(defect_types(members)):
        if same_name(name) in normal:
            found.append([normal[same_name(name)], name])
    return found


# ---- masks ----


def _find_masks_that_cover_most(
    report: _Report, place: str, members: Sequence[Sample], masks: Facts
) -> None:
    """Find masks in which most is set: those of a defect in black on white."""
    shares = []
    for sample in members:
        for path in sample.mask_paths:
            facts = masks[path]
            if sample.label == 1 and facts.problem is None:
                shares.append(facts.covered or 0.0)

    large = [share for share in shares if share > 0.5]
    if not large:
        return
    middle = statistics.median(large)
    what = f"{len(large)} of {_count(len(shares), 'mask')} cover {middle:.0%} of their image"
    if len(large) == len(shares):
        remedy = "invert them, since what is not zero is the defect"
        report.stop("masks_cover_most", place, what, remedy)
    else:
        report.remark("masks_cover_much", place, f"{what}; look whether some are inverted")


# ---- what the files tell ----


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


def _find_what_tells_the_label(
    report: _Report, place: str, members: Sequence[Sample], images: Facts
) -> None:
    """Find a property of the files by which alone normal and defective images are told apart."""
    normal = normals_of(members)
    of_defects = _readable(defects_of(members), images)
    of_training = _readable(split_of(normal, "train", "validation"), images)
    of_test = _readable(split_of(normal, "test"), images)

    # What the test's normal images share with its defects tells no label.
    split = "test" if len(of_test) >= _LEAST_TOLD else "training"
    normals = of_test if split == "test" else of_training
    told = _telling_property(normals, of_defects)
    if told is not None:
        report.stop(
            "file_tells_label",
            place,
            f"the {told.name} of the files alone tells the label: normal {split} images have "
            f"{_common_values(told, normals)}, defective ones {_common_values(told, of_defects)}",
            "record and save all images in the same way",
        )
        return

    shifted = _telling_property(of_training, [*of_test, *of_defects])
    if shifted is not None:
        report.remark(
            "training_files_differ",
            place,
            f"training images have another {shifted.name} ({_common_values(shifted, of_training)}) "
            f"than those of the test ({_common_values(shifted, of_defects or of_test)}), "
            "which may look like a defect everywhere",
        )


def _readable(samples: Iterable[Sample], images: Facts) -> list[FileFacts]:
    """List the facts of the images that can be read."""
    found = []
    for sample in samples:
        facts = images[sample.path]
        if facts.problem is None:
            found.append(facts)
    return found


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
    return " or ".join(value for value, _ in values.most_common(2))


# ---- how many there are ----


def _remark_on_counts(report: _Report, place: str, members: Sequence[Sample]) -> None:
    """Remark on figures that the data cannot give, or only coarsely."""
    test = split_of(members, "test")
    defects = defects_of(test)
    if defects and len(defects) == len(test):
        report.remark("no_normals", place, "no normal test images: AUROC and the like read n/a")

    bare = sum(not sample.has_mask for sample in defects)
    if bare:
        what = f"{bare} of {len(defects)} defective test images have no mask"
        result = "pixel metrics leave them out" if bare < len(defects) else "no pixel metrics"
        report.remark("no_masks", place, f"{what}: {result}")

    normals = len(normals_of(split_of(members, "train")))
    if normals < _FEW_NORMALS:
        what = f"only {_count(normals, 'normal training image')}: figures are coarse"
        report.remark("few_normals", place, what)


# ---- files that are left out ----


def _find_in_left_out(
    report: _Report, samples: Sequence[Sample], accounts: Accounts, masks_read: bool
) -> None:
    """Find folders of pictures and masks that nothing is read from, and count all that is left."""
    categories = set(map(attrgetter("category"), samples))
    owners = accounts.owners
    own: list[LeftOut] = []
    shared: list[LeftOut] = []
    for item in accounts.left_out:
        of = _owners_of(item.path, owners)
        if not of.isdisjoint(categories):
            (own if of <= categories else shared).append(item)

    place = report_place(samples)
    reasons = (UNREAD_FOLDER, BARE_MASK) if masks_read else (UNREAD_FOLDER,)
    unread = Counter(item.path.parent for item in own if item.reason in reasons)
    _find_unread_folders(report, place, unread, samples, accounts.root)
    if masks_read:
        _find_masks_that_do_not_match(report, place, own, accounts)
    _count_left_out(report, place, own, accounts.root)
    _count_left_out(report, samples[0].dataset, shared, accounts.root)


def _owners_of(path: Path, owners: Mapping[Path, frozenset[str]]) -> frozenset[str]:
    """Give the categories that the nearest folder above a path belongs to."""
    nearest_one = next(filter(owners.__contains__, path.parents), None)
    return frozenset() if nearest_one is None else owners[nearest_one]


def _find_unread_folders(
    report: _Report,
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

    for folder, count in list(misplaced.items())[:1]:
        report.stop(
            "defects_below_normals",
            place,
            f"{_count(misplaced.total(), 'picture')} inside the folder of the normals are not read, "
            f"since their folder sounds like defects or masks: {count} in "
            f"{_below(folder, root)}",
            "move them to the test, or rename the folder",
        )
    for folder, count in list(passed_over.items())[:1]:
        report.stop(
            "unread_folders",
            place,
            f"{_count(passed_over.total(), 'picture')} in folders that are not read, "
            f"{count} of them in {_below(folder, root)}",
            "move them to where the layout reads them, or out of the data set",
        )


def _reading_folder(folder: Path, read: Iterable[Path], root: Path) -> Path | None:
    """Give the folder above that images are read of, or that belongs to the same split.

    None where the layout has no reason to look into a folder.
    """
    for above in folder.parents:
        if above in read:
            return above
        if above == root:
            return None
        if same_name(above.name) in _SPLIT_NAMES:
            return next((other for other in read if above in other.parents), None)
    return None


def _sounds_defective(folder: Path, reading: Path, defects: set[str]) -> bool:
    """Tell whether a folder has the name of defects or masks, from the one that is read on."""
    names = [part for part in folder.parts if part not in reading.parts]
    return any(looks_defective(name, defects) for name in names)


def _find_masks_that_do_not_match(
    report: _Report, place: str, left_out: Sequence[LeftOut], accounts: Accounts
) -> None:
    """Find folders of masks none of whose files fits an image."""
    used = {_mask_folder(path) for path in accounts.masks}
    bare: dict[Path, list[Path]] = defaultdict(list)
    for item in left_out:
        if item.reason == BARE_MASK:
            bare[_mask_folder(item.path)].append(item.path)

    for folder, paths in bare.items():
        if folder not in used:
            report.stop(
                "masks_do_not_match",
                place,
                f"none of {_count(len(paths), 'mask')} in {_below(folder, accounts.root)} fits an "
                f"image, such as {paths[0].name}",
                "name each as its image, with or without _mask, in a folder named as that of the "
                "defect",
            )


def _mask_folder(path: Path) -> Path:
    """Give the folder of masks of one kind of defect: that named as masks, or one right in it."""
    inside = None
    for folder in path.parents:
        if is_mask_name(folder.name):
            return inside or folder
        inside = folder
    return path.parent


def _count_left_out(report: _Report, place: str, left_out: Sequence[LeftOut], root: Path) -> None:
    """Count files that are left out by reason, with an example of each."""
    parts = []
    for reason, items in grouped(left_out, lambda item: item.reason).items():
        parts.append(f"{len(items)} {reason}, such as {_below(items[0].path, root)}")
    if parts:
        files = _count(len(left_out), "file")
        report.remark("left_out", place, f"{files} left out: {'; '.join(parts)}")


def _below(path: Path, root: Path) -> str:
    """Write a path as seen from the data set's folder."""
    return path.relative_to(root).as_posix()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
