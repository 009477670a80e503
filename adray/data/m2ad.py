"""M2AD: objects from twelve sides under ten lights.

``<category>/{Good,NG}/<object>/V000_L00.png``: the name's second to fourth letter is the view, the
seventh and eighth the light. One mask serves all lights of a view: ``<category>/GT/<object>/V000_mask.png``.
Of the good objects 60 % train, chosen by seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_child,
    list_folders,
    list_images,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.mask_files import NO_MASKS, MaskFolder, read_mask_folder
from adray.data.splits import split_normals

_NAME = re.compile(r".(?P<view>\d{3})..(?P<light>\d{2})")
_LIGHT_ENDING = 4
"""Letters of the stem that say the light: a mask's name goes without them."""
_TEST_FRACTION = 0.4


def detect_m2ad(root: Path) -> bool:
    """Tell whether a folder in `root` has objects in ``Good`` whose files name view and light."""
    return any(_is_category(folder) for folder in list_folders(root))


def list_m2ad_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are categories."""
    return [folder.name for folder in list_folders(root) if _is_category(folder)]


def list_m2ad_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, all images of an object on one side of the split.

    Raises:
        InputError: where no normal image trains.
    """
    home = root / category
    ground_truth = find_child(home, {"gt"})
    masks = NO_MASKS if ground_truth is None else read_mask_folder(ground_truth)

    samples = []
    for kind in ("good", "ng"):
        for folder in _object_folders(home, kind):
            for path in list_images(folder):
                found = () if kind == "good" else _masks_of(path, masks)
                match = _NAME.match(path.stem)
                columns = () if match is None else tuple(match.groupdict().items())
                sample = Sample(
                    path=path,
                    mask_paths=found,
                    label=int(kind == "ng"),
                    defect_type="good" if kind == "good" else "NG",
                    dataset=reading.name_for(root),
                    category=category,
                    split="test",
                    relative_path=relative_key(root, path),
                    group=f"{kind}/{folder.name}",
                    part=f"{kind}/{folder.name}",
                    columns=columns,
                )
                samples.append(sample)

    split = split_normals(
        regroup(samples, reading),
        _TEST_FRACTION,
        reading.seed,
        train_defects=reading.train_defects,
    )
    return require_training_normals(split, home / "Good")


def _masks_of(path: Path, masks: MaskFolder) -> tuple[Path, ...]:
    """Find the mask of an image, which all lights of its view share."""
    return masks.find(path.parent.name, path.stem[:-_LIGHT_ENDING])


def _object_folders(home: Path, kind: str) -> list[Path]:
    """List the folders of the good or defective objects."""
    folder = find_child(home, {kind})
    return [] if folder is None else list_folders(folder)


def _is_category(home: Path) -> bool:
    """Tell whether a folder is a category."""
    return any(_is_object(folder) for folder in _object_folders(home, "good"))


def _is_object(folder: Path) -> bool:
    """Tell whether a folder holds the views of an object."""
    images: Iterator[Path] = iter(list_images(folder))
    first = next(images, None)
    return first is not None and _NAME.fullmatch(first.stem) is not None
