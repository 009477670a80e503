"""The specification's data set classes, for a plain torch `DataLoader` of the user's own.

They decode each image each time it is asked for; `adray.data.loaders.get_dataloaders`, which
trainers use, does not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adray.data.base import DatasetReader, Reading, Sample
from adray.data.decode import decode_pair
from adray.data.geometry import Geometry
from adray.data.normalization import normalization_name, normalize_images
from adray.data.pixel_rule import rule_of
from adray.data.readers import DATASETS, detect_layout
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of
from adray.settings import get_globals
from adray.types import PixelRule

SPLITS = ("train", "test")


class Item(TypedDict):
    """One image of a data set, as a mapping, which torch's `DataLoader` puts into batches."""

    image: Tensor
    """(3, H, W) float32, normalised."""
    label: int
    """0 normal, 1 anomalous."""
    mask: Tensor
    """(1, H, W) uint8 with 1 on defects, zero where there is no file."""
    has_mask: bool
    """Whether the mask can be trusted."""
    path: str
    """The image file."""
    defect_type: str
    """Name of the defect's folder, ``"good"`` for normal images."""
    category: str
    """Name of the product."""


class BaseDataset(Dataset[Item]):
    """Images of one data set folder, whose layout is found by its shape.

    They are listed at once, and read when they are asked for.

    Args:
        root: folder of the data set, the one that holds the categories.
        category: name of a category, several, or ``"all"``.
        split: ``"train"`` or ``"test"``.
        img_size: side of the square that images are resized to, in pixels.
        crop_size: side of the centre crop taken from it, in pixels, or None.
        normalize: see `adray.data.normalization.NORMALIZATIONS`; True means imagenet, False [0, 1].
        seed: chooses the split of data that come without one.

    Attributes:
        samples: what `__getitem__` counts.

    Raises:
        InputError: for a folder of another layout, an unknown category or split, or sizes that
            cannot be.
    """

    layout: ClassVar[str | None] = None
    """Row of `adray.data.readers.DATASETS`; None to find it out."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        category: str | Sequence[str],
        split: str = "train",
        img_size: int = 256,
        crop_size: int | None = None,
        normalize: str | bool = "imagenet",
        seed: int = 42,
    ) -> None:
        if split not in SPLITS:
            raise InputError(
                Sentence.of("dataset split", split=repr(split), nearest=nearest_of(split, SPLITS))
            )
        self._geometry = Geometry(img_size, crop_size)
        self._normalize = normalization_name(normalize)

        folder = Path(root).expanduser().absolute()
        reading = Reading(name=folder.name, seed=seed, cache_dir=Path(get_globals().cache_dir))
        listed = _list_samples(_find_reader(folder, self.layout), folder, category, reading)
        self.samples = [sample for sample in listed if sample.split == split]
        self._listed = listed

    def __len__(self) -> int:
        """Count the images."""
        return len(self.samples)

    @functools.cached_property
    def pixels(self) -> PixelRule:
        """Give how the numbers in its files become 8 bits, which its training normals decide."""
        return rule_of(self._listed, get_globals())

    def __getitem__(self, index: int) -> Item:
        """Decode one image.

        Raises:
            InputError: for a file that cannot be decoded.
        """
        sample = self.samples[index]
        options = get_globals().options_of(sample.dataset)
        pair = decode_pair(sample.path, sample.mask_paths, self._geometry, self.pixels, options)
        defect = pair.defect
        if defect is None:
            mask = torch.zeros(1, *pair.image.shape[1:], dtype=torch.uint8)
        else:
            mask = torch.from_numpy(defect)[None]  # (H, W) -> (1, H, W)

        return Item(
            image=normalize_images(torch.from_numpy(pair.image)[None], self._normalize)[0],
            label=sample.label,
            mask=mask,
            has_mask=sample.label == 0 or defect is not None,
            path=str(sample.path),
            defect_type=sample.defect_type,
            category=sample.category,
        )


class MVTecDataset(BaseDataset):
    """MVTec AD: ``<category>/train|test/good|<defect type>`` and ``ground_truth``."""

    layout = "mvtec"


class VisADataset(BaseDataset):
    """VisA: ``<category>/Data/Images/Normal|Anomaly`` with ``split_csv`` or ``image_anno.csv``."""

    layout = "visa"


class BTADDataset(BaseDataset):
    """BTAD: ``<category>/train/ok``, ``test/ok|ko`` and ``ground_truth/ko``."""

    layout = "btad"


class CustomDataset(BaseDataset):
    """Custom data: ``data_rgb/normal|<defect type>/{category} {freq} {dimming}[_extra].png``."""

    layout = "custom"


def _find_reader(root: Path, layout: str | None) -> DatasetReader:
    """Find the reader of a folder.

    Args:
        root: the folder.
        layout: the row of `DATASETS` that it must fit, or None for the first that does.

    Raises:
        InputError: for a folder of no known layout, or of another one.
    """
    # A folder may fit several layouts: that of the class is tried first.
    if layout is not None and root.is_dir() and DATASETS[layout].detect(root):
        return DATASETS[layout]

    found = detect_layout(root)
    if found is None:
        raise InputError(
            Sentence.of("dataset unknown_folder", root=str(root), datasets=", ".join(DATASETS))
        )
    if layout is not None:
        raise InputError(
            Sentence.of("dataset other_layout", root=str(root), found=found, layout=layout)
        )
    return DATASETS[found]


def _list_samples(
    reader: DatasetReader, root: Path, category: str | Sequence[str], reading: Reading
) -> list[Sample]:
    """List the samples of the categories that are wanted.

    Raises:
        InputError: for a category that is not there.
    """
    known = reader.list_categories(root, reading)
    wanted = [category] if isinstance(category, str) else list(category)
    for name in wanted:
        if name not in known and name != "all":
            raise InputError(
                Sentence.of(
                    "dataset category",
                    name=repr(name),
                    root=str(root),
                    nearest=nearest_of(name, known),
                )
            )

    samples: list[Sample] = []
    names = known if "all" in wanted else wanted
    for name in names:
        samples += reader.list_samples(root, name, reading)
    return samples
