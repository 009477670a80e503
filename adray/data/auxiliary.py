"""Images that are no product: textures and everyday photographs that some methods train with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adray.data.base import Sample, list_images_below, relative_key
from adray.data.cache import open_decoded
from adray.data.geometry import Geometry
from adray.data.inspect_files import fingerprint, inspect_files
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuxiliarySet:
    """A published set of images."""

    dataset_places: tuple[str, ...]
    """Accepted folders under `dataset_dir`, the first one is named in messages."""
    backbone_places: tuple[str, ...]
    """Accepted folders under `backbone_dir`."""
    megabytes: int
    """Approximate size of the archive."""
    source: str
    """Where it is published."""


AUXILIARY_SETS: dict[str, AuxiliarySet] = {
    "imagenette2": AuxiliarySet(
        dataset_places=("imagenette2",),
        backbone_places=("efficientad/imagenette2",),
        megabytes=1500,
        source="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
    ),
    "dtd": AuxiliarySet(
        dataset_places=("dtd",),
        backbone_places=(),
        megabytes=600,
        source="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
    ),
}
"""Every auxiliary set the program knows; any other name is a folder of images, relative to
`dataset_dir`."""


def find_auxiliary(name: str, settings: Settings) -> Path | None:
    """Find the folder of an auxiliary set, or None where it is missing.

    Args:
        name: a name in `AUXILIARY_SETS`, or any folder of images, relative to `dataset_dir` or
            absolute.
        settings: say where to look.
    """
    return next(filter(Path.is_dir, _places(name, settings)), None)


def missing_auxiliary(name: str, settings: Settings) -> str:
    """Say which images are missing, where they are published and what does as well."""
    place = _places(name, settings)[0]
    row = AUXILIARY_SETS.get(name)
    if row is None:
        return (
            f"auxiliary images {name!r} are missing: {place} is no folder; "
            "correct the name or copy images there"
        )
    return (
        f"missing auxiliary images {name!r}: unpack {row.source} ({row.megabytes} MB) to {place}, "
        "or name any folder of images under model.auxiliary"
    )


def auxiliary_samples(name: str, settings: Settings) -> list[Sample]:
    """List the readable images anywhere below the set's folder, in natural order.

    Unreadable ones are named in the log.

    Raises:
        InputError: for a missing folder, and for one without a readable image.
    """
    folder = find_auxiliary(name, settings)
    if folder is None:
        raise InputError(missing_auxiliary(name, settings))

    # There are thousands of them: one that is damaged must not stop a training.
    samples = []
    broken = []
    for path, facts in inspect_files(list_images_below(folder), settings.cache_dir).items():
        if facts.problem is None:
            key = relative_key(folder, path)
            samples.append(Sample(path, (), 0, "good", name, "auxiliary", "train", key))
        else:
            broken.append(path)

    if broken:
        logger.warning(
            "%d images of %s cannot be read and are left out, the first is %s",
            len(broken),
            name,
            broken[0],
        )
    if not samples:
        raise InputError(Sentence.of("data auxiliary", folder=str(folder)))
    return samples


def auxiliary_fingerprint(name: str, settings: Settings) -> str:
    """Hash the names and contents of an auxiliary set, or give an empty text for none."""
    if find_auxiliary(name, settings) is None:
        return ""
    return fingerprint(auxiliary_samples(name, settings), settings.cache_dir)


class AuxiliaryImages:
    """Decoded auxiliary images, picked by position; they stay in the cache's memory map.

    Args:
        name: see `find_auxiliary`.
        geometry: size they are decoded to.
        settings: say where to look and where the cache lies.
    """

    def __init__(self, name: str, geometry: Geometry, settings: Settings) -> None:
        self._decoded = open_decoded(auxiliary_samples(name, settings), geometry, settings)

    def __len__(self) -> int:
        """Count the images."""
        return len(self._decoded.images)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Copy the images at `index` (B,) out of the map, (B, 3, S, S) uint8."""
        return self._decoded.images[index]


def _places(name: str, settings: Settings) -> list[Path]:
    """List the folders where an auxiliary set may lie, the preferred one first."""
    datasets = Path(settings.dataset_dir).expanduser()
    backbones = Path(settings.backbone_dir).expanduser()
    row = AUXILIARY_SETS.get(name)
    if row is None:
        return [datasets / Path(name).expanduser()]

    places = []
    for place in row.dataset_places:
        places.append(datasets / place)
    for place in row.backbone_places:
        places.append(backbones / place)
    return places
