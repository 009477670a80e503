"""A plain folder: directories with normal images, defects and masks, named in the settings.

It has one category. The category bears the data set's name. A folder with the directories
``normal`` and ``abnormal`` (and ``mask``) is read without being named.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_folder,
    group_of,
    list_folders,
    list_folders_below,
    list_images,
    regroup,
    relative_key,
    require_training_normals,
    sounds_bad,
)
from adray.data.inspect_files import inspect_files, read_facts
from adray.data.mask_files import read_mask_folder
from adray.data.names import is_mask_name, is_normal_name, looks_defective, natural_key
from adray.data.splits import split_normals
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of
from adray.settings import FolderLayout


def detect_folder(root: Path) -> bool:
    """Tell whether `root` has a folder of normal images, called so in one of a few words."""
    return any(is_normal_name(folder.name) for folder in list_folders(root))


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
    layout = _as_on_disk(root, reading.folder or _default_layout(root))
    if not layout.normal:
        raise InputError(Sentence.of("folders no_normal", name=reading.name_for(root)))

    blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, "train")
    normals = _normal_samples(root, layout, layout.normal, blank)
    tests = _normal_samples(root, layout, layout.normal_test, replace(blank, split="test"))
    defects = _defect_samples(root, layout, replace(blank, label=1))

    if layout.normal_test:
        samples = regroup(normals + tests, reading) + _split(regroup(defects, reading), reading)
    else:
        samples = _split(regroup(normals + defects, reading), reading)
    return require_training_normals(samples, root / layout.normal[0])


def _default_layout(root: Path) -> FolderLayout:
    """Give the layout of a folder that nobody described, by the names of its directories."""
    names = [folder.name for folder in list_folders(root)]
    masks = [name for name in names if is_mask_name(name)]
    return FolderLayout(
        path=str(root),
        normal=tuple(filter(is_normal_name, names)) or ("normal",),
        abnormal=tuple(n for n in names if looks_defective(n) and not is_mask_name(n)),
        mask=masks[0] if masks else None,
    )


def _split(samples: list[Sample], reading: Reading) -> list[Sample]:
    """Split by seed, near-duplicates on one side."""
    groups = near_duplicates(samples, reading.cache_dir)
    return split_normals(
        samples,
        seed=reading.seed,
        train_defects=reading.train_defects,
        group=lambda sample: groups[sample.path],
    )


def near_duplicates(samples: Sequence[Sample], cache_dir: Path | None = None) -> dict[Path, str]:
    """Give each image the name of its group.

    Images of the same bytes share theirs, also through a third image, and so do those of the same
    `Sample.group`, or of the same stem where they have none.
    """
    # A group is named by the first of its names. What was joined points to one that comes before.
    joined: dict[str, str] = {}

    def first_of(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    names = {sample.path: _group_name(sample) for sample in samples}
    for paths in _same_contents(names, cache_dir):
        first, *others = sorted({first_of(names[path]) for path in paths})
        joined.update(dict.fromkeys(others, first))
    return {path: first_of(name) for path, name in names.items()}


def _group_name(sample: Sample) -> str:
    """Name the group of an image before contents are compared."""
    # No file is called so, since a slash is in it.
    return f"/{sample.group}" if sample.group else sample.path.stem


def _same_contents(paths: Iterable[Path], cache_dir: Path | None) -> list[list[Path]]:
    """List the files that have the same bytes, those of one content together.

    Args:
        paths: of the files.
        cache_dir: holds what is known of files already; None where nothing is remembered.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_size[_size(path)].append(path)

    # Only files that share their size are read; empty ones are damaged, not alike.
    alike = [same for size, same in by_size.items() if size and len(same) > 1]
    by_digest: dict[str, list[Path]] = defaultdict(list)
    for path, digest in _digests(list(chain.from_iterable(alike)), cache_dir).items():
        if digest:
            by_digest[digest].append(path)
    return [paths for paths in by_digest.values() if len(paths) > 1]


def _digests(paths: Sequence[Path], cache_dir: Path | None) -> dict[Path, str]:
    """Hash files, those that are known already from the memo. Empty for one that cannot be read."""
    if cache_dir is None:
        return {path: read_facts(path).digest for path in paths}
    return {path: facts.digest for path, facts in inspect_files(paths, cache_dir).items()}


