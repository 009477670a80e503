"""MVTec AD: ``<category>/train/good``, ``test/<defect>``, ``ground_truth/<defect>/<stem>_mask.png``.

Bergmann et al., CVPR 2019. Any data set of this shape is read, whatever its name; without ``ground_truth`` the samples
have no masks.
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
    """Whether some folder in `root` has a ``train/good``."""
    return any((folder / "train" / "good").is_dir() for folder in list_folders(root))


def list_mvtec_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """Names of the folders in `root` that hold a ``train`` or a ``test``."""
    return [f.name for f in list_folders(root) if (f / "train").is_dir() or (f / "test").is_dir()]


def list_mvtec_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """Samples of one category.

    Raises:
        InputError: where ``train/good`` has no images.
    """
    return list_split_folders(root, category, normal="good", dataset=reading.name or root.name)


def list_split_folders(root: Path, category: str, normal: str, dataset: str) -> list[Sample]:
    """Samples of a category with ``train/<normal>``, ``test/<normal or defect>`` and ``ground_truth/<defect>``.

    Raises:
        InputError: where ``train/<normal>`` has no images.
    """
    home = root / category
    for extra in list_folders(home / "train"):
        if extra.name != normal:
            logger.warning("%s is not read: only train/%s trains in this layout", extra, normal)
    folders = [(home / "train" / normal, "train")] + [
        (folder, "test") for folder in list_folders(home / "test")
    ]
    samples = []
    for folder, split in folders:
        anomalous = folder.name != normal
        masks = masks_by_stem(home / "ground_truth" / folder.name) if anomalous else {}
        samples += [
            Sample(
                path=path,
                mask_path=masks.get(path.stem),
                label=int(anomalous),
                defect_type=folder.name if anomalous else "good",
                dataset=dataset,
                category=category,
                split=split,
                relative_path=relative_key(root, path),
            )
            for path in list_images(folder)
        ]
    return require_training_normals(samples, home / "train" / normal)
