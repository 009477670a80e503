"""BTAD: ``<category>/train/ok``, ``test/{ok,ko}``, ``ground_truth/ko``.

Mishra et al., ISIE 2021. The shape is that of MVTec AD with other words. Images and masks mix
``.bmp`` and ``.png``, and are matched by stem.
"""

from __future__ import annotations

from pathlib import Path

from adray.data.base import DEFAULT_READING, Reading, Sample, list_folders
from adray.data.mvtec import list_split_folders


def detect_btad(root: Path) -> bool:
    """Tell whether some folder in `root` has a ``train/ok``."""
    return any((folder / "train" / "ok").is_dir() for folder in list_folders(root))


def list_btad_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, all defects of the type ``ko``.

    Raises:
        InputError: where ``train/ok`` has no images.
    """
    return list_split_folders(root, category, normal="ok", dataset=reading.name_for(root))
