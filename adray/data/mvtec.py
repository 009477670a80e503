"""Folders of training and test images with masks beside: the shape of MVTec AD.

``<category>/train/good``, ``test/<good or defect>``, ``ground_truth/<defect>``: Bergmann et al.,
CVPR 2019. So are its followers: MVTec LOCO with a folder of masks per image and normal images in
``validation``, MVTec AD 2 with ``test_public``, BTAD with ``ok``, BMAD with ``img`` and ``label`` in
each folder, AeBAD-S with a folder per kind of recording, MANTA with categories in folders. Any data
set of this shape is read, whatever its name. A data set may be a single category.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_child,
    group_of,
    list_folders,
    list_folders_below,
    list_images,
    list_images_below,
    list_metadata,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.mask_files import NO_MASKS, MaskFolder, read_mask_folder
from adray.data.names import (
    MASK_WORDS,
    is_mask_name,
    is_normal_name,
    looks_defective,
    natural_key,
    same_name,
)

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "test_public": "test",
}
"""Names of folders, in lower case, to the split that they hold."""

_OK = frozenset({"ok"})


def detect_mvtec(root: Path) -> bool:
    """Tell whether `root` or a folder in it has a ``train/good``, or another word for good than ok."""
    return not _normal_names(root) <= _OK


def detect_btad(root: Path) -> bool:
    """Tell whether the folders of training normals in `root` are all called ``ok``."""
    return _normal_names(root) == _OK


def detect_nested(root: Path) -> bool:
    """Tell whether folders in the folders of `root` have a ``train/good``, as MANTA has."""
    return any(any(map(_normal_names, domains)) for domains in _levels(root))


def list_mvtec_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that hold a ``train`` or a ``test``, or `root` itself."""
    return sorted(_homes(root, reading), key=natural_key)


def list_mvtec_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, the training images first.

    Raises:
        InputError: where the folder of training normals has no images.
    """
    home = _homes(root, reading).get(category, root / category)
    defects = _defect_names(home)

    samples: list[Sample] = []
    for folder, split in _split_folders(home):
        blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, split)
        shape = _Split(root, folder, blank, defects, _mask_folders(home, folder))
        samples += shape.list_samples()

    return require_training_normals(regroup(samples, reading), _expected_normals(home))


def list_mvtec_metadata(root: Path, category: str) -> list[Path]:
    """List the files that describe the images, and MVTec AD 2's images without published labels.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    found = list_metadata(root, category)
    home = _homes(root, DEFAULT_READING).get(category, root)
    for folder in list_folders(home):
        if same_name(folder.name).startswith("test_private"):
            found += list_images_below(folder)
    return found


@dataclass(frozen=True)
class _Split:
    """One of the folders ``train``, ``validation`` and ``test`` of a category."""

    root: Path
    """Folder of the data set."""
    folder: Path
    """This folder."""
    blank: Sample
    """What all its normal samples share."""
    defects: frozenset[str]
    """Names of the folders of defects of the category."""
    masks: tuple[MaskFolder, ...]
    """Where its masks may lie, the likeliest first."""

    def list_samples(self) -> list[Sample]:
        """List the images of all kinds."""
        samples = []
        for kind in list_folders(self.folder):
            if is_normal_name(kind.name):
                samples += self._list_normals(kind)
            elif self._holds_defects(kind):
                samples += self._list_defects(kind)
        return samples

    def _holds_defects(self, kind: Path) -> bool:
        """Tell whether a folder holds defects.

        In a test all do but those of masks. Beside training normals there may be anything, so it
        takes a name that says so.
        """
        if is_mask_name(kind.name):
            return False
        return self.blank.split == "test" or looks_defective(kind.name, self.defects)

    def _list_normals(self, kind: Path) -> list[Sample]:
        """List the normal images of a folder and of those in it that do not sound like defects."""

        def sounds_bad(place: Path) -> bool:
            return looks_defective(place.name, self.defects)

        samples = []
        for place in list_folders_below(kind, leave_out=sounds_bad):
            group = group_of(kind, place)
            for path in list_images(place):
                key = relative_key(self.root, path)
                samples.append(replace(self.blank, path=path, relative_path=key, group=group))
        return samples

    def _list_defects(self, kind: Path) -> list[Sample]:
        """List the images of one kind of defect with their masks."""

        def holds_none(place: Path) -> bool:
            return is_mask_name(place.name) or is_normal_name(place.name)

        beside = _masks_in(kind)
        samples = []
        for place in list_folders_below(kind, leave_out=holds_none):
            group = group_of(kind, place)
            for path in list_images(place):
                sample = replace(
                    self.blank,
                    path=path,
                    mask_paths=self._masks_of(kind, group, path.stem)
                    or beside.find(group, path.stem),
                    label=1,
                    defect_type=kind.name,
                    relative_path=relative_key(self.root, path),
                    group=group,
                )
                samples.append(sample)
        return samples

    def _masks_of(self, kind: Path, group: str, stem: str) -> tuple[Path, ...]:
        """Find the masks of an image of a kind of defect."""
        place = f"{kind.name}/{group}".rstrip("/")
        found = (masks.find(place, stem) for masks in self.masks)
        return next(filter(None, found), ())


