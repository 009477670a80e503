"""What every file below a data set's folder was taken for: image, mask, metadata, or left out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adray.data.base import IMAGE_SUFFIXES, Sample
from adray.data.drop import check_dropped, without_dropped
from adray.data.names import is_mask_name, is_metadata_name, is_system_name, same_name
from adray.data.readers import list_samples, resolve_dataset
from adray.errors import InputError
from adray.settings import Settings

HIDDEN = "hidden"
LITTER = "left by a file server or desktop"
EMPTY = "empty (0 bytes)"
NO_FILE = "no ordinary file"
DANGLING = "a link that leads nowhere"
LINK_BACK = "a link to a folder that is read or stands above"
LINK_AWAY = "a link to a folder that is not read"
CLOSED = "a folder that cannot be opened"
NO_IMAGE = "no image by its ending"
UNKNOWN_IMAGE = "an image by an ending that is not read"
BARE_MASK = "a mask without an image"
NORMAL_MASK = "a mask of a normal image"
SECOND_FILE = "a second file of the same image"
SECOND_MASK = "a second mask of the same image"
NOT_LISTED = "beside images that are read, but not listed"
UNREAD_FOLDER = "an image in a folder that is not read"
DROPPED = "a normal image that the key drop names"

MASK_ENDINGS = ("_mask", "_gt", "_label", "_seg")
"""What a mask that lies beside its image has behind the image's stem, in lower case."""
_OTHER_IMAGE_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".avif", ".jxl", ".raw", ".dng", ".cr2", ".nef", ".arw", ".ico"),
        *(".svg", ".tga", ".exr", ".hdr", ".dcm", ".dicom", ".npy", ".npz", ".fits", ".svs"),
        *(".mp4", ".avi"),
    }
)
"""Endings of pictures that are not read, unlike `IMAGE_SUFFIXES`."""
_SHOWN = 20
"""Names in a sentence."""


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that no image is read of."""

    path: Path
    """Where it lies."""
    reason: str
    """Why, in words that go on from "it is"."""


@dataclass(frozen=True)
class Accounts:
    """What every file of a data set was taken for, each in one of four places."""

    root: Path
    """Folder of the data set."""
    samples: tuple[Sample, ...]
    """The images that are read."""
    masks: Mapping[Path, Path]
    """Mask file to the image whose defects it shows."""
    metadata: tuple[Path, ...]
    """Files that describe: tables, licences, notes."""
    left_out: tuple[LeftOut, ...]
    """All others."""
    unreadable: frozenset[str] = frozenset()
    """Categories that cannot be read, whose files are left out for no reason of their own."""

    @functools.cached_property
    def owners(self) -> Mapping[Path, frozenset[str]]:
        """Give the categories whose images and masks lie in each folder or anywhere below it."""
        found: dict[Path, set[str]] = {}
        for sample in self.samples:
            for path in (sample.path, *sample.mask_paths):
                folder = path.parent
                # Whoever has met a folder of this category has met all above it.
                while sample.category not in found.setdefault(folder, set()):
                    found[folder].add(sample.category)
                    folder = folder.parent
        return {folder: frozenset(categories) for folder, categories in found.items()}

    def categories_at(self, path: Path) -> frozenset[str]:
        """Give the categories that the nearest folder above a path belongs to, none for no such."""
        nearest = next(filter(self.owners.__contains__, path.parents), None)
        return frozenset() if nearest is None else self.owners[nearest]


def account_dataset(name: str, settings: Settings, split_mode: str = "1cls") -> Accounts:
    """Tell what every file of a data set was taken for. A category that cannot be read has none.

    Args:
        name: of the data set.
        settings: where it lies.
        split_mode: which of VisA's splits.

    Raises:
        InputError: for a data set that is not there or has no categories.
    """
    dataset = resolve_dataset(name, settings)
    dropped = dataset.dropped()
    whole = replace(settings, data={**settings.data, name: replace(dataset.options, drop=())})
    samples: list[Sample] = []
    metadata: list[Path] = []
    unreadable = set()
    for category in dataset.list_categories():
        try:
            samples += list_samples(name, category, whole, split_mode=split_mode)
            metadata += dataset.reader.metadata(dataset.root, category)
        except InputError:
            # What is wrong with it is said where it is wanted.
            unreadable.add(category)
    check_dropped(name, dropped, samples)
    kept = without_dropped(samples, dropped, fixed_split=dataset.reader.fixed_split)
    found = account(dataset.root, kept, metadata, [dataset.root / one for one in dropped])
    return replace(found, unreadable=frozenset(unreadable))


def account(
    root: Path,
    samples: Sequence[Sample],
    metadata: Iterable[Path] = (),
    dropped: Iterable[Path] = (),
) -> Accounts:
    """Tell what every file below a data set's folder was taken for.

    It never raises: what cannot be opened is left out with the reason.

    Args:
        root: folder of the data set.
        samples: all that is read of it, of every category.
        metadata: files that the layout knows to describe the data set.
        dropped: images that the user leaves out.
    """
    known = _Known(samples, metadata)
    gone = set(dropped)
    masks: dict[Path, Path] = {}
    described: list[Path] = []
    left_out: list[LeftOut] = []

    for found in _walk(str(root), known.folders):
        if isinstance(found, _Refused):
            left_out.append(LeftOut(Path(found.path), found.reason))
        elif Path(found.path) in gone:
            left_out.append(LeftOut(Path(found.path), DROPPED))
        elif found.key in known.masks:
            masks[Path(found.path)] = known.masks[found.key]
        elif found.key not in known.images:
            reason = None if found.key in known.metadata else _reason(found, known)
            if reason is None:
                described.append(Path(found.path))
            else:
                left_out.append(LeftOut(Path(found.path), reason))

    return Accounts(root, tuple(samples), masks, tuple(described), tuple(left_out))


def dropped_remarks(accounts: Mapping[str, Accounts]) -> list[str]:
    """Say which images are left out because somebody named them, a sentence per data set.

    Args:
        accounts: of data sets by name.
    """
    remarks = []
    for name, found in accounts.items():
        gone = [item.path for item in found.left_out if item.reason == DROPPED]
        if gone:
            shown = [path.relative_to(found.root).as_posix() for path in gone[:_SHOWN]]
            more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
            remarks.append(
                f"{name}: {len(gone)} normal images are left out, as data.{name}.drop says: "
                f"{', '.join(shown)}{more}"
            )
    return remarks


# ---- the walk ----

_Folder = tuple[int, int]
"""Device and number of a folder on it: the same however its path is written."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that the walk came by."""

    path: str
    """As the walk spells it."""
    key: tuple[_Folder, str]
    """Its folder and its name there."""
    parts: tuple[str, ...]
    """Names of the folders from the data set's on, as `same_name` writes them."""
    state: str
    """Empty for an ordinary file with content, else why it is none."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """A folder, or a link to one, that the walk does not enter."""

    path: str
    """As the walk spells it."""
    reason: str
    """Why."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A folder to be entered."""

    path: str
    """As the walk spells it."""
    parts: tuple[str, ...]
    """As those of `_Found`."""


