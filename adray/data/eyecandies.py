"""Eyecandies: drawn sweets under six lights.

``<category>/{train,val,test_public}/data/000_image_0.png`` with ``000_mask.png`` in the test, where a
picture is anomalous if its mask marks anything. `DataOptions.variant` chooses the light, ``0`` to
``5``; the usual one is 0. ``test_private`` has no published labels and is not read.

Bonfiglioli et al., ACCV 2022.
"""

from __future__ import annotations

from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    list_folders,
    list_images,
    list_images_below,
    list_metadata,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.mvtec import SPLIT_FOLDERS
from adray.data.names import same_name
from adray.data.pairs import marks_defect, mask_facts_of
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

LIGHTS = ("0", "1", "2", "3", "4", "5")


def detect_eyecandies(root: Path) -> bool:
    """Tell whether a folder in `root` has pictures called ``*_image_0`` in ``train/data``."""
    return any(_is_category(folder) for folder in list_folders(root))


def list_eyecandies_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are categories."""
    return [folder.name for folder in list_folders(root) if _is_category(folder)]


def list_eyecandies_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category under one light.

    Raises:
        InputError: for a light that does not exist, a test picture without a mask, a mask that
            cannot be read, or no normal training pictures.
    """
    light = reading.options.variant or LIGHTS[0]
    if light not in LIGHTS:
        said = Sentence.of(
            "reader no_light",
            dataset=reading.name_for(root),
            value=repr(light),
            nearest=nearest_of(light, LIGHTS),
        )
        raise InputError(said)

    samples = []
    for split, folder in _data_folders(root / category):
        files = list_images(folder)
        masks = {path.stem: path for path in files if path.stem.endswith("_mask")}
        facts = mask_facts_of(masks.values(), reading)
        for path in files:
            if not path.stem.endswith(f"_image_{light}"):
                continue
            stem = path.stem.removesuffix(f"_image_{light}")
            mask = masks.get(f"{stem}_mask")
            if split == "test" and mask is None:
                raise InputError(
                    Sentence.of("reader mask_not_beside", path=str(path), mask=f"{stem}_mask.png")
                )
            anomalous = mask is not None and marks_defect(mask, facts[mask])
            sample = Sample(
                path=path,
                mask_paths=(mask,) if mask is not None and anomalous else (),
                label=int(anomalous),
                defect_type="defect" if anomalous else "good",
                dataset=reading.name_for(root),
                category=category,
                split=split,
                relative_path=relative_key(root, path),
            )
            samples.append(sample)
    return require_training_normals(regroup(samples, reading), root / category / "train")


def list_eyecandies_metadata(root: Path, category: str) -> list[Path]:
    """List the files that describe the pictures, and all that this reader has no use for.

    These are the other lights, depths, normals of surfaces, and pictures without labels.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    found = list_metadata(root, category)
    for path in list_images_below(root / category):
        is_picture = path.stem.endswith(f"_image_{LIGHTS[0]}")
        private = "test_private" in path.relative_to(root).parts
        if private or not (is_picture or path.stem.endswith("_mask")):
            found.append(path)
    return found


def _data_folders(home: Path) -> list[tuple[str, Path]]:
    """List the folders of pictures with their split, the training first."""
    found = []
    for folder in list_folders(home):
        split = SPLIT_FOLDERS.get(same_name(folder.name))
        if split and list_images(folder / "data"):
            found.append((split, folder / "data"))
    order = list(SPLIT_FOLDERS.values())
    return sorted(found, key=lambda item: order.index(item[0]))


def _is_category(home: Path) -> bool:
    """Tell whether a folder is a category."""
    pictures = list_images(home / "train" / "data")
    return any(path.stem.endswith(f"_image_{LIGHTS[0]}") for path in pictures)
