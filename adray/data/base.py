"""Samples, and what every reader of a data set shares.

No torch here, planning a sweep needs none.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from adray.data.names import (
    IMAGE_FOLDER_WORDS,
    is_mask_name,
    is_metadata_name,
    is_system_name,
    looks_defective,
    natural_key,
    same_name,
)
from adray.errors import InputError
from adray.language.sentence import Sentence, Term
from adray.settings import DEFAULT_OPTIONS, DataOptions, FolderLayout

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".pbm"),
    }
)
"""File endings read as images, in lower case; any case is accepted."""
SYNTHETIC = "synthetic"
"""`Sample.split` of a copy that a defect was drawn on, see `adray.data.synthetic_defects`."""


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
    """``"train"``, ``"test"`` or ``"validation"``, whose normal images are always held out;
    `SYNTHETIC` for a defect drawn on a held-out image."""
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
    tile: int | None = None
    """Number of the tile of the image that is meant, see `adray.tiling.TileGrid`; None for all of
    it."""

    @property
    def stays_with(self) -> str:
        """Name what must not train and test: its group, else its part. Empty for none."""
        return self.group or self.part

    @property
    def key(self) -> str:
        """Give a name for the image that does not depend on where the data set lies."""
        return self.relative_path or f"{self.split}/{self.defect_type}/{self.path.name}"

    @property
    def has_mask(self) -> bool:
        """Tell whether its defects come with a mask: as a file, or drawn together with them."""
        return bool(self.mask_paths) or self.split == SYNTHETIC


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


# ---- which samples ----


def normals_of(samples: Iterable[Sample]) -> list[Sample]:
    """Choose the normal images."""
    return [sample for sample in samples if sample.label == 0]


def defects_of(samples: Iterable[Sample]) -> list[Sample]:
    """Choose the images with a defect."""
    return [sample for sample in samples if sample.label == 1]


def split_of(samples: Iterable[Sample], *splits: str) -> list[Sample]:
    """Choose the images of one split, or of several."""
    return [sample for sample in samples if sample.split in splits]


def defect_types(samples: Iterable[Sample]) -> set[str]:
    """Name the kinds of defects."""
    return {sample.defect_type for sample in samples if sample.label == 1}


def categories_of(samples: Iterable[Sample]) -> set[tuple[str, str]]:
    """Name the categories, each with its data set."""
    return {(sample.dataset, sample.category) for sample in samples}


# ---- files and folders ----


def is_image_name(name: str) -> bool:
    """Tell whether a file name is that of an image that a person put there."""
    return not is_system_name(name) and _suffix(name) in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    """Give the ending of a file name, in lower case as `Path.suffix` has it, in a tenth of the time."""
    stem, dot, ending = name.rpartition(".")
    return (dot + ending).lower() if stem and ending else ""


def is_file(path: Path) -> bool:
    """Tell whether a file is there, also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def list_images(folder: Path) -> list[Path]:
    """List the image files directly in `folder`, in natural order.

    There are none where the folder is missing. A dangling link counts: it shall be reported as
    unreadable, not vanish.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    names = filter(is_image_name, _list_entries(folder).files)
    return [folder / name for name in sorted(names, key=natural_key)]


def list_files(folder: Path) -> list[Path]:
    """List all that is directly in `folder` but folders, in natural order.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    names = _list_entries(folder).files
    return [folder / name for name in sorted(names, key=natural_key)]


def list_folders(folder: Path) -> list[Path]:
    """List the sub-folders of `folder` in natural order.

    Hidden ones, and those that file servers and archives leave behind, are left out.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    names = [name for name in _list_entries(folder).folders if not is_system_name(name)]
    return [folder / name for name in sorted(names, key=natural_key)]


def list_folders_below(
    folder: Path, leave_out: Callable[[Path], bool] = lambda path: False
) -> list[Path]:
    """List `folder` and all folders below it, each before those in it, in natural order.

    Links are followed, but no folder comes twice, and none above `folder` comes at all.

    Args:
        folder: where to begin.
        leave_out: which folders are left out, with all below them.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    real = Path(os.path.realpath(folder))
    seen = {_identity(path) for path in (real, *real.parents)}
    found = []
    pending = [folder]
    while pending:
        place = pending.pop()
        found.append(place)
        children = [child for child in list_folders(place) if not leave_out(child)]

        # Taken from the end, so that the first child comes next.
        for child in reversed(children):
            identity = _identity(child)
            if identity not in seen:
                seen.add(identity)
                pending.append(child)
    return found


