"""MVTec AD: ``<category>/train/good``, ``test/<defect>``, ``ground_truth/<defect>``.

Bergmann et al., CVPR 2019. A mask is called as its image, with or without ``_mask``. Any data set
of this shape is read, whatever its name; without ``ground_truth`` the samples have no masks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    list_folders,
    list_images,
    masks_by_stem,
    relative_key,
    require_training_normals,
)

logger = logging.getLogger(__name__)


def detect_mvtec(root: Path) -> bool:
    """Tell whether some folder in `root` has a ``train/good``."""
    return any((folder / "train" / "good").is_dir() for folder in list_folders(root))


def list_mvtec_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that hold a ``train`` or a ``test``."""
    return [f.name for f in list_folders(root) if (f / "train").is_dir() or (f / "test").is_dir()]


def list_mvtec_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category.

    Raises:
        InputError: where ``train/good`` has no images.
    """
    return list_split_folders(root, category, normal="good", dataset=reading.name_for(root))


def list_split_folders(root: Path, category: str, normal: str, dataset: str) -> list[Sample]:
    """List a category of the shape of MVTec AD.

    It has ``train/<normal>``, ``test/<normal or defect>`` and ``ground_truth/<defect>``.

    Args:
        root: folder of the data set.
        category: name of a folder in it.
        normal: name of the folders with normal images.
        dataset: what the samples call the data set.

    Raises:
        InputError: where ``train/<normal>`` has no images.
    """
    home = root / category
    for extra in list_folders(home / "train"):
        if extra.name != normal:
            logger.warning("%s is not read: only train/%s trains in this layout", extra, normal)

    # The test has normal images in a folder of the same name, and one folder per kind of defect.
    samples = []
    for folder in [home / "train" / normal, *list_folders(home / "test")]:
        anomalous = folder.name != normal
        masks = masks_by_stem(home / "ground_truth" / folder.name) if anomalous else {}
        for path in list_images(folder):
            sample = Sample(
                path=path,
                mask_paths=masks.get(path.stem, ()),
                label=int(anomalous),
                defect_type=folder.name if anomalous else "good",
                dataset=dataset,
                category=category,
                split=folder.parent.name,
                relative_path=relative_key(root, path),
            )
            samples.append(sample)
    return require_training_normals(samples, home / "train" / normal)
