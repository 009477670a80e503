"""Samples, and what every reader of a data set shares.

No torch here, planning a sweep needs none.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adray.errors import InputError
from adray.settings import DEFAULT_OPTIONS, DataOptions, FolderLayout

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".pbm"),
    }
)
"""File endings read as images, in lower case; any case is accepted."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set, as found on disk."""

    path: Path
    """The image file."""
    mask_paths: tuple[Path, ...]
    """The mask files, of which each shows some of its defects; none where it has no mask."""
    label: int
    """0 normal, 1 anomalous."""
    defect_type: str
    """Name of the defect's folder, ``"good"`` for normal images."""
    dataset: str
    """Name of the data set."""
    category: str
    """Name of the product."""
    split: str
    """``"train"`` or ``"test"``; ``"synthetic"`` for a defect drawn on a held-out image."""
    relative_path: str = ""
    """`path` from the data set's root, with forward slashes, the same on every machine."""
    group: str = ""
    """What images have in common that must not train and test: a lot, day, camera or view. Empty
    for an image by itself."""
    part: str = ""
    """The object that is on the image, where several images show the same one; empty where each
    shows its own."""
    columns: tuple[tuple[str, str], ...] = ()
    """Further columns of the user's list, (name, value) each, which the results keep."""

    @property
    def key(self) -> str:
        """Give a name for the image that does not depend on where the data set lies."""
        return self.relative_path or f"{self.split}/{self.defect_type}/{self.path.name}"

    @property
    def has_mask(self) -> bool:
        """Tell whether its defects come with a mask: as a file, or drawn together with them."""
        return bool(self.mask_paths) or self.split == "synthetic"


@dataclass(frozen=True)
class Reading:
    """How a data set is read; a layout ignores what it has no use for."""

    name: str = ""
    """What the samples call the data set; empty for the name of its root folder."""
    seed: int = 42
    """Chooses the split of data that come without one."""
    split_mode: str = "1cls"
    """Which of VisA's official splits."""
    train_defects: float = 0.0
    """Fraction in [0, 0.9] of the defects that join the training set of data without a split."""
    folder: FolderLayout | None = None
    """Directories of a plain folder."""
    options: DataOptions = DEFAULT_OPTIONS
    """What the user has said of the data set."""
    cache_dir: Path | None = None
    """Where files go that a read-only data set cannot take."""

    def name_for(self, root: Path) -> str:
        """Give the data set's name: the one asked for, else that of its root folder."""
        return self.name or root.name


DEFAULT_READING = Reading()


@dataclass(frozen=True)
class DatasetReader:
    """One layout of data sets: a row of `adray.data.readers.DATASETS`."""

    list_categories: Callable[[Path, Reading], list[str]]
    """(root, reading) -> category names in natural order."""
    list_samples: Callable[[Path, str, Reading], list[Sample]]
    """(root, category, reading) -> the samples of one category, training normals included."""
    detect: Callable[[Path], bool]
    """(root) -> whether the folder has this layout."""
    shape: str
    """What tells such a folder from others, for the reader of an error message."""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Make a sort key under which ``img2`` comes before ``img10``.

    Composed and decomposed accents sort alike.
    """
    composed = unicodedata.normalize("NFC", name)

    # A split at a captured group gives text and digits in turn: odd places hold the digits.
    parts: list[str | int] = list(re.split("([0-9]+)", composed.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, composed


def is_image_name(name: str) -> bool:
    """Tell whether a file name is that of an image, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """List the image files directly in `folder`, in natural order.

    There are none where the folder is missing. A dangling link counts: it shall be reported as
    unreadable, not vanish.
    """
    if not folder.is_dir():
        return []
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and not entry.is_dir():
                names.append(entry.name)
    return [folder / name for name in sorted(names, key=natural_key)]


def list_images_below(folder: Path) -> list[Path]:
    """List the image files in `folder`, then those in its sub-folders, each in natural order."""
    images = list_images(folder)
    for child in list_folders(folder):
        images += list_images_below(child)
    return images


def list_folders(folder: Path) -> list[Path]:
    """List the sub-folders of `folder` in natural order.

    Hidden ones, and those that archives leave behind, are left out.
    """
    if not folder.is_dir():
        return []
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")):
                names.append(entry.name)
    return [folder / name for name in sorted(names, key=natural_key)]


def relative_key(root: Path, path: Path) -> str:
    """Write `path` as seen from `root`, with forward slashes and composed accents."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def masks_by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Find the mask files directly in `folder` by the stem of their image.

    ``<stem>_mask.png`` wins over ``<stem>.png``.
    """
    masks: dict[str, tuple[Path, ...]] = {}
    for path in list_images(folder):
        masks.setdefault(path.stem, (path,))

    marked = {}
    for stem, paths in masks.items():
        if stem.endswith("_mask"):
            marked[stem.removesuffix("_mask")] = paths
    return masks | marked


def require_training_normals(samples: list[Sample], folder: Path) -> list[Sample]:
    """Give `samples` back if a normal training image is among them.

    Raises:
        InputError: where there is none; names `folder`.
    """
    if any(sample.split == "train" and sample.label == 0 for sample in samples):
        return samples

    state = "has no images" if folder.is_dir() else "does not exist"
    endings = " ".join(sorted(IMAGE_SUFFIXES)).replace(".", "")
    raise InputError(
        f"no normal training images: {folder} {state}; put normal images there ({endings})"
    )
