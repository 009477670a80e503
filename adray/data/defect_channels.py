"""What each mask file of MVTec LOCO or AutoVI marks, and how much of it is enough to be found.

A mask file is one defect, and its pixel value names the kind. The category's
``defects_config.json`` says from which area on a defect of that kind counts as found wholly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adray.data.base import Sample
from adray.errors import InputError
from adray.language.sentence import Sentence, Term
from adray.spro import Defect, ImageDefects

CONFIG_FILE = "defects_config.json"
_LEVELS_UP = 4  # ground_truth/<type>/<image>/<mask>, or one folder less


@dataclass(frozen=True)
class Saturation:
    """From which area on a kind of defect is found wholly."""

    threshold: float
    """Pixels, or a share of the defect's area."""
    relative: bool
    """Whether it is a share."""

    def area(self, pixels: int) -> int:
        """Give the area for a defect of so many pixels, at least 1."""
        enough = int(self.threshold * pixels) if self.relative else int(self.threshold)
        return max(1, min(enough, pixels))


def open_defects(samples: Sequence[Sample]) -> Iterator[ImageDefects | None] | None:
    """Read the defects of each image in turn, at the full size of the images.

    Returns:
        None where no category has a ``defects_config.json``. For an image that shall be left out
        None: a defective one without masks, or of a category without that file.

    Raises:
        InputError: as `check_defects_config`, and while reading as `check_defect_masks`.
    """
    saturations = _saturations_by_category(samples)
    if not saturations:
        return None
    return (_image_defects(sample, saturations) for sample in samples)


def check_defects_config(samples: Sequence[Sample]) -> None:
    """Refuse a ``defects_config.json`` that is not as published.

    Raises:
        InputError: names the file and the entry.
    """
    _saturations_by_category(samples)


def check_defect_masks(samples: Sequence[Sample]) -> None:
    """Refuse masks with values that their ``defects_config.json`` does not list.

    Raises:
        InputError: names the mask and the value.
    """
    saturations = _saturations_by_category(samples)
    for sample in samples:
        of_category = saturations.get((sample.dataset, sample.category))
        if of_category is not None:
            for path in sample.mask_paths:
                _listed_values(path, _mask_values(path), of_category)


def _saturations_by_category(
    samples: Sequence[Sample],
) -> dict[tuple[str, str], dict[int, Saturation]]:
    """Read the file of each category that has one."""
    found: dict[tuple[str, str], dict[int, Saturation]] = {}
    looked_at = set()
    for sample in samples:
        category = (sample.dataset, sample.category)
        if category in looked_at or not sample.mask_paths:
            continue
        looked_at.add(category)
        path = _find_config(sample.mask_paths[0])
        if path is not None:
            found[category] = read_saturations(path)
    return found


def _find_config(mask: Path) -> Path | None:
    """Look for the file in the folders above a mask."""
    for folder in mask.parents[:_LEVELS_UP]:
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    return None


def read_saturations(path: Path) -> dict[int, Saturation]:
    """Read a ``defects_config.json``: the saturation of each pixel value.

    Raises:
        InputError: names the file and the entry that is not as published.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        said = Sentence.of("saturation unreadable", path=str(path), error=str(error))
        raise InputError(said) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(Sentence.of("saturation no_list", path=str(path)))
    return dict(_saturation(path, entry) for entry in entries)


def _saturation(path: Path, entry: Any) -> tuple[int, Saturation]:
    """Read one entry.

    Raises:
        InputError: for a key that is missing, and a value that cannot be.
    """
    try:
        value = int(entry["pixel_value"])
        threshold = float(entry["saturation_threshold"])
        relative = bool(entry["relative_saturation"])
    except (KeyError, TypeError, ValueError) as error:
        said = Sentence.of("saturation no_defect", path=str(path), entry=repr(entry))
        raise InputError(said) from error

    if not 1 <= value <= 255:
        raise InputError(Sentence.of("saturation value", path=str(path), value=value))
    if not threshold > 0 or (relative and threshold > 1):
        allowed = Term("above 0 and at most 1" if relative else "above 0")
        said = Sentence.of(
            "saturation threshold", path=str(path), value=f"{threshold:g}", allowed=allowed
        )
        raise InputError(said)
    return value, Saturation(threshold, relative)


def _image_defects(
    sample: Sample, saturations: dict[tuple[str, str], dict[int, Saturation]]
) -> ImageDefects | None:
    """Read the defects of one image, None where it shall be left out."""
    of_category = saturations.get((sample.dataset, sample.category))
    if of_category is None or (sample.label == 1 and not sample.mask_paths):
        return None
    if sample.label == 0:
        with Image.open(sample.path) as image:
            return ImageDefects(image.height, image.width, ())

    defects = []
    for path in sample.mask_paths:
        values = _mask_values(path)
        for value in _listed_values(path, values, of_category):
            pixels = values == value
            enough = of_category[value].area(int(np.count_nonzero(pixels)))
            defects.append(Defect(pixels, enough))
    return ImageDefects(len(values), len(values[0]), defects)


def _mask_values(path: Path) -> np.ndarray:
    """Read a mask as it is, (H, W): of colors the largest, without an opacity."""
    with Image.open(path) as image:
        opaque = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
        values = np.asarray(image.convert(opaque))
    return values if values.ndim == 2 else values.max(axis=2)


def _listed_values(
    path: Path, values: np.ndarray, saturations: Mapping[int, Saturation]
) -> list[int]:
    """Give the values of the defects in a mask.

    Raises:
        InputError: for one that is not listed.
    """
    found = [value for value in np.unique(values).tolist() if value]
    for value in found:
        if value not in saturations:
            listed = ", ".join(map(str, sorted(saturations)))
            said = Sentence.of(
                "saturation not_listed",
                path=str(path),
                value=value,
                table=CONFIG_FILE,
                listed=listed,
            )
            raise InputError(said)
    return found