def _normal_names(root: Path) -> set[str]:
    """Collect the names of the folders of training normals in `root` and in its folders."""
    names = set()
    for home in (root, *list_folders(root)):
        names |= {same_name(folder.name) for folder in _training_normals(home)}
    return names


def _homes(root: Path, reading: Reading) -> dict[str, Path]:
    """Find the folder of each category: `root` itself, those in it, or those in its folders."""
    if _has_training_normals(root):
        return {reading.name_for(root): root}

    homes = {folder.name: folder for folder in list_folders(root) if _is_home(folder)}
    if homes:
        return homes

    for level in _levels(root):
        for domain in level:
            for folder in filter(_is_home, list_folders(domain)):
                # Two may have one name in different folders.
                name = folder.name if folder.name not in homes else f"{domain.name}-{folder.name}"
                homes[name] = folder
        if homes:
            break
    return homes


def _levels(root: Path) -> Iterator[list[Path]]:
    """Yield the folders in `root` that may hold categories, then those in them."""
    domains = list_folders(root)
    yield domains
    inner: list[Path] = []
    for domain in domains:
        inner += list_folders(domain)
    yield inner


def _is_home(folder: Path) -> bool:
    """Tell whether a folder holds training or test images."""
    splits = {SPLIT_FOLDERS.get(same_name(child.name)) for child in list_folders(folder)}
    return not splits.isdisjoint(("train", "test"))


def _split_folders(home: Path) -> list[tuple[Path, str]]:
    """List the folders that hold images of a split, with its name, in the order of the splits."""
    found = []
    for folder in list_folders(home):
        split = SPLIT_FOLDERS.get(same_name(folder.name))
        if split:
            found.append((folder, split))
    order = list(SPLIT_FOLDERS.values())
    return sorted(found, key=lambda item: order.index(item[1]))


def _training_normals(home: Path) -> Iterator[Path]:
    """Find the folders of normal training images of a category."""
    train = find_child(home, {"train", "training"})
    if train is not None:
        yield from (folder for folder in list_folders(train) if is_normal_name(folder.name))


def _expected_normals(home: Path) -> Path:
    """Give the folder where normal training images should lie, called as that of the tests."""
    for folder, _ in _split_folders(home):
        for kind in list_folders(folder):
            if is_normal_name(kind.name):
                return home / "train" / kind.name
    return home / "train" / "good"


def _has_training_normals(home: Path) -> bool:
    """Tell whether a folder is a category with normal training images."""
    return next(_training_normals(home), None) is not None


def _defect_names(home: Path) -> frozenset[str]:
    """Collect the names of the folders of defects in the tests of a category."""
    names = set()
    for folder, split in _split_folders(home):
        if split == "test":
            names |= {same_name(kind.name) for kind in list_folders(folder)}
    return frozenset(name for name in names if not is_normal_name(name))


def _mask_folders(home: Path, split: Path) -> tuple[MaskFolder, ...]:
    """Read the folders of masks that belong to a split: its own, then that of the category."""
    found = []
    for place in (split, home):
        for folder in list_folders(place):
            if same_name(folder.name) in MASK_WORDS:
                found.append(read_mask_folder(folder))
    return tuple(found)


def _masks_in(kind: Path) -> MaskFolder:
    """Read the folder of masks that lies among the images of a defect, as in BMAD."""
    folder = find_child(kind, MASK_WORDS)
    return NO_MASKS if folder is None else read_mask_folder(folder)
