"""What a folder that nobody has described holds: a layout, or folders whose names say it.

`adray.data.readers` knows the layouts. Where none fits but a plain folder, the names of the folders
tell which hold normal images, as they are called on sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adray.data.base import list_folders, list_images, list_images_below, relative_key
from adray.data.names import is_mask_name, is_normal_name, looks_defective, sounds_normal
from adray.data.published import PUBLISHED
from adray.data.readers import DATASETS, ResolvedDataset, detect_layout, resolve_dataset
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of
from adray.settings import DataOptions, FolderLayout, Settings


@dataclass(frozen=True)
class Recognised:
    """A folder with the way in which it is read."""

    root: Path
    """The folder, absolute."""
    dataset_dir: Path
    """The folder that a sweep would call its `dataset_dir`."""
    datasets: tuple[ResolvedDataset, ...]
    """The data sets in it: one, or one per part."""
    why: str
    """What told: ``layout``, ``names``, ``parts``, ``flat``, or ``told`` where somebody said it."""


def recognise(path: str, settings: Settings, options: DataOptions) -> Recognised:
    """Find out how a folder is to be read.

    Args:
        path: the folder, or the name of one in `settings.dataset_dir`.
        settings: say where data sets lie.
        options: what the user says of the data set.

    Raises:
        InputError: for a folder that is not there, and one in which nothing tells the normal images
            from the others.
    """
    root = locate(path, settings)
    if root is None:
        raise InputError(_missing(path))
    home = root.parent
    detected = options.layout or options.list or detect_layout(root)
    # A plain folder is described whole, so that no folder of defects is passed over by its name.
    if detected and detected != "folder":
        known = replace(settings, dataset_dir=str(home), folders={}, data={root.name: options})
        return Recognised(root, home, (resolve_dataset(root.name, known),), "layout")

    layout = _by_names(root)
    if layout is not None:
        return Recognised(root, home, (_plain(root, layout, options),), "names")
    parts = _parts(root, options)
    if parts:
        return Recognised(root, root, tuple(parts), "parts")
    if list_images(root):
        return Recognised(root, home, (_plain(root, _flat(root), options),), "flat")
    raise InputError(_unknown(root))


@dataclass(frozen=True)
class ImageFolder:
    """A folder in a folder, as one that may hold the normal images."""

    name: str
    """Of the folder."""
    images: int
    """Images in it and below."""


def image_folders(root: Path) -> list[ImageFolder]:
    """List the folders that may hold normal images, the fullest first.

    Those that sound like defects or masks are left out.
    """
    found = []
    for folder in list_folders(root):
        if not looks_defective(folder.name):
            images = len(list_images_below(folder))
            if images:
                found.append(ImageFolder(relative_key(root, folder), images))
    return sorted(found, key=lambda folder: -folder.images)


def recognise_normals(root: Path, normal: str, options: DataOptions) -> Recognised:
    """Read a folder as a plain one, in which somebody names the folder of the normal images.

    Args:
        root: the folder, absolute.
        normal: name of a folder in it. Every other one with images holds defects, or masks.
        options: what the user says of the data set.
    """
    layout = _described(root, [normal])
    return Recognised(root, root.parent, (_plain(root, layout, options),), "told")


def locate(path: str, settings: Settings) -> Path | None:
    """Find a folder by its path or by its name in `settings.dataset_dir`, None where there is none.

    Returns:
        The folder, absolute and without links.
    """
    given = Path(path).expanduser()
    named = Path(settings.dataset_dir).expanduser() / given
    for folder in (given, named):
        if folder.is_dir():
            return folder.resolve()
    return None


def _missing(path: str) -> Sentence:
    """Say that there is no folder of this path, and which published set may have been meant."""
    if Path(path).expanduser().exists():
        return Sentence.of("path file", path=path)
    return Sentence.of("path missing", path=path, nearest=nearest_of(path, PUBLISHED))


def _plain(root: Path, layout: FolderLayout, options: DataOptions) -> ResolvedDataset:
    """Give a folder as a data set with named directories."""
    return ResolvedDataset(root.name, root, DATASETS["folder"], "folder", layout, options)


def _by_names(root: Path) -> FolderLayout | None:
    """Describe a folder in which one is called as normal images are, None for others."""
    folders = list_folders(root)
    normal = _named(root, folders, is_normal_name) or _named(root, folders, sounds_normal)
    if not normal:
        return None

    return _described(root, normal)


def _described(root: Path, normal: Sequence[str]) -> FolderLayout:
    """Describe a folder by the names of those in it that hold normal images."""
    folders = list_folders(root)
    mask = _named(root, folders, is_mask_name)
    abnormal = []
    for folder in folders:
        name = relative_key(root, folder)
        if name not in (*normal, *mask) and list_images_below(folder):
            abnormal.append(name)
    return FolderLayout(root.name, tuple(normal), tuple(abnormal), next(iter(mask), None))


def _parts(root: Path, options: DataOptions) -> list[ResolvedDataset]:
    """List the folders of a folder that are data sets of their own, one per part."""
    parts = []
    for folder in list_folders(root):
        layout = _by_names(folder)
        if layout is not None:
            parts.append(_plain(folder, layout, options))
    return parts


def _flat(root: Path) -> FolderLayout:
    """Describe a folder whose images lie at its top: normals, but for folders that sound bad."""
    folders = list_folders(root)
    masks = _named(root, folders, is_mask_name)
    abnormal = [name for name in _named(root, folders, looks_defective) if name not in masks]
    return FolderLayout(root.name, (".",), tuple(abnormal), next(iter(masks), None))


def _named(root: Path, folders: Sequence[Path], fits: Callable[[str], bool]) -> list[str]:
    """List those of the folders whose name fits, as seen from `root`."""
    return [relative_key(root, folder) for folder in folders if fits(folder.name)]


def _unknown(root: Path) -> Sentence:
    """Say why a folder cannot be read, and what to write for it to be."""
    names = [folder.name for folder in list_folders(root)]
    if not names:
        return Sentence.of("path empty", root=str(root))

    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    candidates = [name for name in names if not looks_defective(name)]
    if not candidates:
        return Sentence.of("start only defects", root=str(root), names=shown)
    first = candidates[0]
    described = f"{{path: {root.name}, normal: [{first}], abnormal: [...]}}"
    return Sentence.of(
        "path unknown",
        root=str(root),
        names=shown,
        settings=f"{{folders: {{{root.name}: {described}}}}}",
    )
