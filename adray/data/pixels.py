"""Where a loader's pixels come from: a store of decoded images, and three ways to read from it.

Batches come from the memory map, from a copy on the device, or through worker processes, and are
the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adray.data.base import Sample
from adray.data.cache import open_decoded
from adray.data.decoded_file import Decoded
from adray.data.geometry import Geometry
from adray.settings import Settings
from adray.types import BY_TYPE, PixelRule

_UPLOAD_ROWS = 256

Pair = tuple[Tensor, Tensor | None]
"""Images (B, 3, H, W) and masks (B, H, W), both uint8; masks are None in a loader without any."""


class PixelStore:
    """Decoded images of one or more categories, found by their sample.

    Args:
        parts: decoded images, one entry per (data set, category).
        places: part and row in it of each sample.
        geometry: of all of them.

    Attributes:
        parts: as given.
        geometry: as given.
        nbytes: size of all pixels.
    """

    def __init__(
        self,
        parts: Sequence[Decoded],
        places: dict[Sample, tuple[int, int]],
        geometry: Geometry,
    ) -> None:
        self.parts = list(parts)
        self.geometry = geometry
        self.nbytes = sum(part.nbytes for part in parts)
        self._places = places

    @classmethod
    def open(
        cls,
        samples: Sequence[Sample],
        geometry: Geometry,
        settings: Settings,
        rule: PixelRule = BY_TYPE,
    ) -> PixelStore:
        """Open the decoded images of samples.

        There is one cache file per (data set, category), whatever the split and the order.

        Args:
            samples: of one category or more.
            geometry: the size.
            settings: where the cache lies, and what is said of data sets.
            rule: how numbers become 8 bits.
        """
        groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for sample in samples:
            groups[sample.dataset, sample.category].append(sample)

        # Rows have an order of their own, since trials with other splits share the file.
        parts: list[Decoded] = []
        places = {}
        for members in groups.values():
            members.sort(key=lambda sample: (sample.key, sample.tile or 0))
            for row, sample in enumerate(members):
                places[sample] = (len(parts), row)
            parts.append(open_decoded(members, geometry, settings, rule))
        return cls(parts, places, geometry)

    def aliased(self, made: Mapping[Sample, Sample]) -> PixelStore:
        """Make a store that also finds changed samples, each by the pixels of the one it was."""
        places = {changed: self._places[sample] for changed, sample in made.items()}
        return PixelStore(self.parts, self._places | places, self.geometry)

    def joined(self, part: Decoded, samples: Sequence[Sample]) -> PixelStore:
        """Make a store of this one and one further part, with the samples of its rows."""
        places = dict(self._places)
        for row, sample in enumerate(samples):
            places[sample] = (len(self.parts), row)
        return PixelStore([*self.parts, part], places, self.geometry)

    def places(self, samples: Sequence[Sample]) -> np.ndarray:
        """Give part and row of each sample, (N, 2) int64."""
        places = [self._places[sample] for sample in samples]
        return np.array(places, dtype=np.int64).reshape(-1, 2)  # also where there is no sample

    def images(self, places: np.ndarray) -> np.ndarray:
        """Copy images out of the map: (B, 3, H, W) uint8 for (B, 2) places."""
        return _gather([part.images for part in self.parts], places)

    def masks(self, places: np.ndarray) -> np.ndarray:
        """Copy masks out of the map: (B, H, W) uint8 for (B, 2) places, zeros for none."""
        return _gather([part.masks for part in self.parts], places, self.parts[0].images.shape[2:])

    def sizes(self, places: np.ndarray) -> np.ndarray:
        """Give height and width of the images themselves, (B, 2) for (B, 2) places.

        They are known where the geometry may hide a part of an image.
        """
        found = []
        for part, row in places:
            sizes = self.parts[part].sizes
            assert sizes is not None, "a geometry that hides something notes them"
            found.append(sizes[row])
        return np.array(found, np.int64).reshape(-1, 2)

    def outside(self, samples: Sequence[Sample]) -> np.ndarray:
        """Give the part of each sample's pixels outside of the rule's range, (N,) float32."""
        found = [self.parts[part].outside[row] for part, row in self.places(samples)]
        return np.array(found, np.float32)


def _gather(
    arrays: Sequence[np.ndarray | None], places: np.ndarray, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Copy rows of several arrays of one shape, in the order of `places`.

    Args:
        arrays: one per part, (N, ...) uint8 each; a missing one reads as zeros.
        places: part and row in it, (B, 2).
        shape: of one row, in case that all arrays are missing.
    """
    # One part is the usual case: its rows need no zeros before them.
    if len(arrays) == 1 and arrays[0] is not None:
        return arrays[0][places[:, 1]]

    for array in arrays:
        if array is not None:
            shape = array.shape[1:]
    rows = np.zeros((len(places), *shape), np.uint8)
    for number in np.unique(places[:, 0]):
        array = arrays[number]
        if array is not None:
            here = places[:, 0] == number
            rows[here] = array[places[here, 1]]
    return rows