def _walk(root: str, read_folders: frozenset[str]) -> Iterator[_Found | _Refused]:
    """Yield every file below `root`, entering each real folder once.

    Links come after all folders that are none, so that a file is found under its own path. Out of
    the data set they are followed only to folders that are read.
    """
    above = _folders_above(root)
    seen: set[_Folder] = set()
    pending = [_Visit(root, ())]
    links: list[_Visit] = []
    while pending or links:
        is_link = not pending
        visit = links.pop() if is_link else pending.pop()
        try:
            status = Path(visit.path).stat()
            folder = (status.st_dev, status.st_ino)
            if folder in seen or (is_link and folder in above):
                if visit.path not in read_folders:
                    yield _Refused(visit.path, LINK_BACK)
                continue
            if is_link and visit.path not in read_folders:
                yield _Refused(visit.path, LINK_AWAY)
                continue
            seen.add(folder)
            entries = _entries(visit.path)
        except OSError as error:
            yield _Refused(visit.path, f"{CLOSED} ({error.strerror})")
            continue

        for entry in entries:
            if _is_folder(entry):
                inside = _Visit(entry.path, (*visit.parts, same_name(entry.name)))
                (links if entry.is_symlink() else pending).append(inside)
            else:
                yield _Found(entry.path, (folder, entry.name), visit.parts, _state(entry))


def _folders_above(root: str) -> set[_Folder]:
    """Find a folder and all those that it lies in."""
    found = set()
    for folder in (Path(root).resolve(), *Path(root).resolve().parents):
        identity = _folder(folder)
        if identity is not None:
            found.add(identity)
    return found


