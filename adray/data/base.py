"""Samples: what every reader of a data set yields. No torch here, planning a sweep needs none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        split: ``"train"`` or ``"test"``.
    """

    path: Path
    mask_path: Path | None
    label: int
    defect_type: str
    dataset: str
    category: str
    split: str
