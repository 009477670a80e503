"""Which image files somebody means, without those that a prediction wrote.

No torch here, the line has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adray.data.base import (
    is_file,
    is_folder,
    is_image_name,
    list_files,
    list_folders_below,
    list_images_below,
)
from adray.data.names import is_system_name
from adray.errors import InputError
from adray.language.sentence import Sentence, Term
from adray.prediction_table import LINES, MAP_NAME, MAPS, TABLE
from adray.runtime import result_files

_WRITTEN = (LINES, TABLE, result_files.LINES, result_files.TABLE)
"""Files of which one lies in the folder of a prediction, or of the results of a watched folder."""
_IGNORED_SHOWN = 5
"""Files that are named of those that are no images."""


@dataclass(frozen=True)
class FoundImages:
    """The images that somebody named."""

    paths: tuple[Path, ...]
    """Each picture once, in the order in which it was named."""
    repeated: int
    """Times that a picture was named again."""
    outputs: int
    """Maps and overlays of earlier predictions, which are left out."""
    ignored: tuple[Path, ...] = ()
    """Files in the folders that are no images by their endings."""

    @property
    def remarks(self) -> list[str]:
        """Say what is left out."""
        remarks = []
        if self.repeated:
            remarks.append(f"named more than once, and scored once: {self.repeated}")
        if self.outputs:
            remarks.append(f"left out: {self.outputs} maps and overlays of earlier predictions")
        if self.ignored:
            names = ", ".join(path.name for path in self.ignored[:_IGNORED_SHOWN])
            more = ", ..." if len(self.ignored) > _IGNORED_SHOWN else ""
            remarks.append(
                f"ignored, since they are no images: {len(self.ignored)} ({names}{more})"
            )
        return remarks


def find_images(names: Iterable[str]) -> FoundImages:
    """Find the image files of folders, patterns and paths.

    Raises:
        InputError: for a folder without images, and for a pattern that matches nothing.
    """
    seen: dict[str, Path] = {}
    repeated = 0
    outputs = 0
    ignored: dict[Path, None] = {}
    for name in names:
        found = _images_of(name)
        ignored.update(dict.fromkeys(_others_of(name)))
        pictures = [path for path in found if not _is_output(path)]
        outputs += len(found) - len(pictures)
        if not pictures:
            what = Term("only maps of earlier predictions" if found else "no images")
            raise InputError(Sentence.of("images none", name=name, what=what))
        for path in pictures:
            real = os.path.realpath(path)
            repeated += real in seen
            seen.setdefault(real, path)
    return FoundImages(tuple(seen.values()), repeated, outputs, tuple(ignored))


def _images_of(name: str) -> list[Path]:
    """List the image files that one argument means."""
    path = Path(name)
    if is_folder(path):
        return list_images_below(path)
    is_pattern = any(sign in name for sign in "*?[")
    if is_pattern and not is_file(path):
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return [match for match in sorted(matches) if is_image_name(match.name)]
    return [path]


def _others_of(name: str) -> list[Path]:
    """List the files of a folder, and of those below, that are no images and of no prediction."""
    path = Path(name)
    others: list[Path] = []
    if not is_folder(path):
        return others
    for folder in list_folders_below(path):
        is_written = _is_written(folder)
        for file in list_files(folder):
            is_hidden = is_system_name(file.name)
            if not (is_image_name(file.name) or is_hidden or is_written):
                others.append(file)
    return others


def _is_output(path: Path) -> bool:
    """Tell whether a file is a map or an overlay that a prediction wrote."""
    if path.parent.name != MAPS or not MAP_NAME.fullmatch(path.name):
        return False
    return _is_written(path.parent.parent)


def _is_written(folder: Path) -> bool:
    """Tell whether a prediction, or a watcher, wrote into a folder."""
    return any(is_file(folder / name) for name in _WRITTEN)
