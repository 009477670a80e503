"""A plain folder: directories with normal images, defects and masks, named in the settings. One category.

The category bears the data set's name. A folder with the directories ``normal`` and ``abnormal`` (and ``mask``) is
read without being named.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    list_folders,
    list_images,
    list_images_below,
    masks_by_stem,
    natural_key,
    relative_key,
    require_training_normals,
)
from adray.data.splits import check_fraction, split_normals
from adray.errors import InputError, nearest
from adray.settings import FolderLayout


def detect_folder(root: Path) -> bool:
    """Whether `root` has the directories ``normal`` and ``abnormal``."""
    return (root / "normal").is_dir() and (root / "abnormal").is_dir()


def list_folder_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """The one category: the data set's name."""
    return [reading.name or root.name]


def list_folder_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """Samples of a plain folder; without `normal_test` directories the normal images are split 80/20 by seed.

    Images with the same stem or the same bytes stay on one side.

    Raises:
        InputError: for a directory that is not there, masks that cannot be told apart, or no normal images.
    """
    layout = reading.folder or default_layout(root)
    for directory in (
        *layout.normal,
        *layout.abnormal,
        *layout.normal_test,
        *filter(None, [layout.mask]),
    ):
        _check_directory(root, directory)
    blank = Sample(Path(), None, 0, "good", reading.name or root.name, category, "train")
    normals = _normal_samples(root, layout.normal, blank)
    defects = _defect_samples(root, layout, replace(blank, label=1))
    if layout.normal_test:
        tests = _normal_samples(root, layout.normal_test, replace(blank, split="test"))
        samples = normals + tests + _split_defects(defects, reading)
    else:
        unsplit = normals + defects
        groups = near_duplicates(unsplit)
        samples = split_normals(
            unsplit,
            seed=reading.seed,
            train_defects=reading.train_defects,
            group=lambda s: groups[s.path],
        )
    return require_training_normals(samples, root / layout.normal[0])


def default_layout(root: Path) -> FolderLayout:
    """The layout of a folder nobody described."""
    mask = "mask" if (root / "mask").is_dir() else None
    return FolderLayout(path=str(root), normal=("normal",), abnormal=("abnormal",), mask=mask)


def near_duplicates(samples: Sequence[Sample]) -> dict[Path, str]:
    """A group for each image: images of the same stem or the same bytes share theirs, also through a third image."""
    groups = {sample.path: sample.path.stem for sample in samples}
    merged: dict[str, str] = {}

    def root_of(stem: str) -> str:
        while stem in merged:
            stem = merged[stem]
        return stem

    for stems in _stems_by_content(list(groups)):
        first, *others = sorted({root_of(stem) for stem in stems})
        merged.update(dict.fromkeys(others, first))
    return {path: root_of(stem) for path, stem in groups.items()}


def _stems_by_content(paths: list[Path]) -> list[list[str]]:
    """Stems of files with the same bytes; only files of the same size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size if path.exists() else 0].append(path)
    by_digest: dict[bytes, list[str]] = defaultdict(list)
    for size, same in by_size.items():
        for path in same if size and len(same) > 1 else []:
            by_digest[hashlib.blake2b(path.read_bytes(), digest_size=16).digest()].append(path.stem)
    return [stems for stems in by_digest.values() if len(stems) > 1]


def _check_directory(root: Path, directory: str) -> None:
    """Refuse a directory outside the data set or that is not there.

    Raises:
        InputError: names the directory and the nearest that is there.
    """
    if Path(directory).is_absolute() or ".." in Path(directory).parts:
        raise InputError(
            f"folders: {directory!r} must lie inside {root}; give it relative to the data set's path"
        )
    if not (root / directory).is_dir():
        present = [relative_key(root, p) for f in list_folders(root) for p in [f, *list_folders(f)]]
        raise InputError(
            f"folders: {root / directory} does not exist; {nearest(directory, present)}"
        )


def _normal_samples(root: Path, directories: Sequence[str], blank: Sample) -> list[Sample]:
    """Normal images of the directories and all below them."""
    paths = [path for directory in directories for path in list_images_below(root / directory)]
    return [replace(blank, path=path, relative_path=relative_key(root, path)) for path in paths]


def _defect_samples(root: Path, layout: FolderLayout, blank: Sample) -> list[Sample]:
    """Defective images with their masks; a directory of directories has one defect type in each."""
    folders = []
    for directory in layout.abnormal:
        top = root / directory
        folders += [folder for folder in [top, *list_folders(top)] if list_images(folder)]
    counts = Counter(path.stem for folder in folders for path in list_images(folder))
    samples = []
    for folder in folders:
        masks = _masks_for(root, layout.mask, folder, counts) if layout.mask else {}
        samples += [
            replace(
                blank,
                path=path,
                mask_path=masks.get(path.stem),
                defect_type=folder.name,
                relative_path=relative_key(root, path),
            )
            for path in list_images(folder)
        ]
    return sorted(samples, key=lambda sample: natural_key(sample.relative_path))


def _masks_for(root: Path, mask: str, folder: Path, counts: Counter[str]) -> dict[str, Path]:
    """Masks by stem for the images of one defect folder.

    Raises:
        InputError: where one mask in a flat directory would serve two images.
    """
    own = masks_by_stem(root / mask / folder.name)
    if own:
        return own
    masks = masks_by_stem(root / mask)
    for path in list_images(folder):
        if counts[path.stem] > 1 and path.stem in masks:
            raise InputError(
                f"{masks[path.stem]}: {counts[path.stem]} defective images are named {path.stem!r}, so the mask cannot "
                f"be matched; put the masks into one sub-directory per defect type, such as {root / mask / folder.name}"
            )
    return masks


def _split_defects(defects: list[Sample], reading: Reading) -> list[Sample]:
    """Defects for the test, a fraction for the training where asked; the normal images are split already."""
    check_fraction("train_defects", reading.train_defects)
    groups = near_duplicates(defects)
    return split_normals(
        defects,
        seed=reading.seed,
        train_defects=reading.train_defects,
        group=lambda s: groups[s.path],
    )