def _folder(path: Path) -> _Folder | None:
    """Identify a folder, or give None where it cannot be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """List a folder by name.

    Raises:
        OSError: where it cannot be opened.
    """
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _state(entry: os.DirEntry[str]) -> str:
    """Say why an entry is no ordinary file with content, empty where it is one."""
    try:
        if not entry.is_file():
            return DANGLING if entry.is_symlink() and not Path(entry.path).exists() else NO_FILE
        return "" if entry.stat().st_size else EMPTY
    except OSError:
        return DANGLING


# ---- the reasons ----


class _Known:
    """What the reader took, by the folder and name of each file."""

    def __init__(self, samples: Sequence[Sample], metadata: Iterable[Path]) -> None:
        self._folders: dict[Path, _Folder | None] = {}
        self.images: set[tuple[_Folder, str]] = set()
        self.masks: dict[tuple[_Folder, str], Path] = {}
        self.stems: set[tuple[_Folder, str]] = set()
        """Folder and stem of each image."""
        self.mask_stems: set[tuple[_Folder, str]] = set()
        """Folder of each mask, with the stem of its image."""
        self.sample_folders: set[_Folder] = set()
        """Those that hold images directly."""
        self.normal_names: set[str] = {"good"}
        """Names of the folders of normal images."""
        self.normals_beside: set[tuple[Path, str]] = set()
        """Stem of each normal image, with the folder above its own."""

        for sample in samples:
            self._add(sample)
        self.metadata = {self._key(path) for path in metadata}
        self.folders = _with_parents(self._folders)
        """All that something is read from, and those above them."""

    def _add(self, sample: Sample) -> None:
        folder, name = self._key(sample.path)
        self.images.add((folder, name))
        self.stems.add((folder, _stem(name)))
        self.sample_folders.add(folder)
        if sample.label == 0:
            self.normal_names.add(same_name(sample.path.parent.name))
            self.normals_beside.add((sample.path.parent.parent, _stem(name)))
        for path in sample.mask_paths:
            key = self._key(path)
            self.masks.setdefault(key, sample.path)
            self.mask_stems.add((key[0], _stem(name)))

    def _key(self, path: Path) -> tuple[_Folder, str]:
        """Give the folder of a file and its name."""
        parent = path.parent
        if parent not in self._folders:
            self._folders[parent] = _folder(parent)
        # A folder that has vanished since is that of no file.
        return self._folders[parent] or (-1, -1), path.name


def _with_parents(folders: Iterable[Path]) -> frozenset[str]:
    """Give the names of folders and of all those above them."""
    found: set[str] = set()
    for folder in folders:
        found.add(str(folder))
        found.update(map(str, folder.parents))
    return frozenset(found)


def _reason(found: _Found, known: _Known) -> str | None:
    """Say why a file is neither image nor mask, None for metadata."""
    name = found.key[1]
    hidden = [part for part in (*found.parts, name) if is_system_name(part)]
    if hidden:
        # All but plain hidden files have a name that some system gave them.
        by_hand = all(part.startswith(".") and not part.startswith("._") for part in hidden)
        return HIDDEN if by_hand and same_name(name) != ".ds_store" else LITTER
    if found.state:
        return found.state

    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return _reason_of_image(found, known)
    if suffix in _OTHER_IMAGE_SUFFIXES:
        return f"{UNKNOWN_IMAGE} ({suffix})"
    if is_metadata_name(name):
        return None
    return f"{NO_IMAGE} ({suffix or 'none'})"


def _reason_of_image(found: _Found, known: _Known) -> str:
    """Say why a file with the ending of an image is neither image nor mask."""
    folder, name = found.key
    stem = _stem(name)
    if (folder, stem.removesuffix("_mask")) in known.mask_stems:
        return SECOND_MASK
    if any(map(is_mask_name, found.parts)):
        beside = (Path(found.path).parent.parent, stem) in known.normals_beside
        return NORMAL_MASK if beside or found.parts[-1] in known.normal_names else BARE_MASK
    if (folder, stem) in known.stems:
        return SECOND_FILE
    if any((folder, stem.removesuffix(ending)) in known.stems for ending in MASK_ENDINGS):
        return NORMAL_MASK
    return NOT_LISTED if folder in known.sample_folders else UNREAD_FOLDER


def _stem(name: str) -> str:
    """Give a file name without its ending, in the spelling that `same_name` gives."""
    return same_name(name.rpartition(".")[0] or name)
