"""One loader: the batches of a list of samples, in an order that seed and epoch decide."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from adray.data.base import Sample
from adray.data.decoded_file import Decoded
from adray.data.near_duplicates import small_copies
from adray.data.normalization import normalize_images
from adray.data.pixels import (
    FromDevice,
    FromMap,
    FromWorkers,
    InsideTable,
    LoaderPixels,
    PixelSource,
    PixelStore,
)
from adray.settings import Settings
from adray.types import Batch


class Loader:
    """Batches of a list of samples, on a device.

    On a GPU a resident loader uploads its images when it is made.

    Args:
        samples: what to load.
        store: holds their pixels.
        batch_size: images per batch, the last one may have fewer.
        device: where batches shall be.
        normalize: one of `NORMALIZATIONS`.
        shuffle_seed: seed of the order, in which labelled defects are repeated until they are as
            many as the normal images; None keeps the order of `samples`.
        stream: None for resident images; else the settings of the worker processes that stream
            them.

    Attributes:
        samples: in the order that `Batch.index` counts.
        has_mask: (N,) bool, True for normal images and for defects with a mask.
        any_mask: whether any image of this loader has a mask; without one `Batch.mask` is None.
        batch_size: images per batch.
        device: where batches are.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        store: PixelStore,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        normalize: str = "imagenet",
        shuffle_seed: int | None = None,
        stream: Settings | None = None,
    ) -> None:
        self.samples = list(samples)
        self.has_mask = np.array([s.label == 0 or s.has_mask for s in self.samples], dtype=bool)
        self.any_mask = any(sample.has_mask for sample in self.samples)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._normalize = normalize

        label = np.array([sample.label for sample in self.samples], dtype=np.int64)
        self._label = torch.from_numpy(label).to(self.device)
        self._tile = _tile_numbers(self.samples, self.device)
        self._normal = np.flatnonzero(label == 0)
        self._defective = np.flatnonzero(label == 1)
        self._shuffle_seed = shuffle_seed
        self._epoch = 0
        # Labelled defects come more than once in an epoch.
        self._images_per_epoch = len(self.order())

        self._pixels = LoaderPixels(store, store.places(self.samples), self.any_mask)
        self._inside = InsideTable(store, self.samples, self.device)
        self._source = self._open_source(stream)

    def _open_source(self, stream: Settings | None) -> PixelSource:
        """Choose how batches are read."""
        if stream is not None:
            return FromWorkers(self._pixels, self.device, stream)
        if self.device.type == "cpu":  # the memory map is as good as a copy
            return FromMap(self._pixels)
        return FromDevice(self._pixels, self.device)

    def __len__(self) -> int:
        """Count the batches."""
        full, rest = divmod(self._images_per_epoch, self.batch_size)
        return full + bool(rest)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass: it depends on the seed and `epoch` alone."""
        self._epoch = epoch

    def order(self) -> np.ndarray:
        """Give the positions in `samples` of the images of this epoch, in their order."""
        if self._shuffle_seed is None:
            return np.arange(len(self.samples))

        rng = np.random.default_rng([self._shuffle_seed, self._epoch])
        if len(self._defective) == 0:
            return rng.permutation(len(self.samples))

        # Labelled defects come round in turn until they are as many as the normal images.
        wanted = max(len(self._normal), len(self._defective))
        repeated = np.resize(rng.permutation(self._defective), wanted)
        return rng.permutation(np.concatenate([self._normal, repeated]))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that was set.

        A second pass without `set_epoch` repeats the order.
        """
        order = self.order()
        rows = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        # One copy to the device for the whole epoch, none per batch. Where there is no image, torch
        # makes one empty part.
        indices = torch.from_numpy(order).to(self.device).split(self.batch_size)[: len(rows)]

        for index, (images, masks) in zip(indices, self._source.read(rows, indices), strict=True):
            yield Batch(
                image=normalize_images(images, self._normalize),
                label=self._label[index],
                mask=None if masks is None else masks.unsqueeze(1),  # (B, 1, H, W)
                index=index,
                inside=self._inside.of(index),
                tile=None if self._tile is None else self._tile[index],
            )

    def inside(self, index: Tensor) -> Tensor | None:
        """Tell which pixels of the images at (B,) positions count, see `Batch.inside`."""
        return self._inside.of(index)

    def images(self, index: int | np.ndarray) -> np.ndarray:
        """Give pixels before normalisation.

        Returns:
            (3, H, W) uint8 for one position, (B, 3, H, W) for an array of them.
        """
        images = self._pixels.store.images(self._pixels.places[np.atleast_1d(index)])
        return images[0] if np.ndim(index) == 0 else images

    def small_copies(self) -> np.ndarray:
        """Make small grey copies of all images, (N, 32, 32) uint8 at most, see `small_copies`."""
        copies = []
        for start in range(0, len(self.samples), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.samples)))
            copies.append(small_copies(self.images(rows)))
        return np.concatenate(copies)

    def find_copies(self) -> list[str]:
        """Hash the pixels of each image that another one equals, empty for all others."""
        hashes = []
        for index in range(len(self.samples)):
            pixels = self.images(index).tobytes()
            hashes.append(hashlib.blake2b(pixels, digest_size=16).hexdigest())
        counts = Counter(hashes)
        return [one if counts[one] > 1 else "" for one in hashes]

    # What trials share is kept per part of the store, since their loaders pick from it differently.

    @property
    def places(self) -> np.ndarray:
        """Give part of the store and row in it of each sample, (N, 2) int64."""
        return self._pixels.places

    @property
    def parts(self) -> list[Decoded]:
        """Give the parts of the store."""
        return self._pixels.store.parts

    @property
    def content_keys(self) -> list[str]:
        """Give for each part of the store a hash of all that decides its pixels."""
        return [part.key for part in self.parts]

    @property
    def part_sizes(self) -> list[int]:
        """Count the images of each part of the store."""
        return [len(part.images) for part in self.parts]

    def part_batches(self, number: int, batch_size: int) -> Iterator[Tensor]:
        """Yield all images of a part of the store, normalised and on the device, row by row."""
        images = self.parts[number].images
        for start in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[start : start + batch_size].copy())
            yield normalize_images(pixels.to(self.device), self._normalize)


def _tile_numbers(samples: Sequence[Sample], device: torch.device) -> Tensor | None:
    """Give the number of each tile, (N,) int64, None for whole images."""
    numbers = [sample.tile for sample in samples]
    if not numbers or numbers[0] is None:
        return None
    return torch.tensor(numbers, dtype=torch.int64, device=device)
