"""Samples and what every reader of a data set shares. No torch here, planning a sweep needs none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adray.errors import InputError
from adray.settings import FolderLayout

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""File endings read as images, in lower case; any case is accepted."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set, as found on disk.

    Attributes:
        path: the image file.
        mask_path: the mask file (non-zero on defects), or None.
        label: 0 normal, 1 anomalous.
        defect_type: name of the defect's folder, ``"good"`` for normal images.
        dataset: name of the data set.
        category: name of the product.
        split: ``"train"`` or ``"test"``; ``"synthetic"`` for a defective twin of a held-out image.
        relative_path: `path` from the data set's root, with forward slashes, the same on every machine.
    """

    path: Path
    mask_path: Path | None
    label: int
    defect_type: str
    dataset: str
    category: str
    split: str
    relative_path: str = ""

    @property
    def key(self) -> str:
        """A name for the image that does not depend on where the data set lies."""
        return self.relative_path or f"{self.split}/{self.defect_type}/{self.path.name}"

    @property
    def has_mask(self) -> bool:
        """Whether its defects come with a mask: as a file, or drawn together with them."""
        return self.mask_path is not None or self.split == "synthetic"


@dataclass(frozen=True)
class Reading:
    """How a data set is read; a layout ignores what it has no use for.

    Attributes:
        name: what the samples call the data set; empty for the name of its root folder.
        seed: chooses the split of data that come without one.
        split_mode: which of VisA's official splits.
        train_defects: fraction in [0, 0.9] of the defects that join the training set of data without a split.
        folder: directories of a plain folder.
        cache_dir: where files go that a read-only data set cannot take.
    """

    name: str = ""
    seed: int = 42
    split_mode: str = "1cls"
    train_defects: float = 0.0
    folder: FolderLayout | None = None
    cache_dir: Path | None = None


DEFAULT_READING = Reading()


@dataclass(frozen=True)
class DatasetReader:
    """One layout of data sets: a row of `adray.data.readers.DATASETS`.

    Attributes:
        list_categories: (root, reading) -> category names in natural order.
        list_samples: (root, category, reading) -> the samples of one category, training normals included.
        detect: (root) -> whether the folder has this layout.
    """

    list_categories: Callable[[Path, Reading], list[str]]
    list_samples: Callable[[Path, str, Reading], list[Sample]]
    detect: Callable[[Path], bool]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which ``img2`` comes before ``img10``; the same for composed and decomposed accents."""
    composed = unicodedata.normalize("NFC", name)
    parts = re.split("([0-9]+)", composed.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], composed


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, in natural order; none where the folder is missing.

    A dangling link counts: it shall be reported as unreadable, not vanish.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [
            entry.name for entry in entries if is_image_name(entry.name) and not entry.is_dir()
        ]
    return [folder / name for name in sorted(names, key=natural_key)]


def list_images_below(folder: Path) -> list[Path]:
    """Image files in `folder`, then those in its sub-folders, each in natural order."""
    return list_images(folder) + [
        path for child in list_folders(folder) for path in list_images_below(child)
    ]


def list_folders(folder: Path) -> list[Path]:
    """Sub-folders of `folder` in natural order, without hidden ones and those that archives leave behind."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        ]
    return [folder / name for name in sorted(names, key=natural_key)]


def relative_key(root: Path, path: Path) -> str:
    """`path` as seen from `root`, with forward slashes and composed accents."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """Mask files directly in `folder` by the stem of their image: ``<stem>_mask.png`` first, else ``<stem>.png``."""
    masks: dict[str, Path] = {}
    for path in list_images(folder):
        masks.setdefault(path.stem, path)
    marked = {
        stem.removesuffix("_mask"): path for stem, path in masks.items() if stem.endswith("_mask")
    }
    return {**masks, **marked}


def require_training_normals(samples: list[Sample], folder: Path) -> list[Sample]:
    """Give `samples` back if a normal training image is among them.

    Raises:
        InputError: where there is none; names `folder`.
    """
    if any(sample.split == "train" and sample.label == 0 for sample in samples):
        return samples
    state = "has no images" if folder.is_dir() else "does not exist"
    endings = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    raise InputError(
        f"no normal training images: {folder} {state}; put normal images there ({endings})"
    )
