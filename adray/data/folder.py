"""A plain folder: directories with normal images, defects and masks, named in the settings.

It has one category. The category bears the data set's name. A folder with the directories
``normal`` and ``abnormal`` (and ``mask``) is read without being named.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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
from adray.data.splits import split_normals
from adray.errors import InputError, nearest
from adray.settings import FolderLayout


def detect_folder(root: Path) -> bool:
    """Tell whether `root` has the directories ``normal`` and ``abnormal``."""
    return (root / "normal").is_dir() and (root / "abnormal").is_dir()


def list_folder_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """Give the one category, which bears the data set's name."""
    return [reading.name_for(root)]


def list_folder_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of a plain folder.

    Without `normal_test` directories the normal images are split 80/20 by seed. Images with the
    same stem or the same bytes stay on one side.

    Raises:
        InputError: for a directory that is not there, masks that cannot be told apart, or no normal
            images.
    """
    layout = reading.folder or _default_layout(root)
    for directory in (*layout.normal, *layout.abnormal, *layout.normal_test):
        _check_directory(root, directory)
    if layout.mask:
        _check_directory(root, layout.mask)

    blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, "train")
    normals = _normal_samples(root, layout.normal, blank)
    defects = _defect_samples(root, layout, replace(blank, label=1))
    if layout.normal_test:
        tests = _normal_samples(root, layout.normal_test, replace(blank, split="test"))
        samples = normals + tests + _split(defects, reading)
    else:
        samples = _split(normals + defects, reading)
    return require_training_normals(samples, root / layout.normal[0])


def _default_layout(root: Path) -> FolderLayout:
    """Give the layout of a folder that nobody described."""
    mask = "mask" if (root / "mask").is_dir() else None
    return FolderLayout(path=str(root), normal=("normal",), abnormal=("abnormal",), mask=mask)


def _split(samples: list[Sample], reading: Reading) -> list[Sample]:
    """Split by seed, near-duplicates on one side."""
    groups = near_duplicates(samples)
    return split_normals(
        samples,
        seed=reading.seed,
        train_defects=reading.train_defects,
        group=lambda sample: groups[sample.path],
    )


def near_duplicates(samples: Sequence[Sample]) -> dict[Path, str]:
    """Give each image the name of its group.

    Images of the same stem or the same bytes share theirs, also through a third image.
    """
    # A group is named by the first of its stems. What was joined points to one that comes before.
    joined: dict[str, str] = {}

    def group_of(stem: str) -> str:
        while stem in joined:
            stem = joined[stem]
        return stem

    paths = [sample.path for sample in samples]
    for stems in _stems_by_content(paths):
        first, *others = sorted(set(map(group_of, stems)))
        joined.update(dict.fromkeys(others, first))
    return {path: group_of(path.stem) for path in paths}


def _stems_by_content(paths: Iterable[Path]) -> list[list[str]]:
    """List the stems of files that have the same bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        size = path.stat().st_size if path.exists() else 0
        by_size[size].append(path)

    # Only files that share their size are read; empty ones are damaged, not alike.
    by_digest: dict[bytes, list[str]] = defaultdict(list)
    for size, same in by_size.items():
        if size == 0 or len(same) == 1:
            continue
        for path in same:
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
            by_digest[digest].append(path.stem)
    return [stems for stems in by_digest.values() if len(stems) > 1]


def _check_directory(root: Path, directory: str) -> None:
    """Refuse a directory outside the data set or that is not there.

    Raises:
        InputError: names the directory and the nearest that is there.
    """
    if Path(directory).is_absolute() or ".." in Path(directory).parts:
        raise InputError(
            f"folders: {directory!r} must lie inside {root}; "
            "give it relative to the data set's path"
        )
    if (root / directory).is_dir():
        return

    # A described directory may be one in another, such as ng/dent.
    present = []
    for folder in list_folders(root):
        for path in (folder, *list_folders(folder)):
            present.append(relative_key(root, path))
    raise InputError(f"folders: {root / directory} does not exist; {nearest(directory, present)}")


def _normal_samples(root: Path, directories: Sequence[str], blank: Sample) -> list[Sample]:
    """List the normal images of the directories and all below them."""
    samples = []
    for directory in directories:
        for path in list_images_below(root / directory):
            samples.append(replace(blank, path=path, relative_path=relative_key(root, path)))
    return samples


def _defect_samples(root: Path, layout: FolderLayout, blank: Sample) -> list[Sample]:
    """List the defective images with their masks.

    A directory of directories has one defect type in each.
    """
    folders = []
    for directory in layout.abnormal:
        folders += [root / directory, *list_folders(root / directory)]

    # A flat directory of masks serves all of these folders, so a stem must be there only once.
    stems: Counter[str] = Counter()
    for folder in folders:
        stems.update(path.stem for path in list_images(folder))

    samples = []
    for folder in folders:
        masks = _masks_for(root, layout.mask, folder, stems) if layout.mask else {}
        for path in list_images(folder):
            sample = replace(
                blank,
                path=path,
                mask_paths=masks.get(path.stem, ()),
                defect_type=folder.name,
                relative_path=relative_key(root, path),
            )
            samples.append(sample)
    return sorted(samples, key=lambda sample: natural_key(sample.relative_path))


def _masks_for(
    root: Path, mask: str, folder: Path, stems: Counter[str]
) -> dict[str, tuple[Path, ...]]:
    """Find the masks by stem for the images of one defect folder.

    Args:
        root: folder of the data set.
        mask: directory of the masks in it.
        folder: the defect folder.
        stems: how many defective images of the data set bear each stem.

    Raises:
        InputError: where one mask in a flat directory would serve two images.
    """
    own = masks_by_stem(root / mask / folder.name)
    if own:
        return own

    masks = masks_by_stem(root / mask)
    for path in list_images(folder):
        if stems[path.stem] > 1 and path.stem in masks:
            raise InputError(
                f"{masks[path.stem][0]}: {stems[path.stem]} defective images are named {path.stem!r}, "
                "so the mask cannot be matched; put the masks into one sub-directory per defect "
                f"type, such as {root / mask / folder.name}"
            )
    return masks