def _size(path: Path) -> int:
    """Give the bytes of a file, 0 for one that is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _as_on_disk(root: Path, layout: FolderLayout) -> FolderLayout:
    """Write the directories of a layout as the disk spells their accents.

    Raises:
        InputError: for a directory outside the data set or that is not there.
    """

    def spell(directories: Sequence[str]) -> tuple[str, ...]:
        return tuple(_spell(root, directory) for directory in directories)

    return replace(
        layout,
        normal=spell(layout.normal),
        abnormal=spell(layout.abnormal),
        normal_test=spell(layout.normal_test),
        mask=_spell(root, layout.mask) if layout.mask else None,
    )


def _spell(root: Path, directory: str) -> str:
    """Write a directory as the disk spells it.

    Raises:
        InputError: for one outside the data set or that is not there, with the nearest that is.
    """
    if Path(directory).is_absolute() or ".." in Path(directory).parts:
        said = Sentence.of("folders outside", value=repr(directory), root=str(root))
        raise InputError(said)
    found = find_folder(root, directory)
    if found is not None:
        return found.relative_to(root).as_posix()

    # A described directory may be one in another, such as ng/dent.
    present = []
    for folder in list_folders(root):
        for path in (folder, *list_folders(folder)):
            present.append(relative_key(root, path))
    said = Sentence.of(
        "folders missing", folder=str(root / directory), nearest=nearest_of(directory, present)
    )
    raise InputError(said)


def _normal_samples(
    root: Path, layout: FolderLayout, directories: Sequence[str], blank: Sample
) -> list[Sample]:
    """List the normal images of the directories and all below them.

    Directories that the layout names for something else, or that sound like defects, are left out.
    """
    named = _all_directories(root, layout)

    def is_other(folder: Path) -> bool:
        return os.path.realpath(folder) in named or sounds_bad(folder)

    samples = {}
    for directory in directories:
        for place in list_folders_below(root / directory, leave_out=is_other):
            group = group_of(root / directory, place)
            for path in list_images(place):
                key = relative_key(root, path)
                samples[path] = replace(blank, path=path, relative_path=key, group=group)
    return list(samples.values())


def _all_directories(root: Path, layout: FolderLayout) -> set[str]:
    """Give the real paths of the directories that a layout names."""
    named = [*layout.normal, *layout.normal_test, *layout.abnormal]
    if layout.mask:
        named.append(layout.mask)
    return {os.path.realpath(root / directory) for directory in named}


def _defect_samples(root: Path, layout: FolderLayout, blank: Sample) -> list[Sample]:
    """List the defective images with their masks, each once."""
    named = _all_directories(root, layout)

    def is_other(folder: Path) -> bool:
        other_word = is_mask_name(folder.name) or is_normal_name(folder.name)
        return other_word or os.path.realpath(folder) in named

    samples = {}
    for directory in layout.abnormal:
        home = root / directory
        for place in list_folders_below(home, leave_out=is_other):
            for path in list_images(place):
                kind = _kind_folder(home, place)
                sample = replace(
                    blank,
                    path=path,
                    defect_type=kind.name,
                    relative_path=relative_key(root, path),
                    group=group_of(kind, place),
                )
                samples[path] = sample

    found = list(samples.values())
    if layout.mask:
        found = _with_masks(found, root, layout)
    return sorted(found, key=lambda sample: natural_key(sample.relative_path))


def _kind_folder(home: Path, place: Path) -> Path:
    """Give the folder whose name is the defect type of the images in `place`.

    A directory of directories has one defect type in each, with all below it.
    """
    inner = place.relative_to(home).parts
    return home / inner[0] if inner else home


def _with_masks(samples: list[Sample], root: Path, layout: FolderLayout) -> list[Sample]:
    """Give the defective images their masks.

    Raises:
        InputError: where one mask in a flat directory would serve two images.
    """
    assert layout.mask, "without masks there is nothing to look for"
    masks = read_mask_folder(root / layout.mask)
    users: dict[Path, list[Sample]] = defaultdict(list)
    found = []
    for sample in samples:
        place = f"{sample.defect_type}/{sample.group}".rstrip("/")
        paths = masks.find(place, sample.path.stem)
        found.append(replace(sample, mask_paths=paths))
        for path in paths:
            users[path].append(sample)

    for path, shared in users.items():
        if len(shared) > 1:
            better = root / layout.mask / shared[0].defect_type
            said = Sentence.of(
                "reader masks_not_told_apart",
                mask=str(path),
                number=len(shared),
                stem=shared[0].path.stem,
                folder=str(better),
            )
            raise InputError(said)
    return found
