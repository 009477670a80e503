"""The mask files of a folder, found by the image that they belong to.

A mask is called as its image, with ``_mask``, ``_gt`` or ``_label`` behind it or without, or lies
with others in a folder that is called as the image. It lies in a folder that is called as the
image's.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adray.data.base import list_folders_below, list_images
from adray.data.names import same_name

MASK_ENDINGS = ("_mask", "", "_gt", "_label")
"""What may stand behind the image's stem, in the order in which it is looked for."""


@dataclass(frozen=True)
class MaskFolder:
    """The mask files below one folder."""

    by_name: Mapping[tuple[str, str], list[Path]]
    """Of (folder, stem), both in the spelling of `same_name`, the files called so."""
    by_folder: Mapping[str, list[Path]]
    """Of a folder the files in it, in natural order."""

    def find(self, folder: str, stem: str) -> tuple[Path, ...]:
        """Find the masks of an image, none where there is no such file.

        Args:
            folder: where the image lies, such as ``dent/morning``; its masks may lie higher.
            stem: name of the image without its ending.
        """
        place = same_name(folder)
        while True:
            found = self._find_in(place, stem)
            if found or not place:
                return found
            place = place.rpartition("/")[0]

    def _find_in(self, place: str, stem: str) -> tuple[Path, ...]:
        """Find the masks of an image in one folder."""
        for ending in MASK_ENDINGS:
            wanted = stem + ending
            files = self.by_name.get((place, same_name(wanted)))
            if files:
                return (_closest(files, wanted),)

        own = f"{place}/{same_name(stem)}".removeprefix("/")
        return tuple(self.by_folder.get(own, ()))


NO_MASKS = MaskFolder({}, {})


def read_mask_folder(folder: Path) -> MaskFolder:
    """List the mask files below a folder.

    Raises:
        InputError: for a folder that cannot be listed.
    """
    by_name: dict[tuple[str, str], list[Path]] = defaultdict(list)
    by_folder: dict[str, list[Path]] = defaultdict(list)
    for place in list_folders_below(folder):
        name = same_name(place.relative_to(folder).as_posix()).removeprefix(".")
        for path in list_images(place):
            by_name[name, same_name(path.stem)].append(path)
            by_folder[name].append(path)
    return MaskFolder(by_name, by_folder)


def _closest(files: list[Path], stem: str) -> Path:
    """Choose among files whose names differ in capitals the one that is called as the image."""
    wanted = unicodedata.normalize("NFC", stem)
    same = [path for path in files if unicodedata.normalize("NFC", path.stem) == wanted]
    return (same or files)[0]
