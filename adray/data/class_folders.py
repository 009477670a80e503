"""Classes with a folder ``Label`` for the masks of their defects: DAGM 2007.

``Class1/Train/0576.PNG`` with ``Class1/Train/Label/0576_label.PNG`` where it is defective, and so
``Class1/Test``. The labels are rough ellipses. Wieler and Hahn, DAGM symposium 2007.
"""

from __future__ import annotations

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
from adray.data.mask_files import NO_MASKS, read_mask_folder
from adray.data.mvtec import SPLIT_FOLDERS
from adray.data.names import same_name

_LABEL_WORDS = frozenset({"label", "labels"})


def detect_classes(root: Path) -> bool:
    """Tell whether some folder in `root` has a ``Train/Label``."""
    return any(_split_folders(folder) for folder in list_folders(root))


def list_class_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are classes."""
    return [folder.name for folder in list_folders(root) if _split_folders(folder)]


def list_class_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one class, the training images first.

    Raises:
        InputError: where no normal image trains.
    """
    samples = []
    for split, folder in sorted(_split_folders(root / category).items(), reverse=True):
        labels = find_child(folder, _LABEL_WORDS)
        masks = NO_MASKS if labels is None else read_mask_folder(labels)
        for path in list_images(folder):
            found = masks.find("", path.stem)
            sample = Sample(
                path=path,
                mask_paths=found,
                label=int(bool(found)),
                defect_type="defect" if found else "good",
                dataset=reading.name_for(root),
                category=category,
                split=split,
                relative_path=relative_key(root, path),
            )
            samples.append(sample)
    return require_training_normals(regroup(samples, reading), root / category / "Train")


def _split_folders(category: Path) -> dict[str, Path]:
    """Find the folders of a class by their split, none where neither has a ``Label``."""
    found = {}
    for folder in list_folders(category):
        split = SPLIT_FOLDERS.get(same_name(folder.name))
        if split and list_images(folder):
            found[split] = folder
    has_labels = any(find_child(folder, _LABEL_WORDS) for folder in found.values())
    return found if has_labels else {}