class LoaderPixels(Dataset[Pair]):
    """The pixels of one loader; an item is a whole batch, so that it costs one gather.

    Attributes:
        store: holds the pixels.
        places: part of the store and row in it of each of the loader's samples, (N, 2) int64.
        with_masks: whether batches have masks.
    """

    def __init__(self, store: PixelStore, places: np.ndarray, with_masks: bool) -> None:
        self.store = store
        self.places = places
        self.with_masks = with_masks

    def __len__(self) -> int:
        """Count the images."""
        return len(self.places)

    def __getitem__(self, index: np.ndarray) -> Pair:
        """Copy the images at `index` (B,), and their masks."""
        places = self.places[index]
        masks = torch.from_numpy(self.store.masks(places)) if self.with_masks else None
        return torch.from_numpy(self.store.images(places)), masks


class InsideTable:
    """Which pixels count of a loader's images. Images of one size share a row of it.

    Args:
        store: holds the images.
        samples: of the loader.
        device: where batches are.
    """

    def __init__(self, store: PixelStore, samples: Sequence[Sample], device: torch.device) -> None:
        self._rows: Tensor | None = None
        geometry = store.geometry
        if not geometry.hides:
            return
        tiles = [-1 if sample.tile is None else sample.tile for sample in samples]
        keys = np.column_stack((store.sizes(store.places(samples)), tiles))
        kinds, row = np.unique(keys, axis=0, return_inverse=True)
        shown = []
        for height, width, tile in kinds.astype(int).tolist():
            if geometry.tiling is None:
                shown.append(geometry.inside(height, width))
            else:
                shown.append(geometry.tile_inside(height, width, tile))
        if np.all(shown):
            return

        stacked = np.array(shown, dtype=bool).reshape(-1, 1, *geometry.frame)
        self._rows = torch.from_numpy(stacked).to(device)  # (sizes, 1, H, W)
        self._row_of = torch.from_numpy(row.reshape(-1)).to(device)  # (N,)

    def of(self, index: Tensor) -> Tensor | None:
        """Give the pixels that count of the images at (B,) positions, None where all do."""
        return None if self._rows is None else self._rows[self._row_of[index]]


class PixelSource(Protocol):
    """A way to read batches."""

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        """Yield the batches of one pass, on the loader's device.

        Args:
            rows: positions in the loader of each batch's images, (B,) each.
            indices: the same on the device.
        """
        ...


class FromMap:
    """Reads from the memory map in this process."""

    def __init__(self, pixels: LoaderPixels) -> None:
        self._pixels = pixels

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        for index in rows:
            yield self._pixels[index]


class FromDevice:
    """Keeps all pixels on the device and picks them there."""

    def __init__(self, pixels: LoaderPixels, device: torch.device) -> None:
        images = []
        masks = []
        # In chunks, so that the host never holds a second copy of all.
        for rows in torch.arange(len(pixels)).split(_UPLOAD_ROWS):
            some_images, some_masks = pixels[rows.numpy()]
            images.append(some_images.to(device))
            if some_masks is not None:
                masks.append(some_masks.to(device))
        self._images = torch.cat(images)
        self._masks = torch.cat(masks) if masks else None

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        for index in indices:
            yield self._images[index], None if self._masks is None else self._masks[index]


class FromWorkers:
    """Streams from the memory map through worker processes."""

    def __init__(self, pixels: LoaderPixels, device: torch.device, settings: Settings) -> None:
        self._device = device
        self._order = _Order()

        workers = settings.num_workers
        self._batches = DataLoader(
            pixels,
            sampler=self._order,
            batch_size=None,
            num_workers=workers,
            pin_memory=settings.pin_memory and device.type == "cuda",
            persistent_workers=settings.persistent_workers and workers > 0,
            # Forked workers inherit the map: nothing is pickled, and a cache file that is deleted
            # in mid-run stays readable.
            multiprocessing_context="fork" if workers > 0 else None,
            # Its own generator: streaming must not move the random numbers that training draws.
            generator=torch.Generator(),
        )

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        self._order.batches = rows
        for images, masks in self._batches:
            if masks is not None:
                masks = masks.to(self._device, non_blocking=True)
            yield images.to(self._device, non_blocking=True), masks


class _Order(Sampler[np.ndarray]):
    """The batches of the coming pass; persistent workers must get them through one object."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