def list_images_below(
    folder: Path, leave_out: Callable[[Path], bool] = lambda path: False
) -> list[Path]:
    """List the image files in `folder`, then those in its sub-folders, each in natural order.

    Args:
        folder: where to begin.
        leave_out: which folders are left out, with all below them.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    images = []
    for place in list_folders_below(folder, leave_out):
        images += list_images(place)
    return images


def holds_masks(folder: Path) -> bool:
    """Tell whether a folder holds masks, by its name."""
    return is_mask_name(folder.name)


def sounds_bad(folder: Path) -> bool:
    """Tell whether a folder among normal images sounds like one of defects or masks."""
    return looks_defective(folder.name)


def list_metadata(root: Path, category: str) -> list[Path]:
    """List the files that describe images: tables, texts and licences beside them or above.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    home = root / category
    folders = [root, *list_folders_below(home)] if is_folder(home) else list_folders_below(root)

    found = []
    for folder in folders:
        # Most files are images: their names are told apart before anything is made of them.
        names = filter(is_metadata_name, _list_entries(folder).files)
        found += [folder / name for name in sorted(names, key=natural_key)]
    return found


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there, also for a name that no folder can have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def find_child(folder: Path, names: Container[str]) -> Path | None:
    """Find the first sub-folder that is called so, in capitals or not, or None."""
    return next(
        (child for child in list_folders(folder) if same_name(child.name).strip() in names), None
    )


def find_file(root: Path, written: str) -> Path | None:
    """Find a file that a table names, counted from `root`, or None.

    Accents may be made of one sign or of two, and separators may be those of Windows. A table must
    not lead out of the data set.
    """
    found = _find(root, written)
    return found if found is not None and is_file(found) else None


def find_folder(root: Path, written: str) -> Path | None:
    """Find a folder that the settings name, as `find_file` does, or None."""
    found = _find(root, written)
    return found if found is not None and is_folder(found) else None


def _find(root: Path, written: str) -> Path | None:
    """Find what a text names below `root`, or None."""
    name = written.replace("\\", "/")
    if not name.strip() or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        return None
    if is_file(root / name) or is_folder(root / name):
        return root / name

    # A table pads its cells, and a name may end with a space of its own.
    place = root
    for part in Path(name.strip()).parts:
        entries = _list_entries(place)
        wanted = unicodedata.normalize("NFC", part)
        alike = (
            entry
            for entry in (*entries.files, *entries.folders)
            if unicodedata.normalize("NFC", entry).strip() == wanted.strip()
        )
        entry = next(alike, None)
        if entry is None:
            return None
        place = place / entry
    return place


def relative_key(root: Path, path: Path) -> str:
    """Write `path` as seen from `root`, with forward slashes and composed accents."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def group_of(folder: Path, place: Path) -> str:
    """Give the group of the images in `place`, a folder below the one where a layout expects them.

    A folder that only says that images are in it makes none.
    """
    parts = [
        part
        for part in place.relative_to(folder).parts
        if same_name(part) not in IMAGE_FOLDER_WORDS
    ]
    return unicodedata.normalize("NFC", "/".join(parts))


def regroup(samples: list[Sample], reading: Reading) -> list[Sample]:
    """Give the samples the groups that the user's expression finds in their names, if there is one.

    Raises:
        InputError: for an expression that cannot be read, has no bracket, or finds nothing.
    """
    pattern = reading.options.group
    if not pattern or not samples:
        return samples

    where = f"data.{samples[0].dataset}.group: {pattern!r}"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        said = Sentence.of("group no_expression", where=where, error=str(error))
        raise InputError(said) from None
    if not expression.groups:
        raise InputError(Sentence.of("group no_bracket", where=where))

    grouped = []
    for sample in samples:
        match = expression.search(sample.key)
        found = match[1] if match else None
        grouped.append(replace(sample, group=found or ""))
    if not any(sample.group for sample in grouped):
        raise InputError(Sentence.of("group nothing", where=where, name=repr(samples[0].key)))
    return grouped


def require_training_normals(samples: list[Sample], folder: Path) -> list[Sample]:
    """Give `samples` back if a normal training image is among them.

    Raises:
        InputError: where there is none; names `folder`.
    """
    if normals_of(split_of(samples, "train")):
        return samples

    state = "has no images" if is_folder(folder) else "does not exist"
    endings = " ".join(sorted(IMAGE_SUFFIXES)).replace(".", "")
    raise InputError(
        Sentence.of("reader no_normals", folder=str(folder), state=Term(state), endings=endings)
    )


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
    metadata: Callable[[Path, str], list[Path]] = list_metadata
    """(root, category) -> the files that describe the images, such as tables and a licence."""
    general: bool = False
    """Whether it fits many folders, and counts only where no other does."""
    fixed_split: bool = False
    """Whether every image comes with its split, so that a seed moves none."""


@dataclass(frozen=True)
class _Entries:
    """Names in a folder, in no order."""

    folders: list[str]
    """Of folders, and of links to such."""
    files: list[str]
    """Of all else."""


def _list_entries(folder: Path) -> _Entries:
    """List what is in a folder, nothing where it is missing.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    found = _Entries([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names = found.folders if _leads_to_folder(entry) else found.files
                names.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return _Entries([], [])
    except OSError as error:
        reason = str(error.strerror)
        raise InputError(
            Sentence.of("reader not_listed", folder=str(folder), error=reason)
        ) from None
    return found


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or a link to one. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    """Give what tells a real folder from all others.

    Raises:
        InputError: where it has vanished.
    """
    try:
        status = folder.stat()
    except OSError as error:
        reason = str(error.strerror)
        raise InputError(
            Sentence.of("reader folder_vanished", folder=str(folder), error=reason)
        ) from None
    return status.st_dev, status.st_ino
