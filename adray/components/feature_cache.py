"""What a frozen stage gave for each training image, computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adray.components.row_file import byte_size, inverse_order, memory_layout


class FeatureCache:
    """Features of N images by index: on the device, on the host or in a file, whichever fits.

    Args:
        count: number of images N.
        device: where features are wanted.
        memory_bytes: above this the cache is a memory-mapped file.
        directory: folder of that file, which has no name there and goes with the process; None
            keeps nothing then, for features that lie in a file already.
    """

    complete: bool
    """True once all images have their features."""

    def __init__(
        self, count: int, device: torch.device, memory_bytes: float, directory: str | Path | None
    ) -> None:
        self.count = count
        self.device = device
        self.memory_bytes = memory_bytes
        self.directory = None if directory is None else Path(directory)
        self.complete = False
        self._filled = torch.zeros(count, dtype=torch.bool)
        self._stores: list[Tensor] = []
        self._layouts: list[list[int]] = []

    def get(self, index: Tensor) -> tuple[Tensor, ...] | None:
        """Give the features of the images at `index` (B,), or None while one of them is missing."""
        if not self.complete and not bool(self._filled[index.cpu()].all()):
            return None

        found = []
        for store, axes in zip(self._stores, self._layouts, strict=True):
            rows = store[index.to(store.device)].to(self.device)
            found.append(rows.permute(inverse_order(axes)))
        return tuple(found)

    def put(self, index: Tensor, features: tuple[Tensor, ...]) -> None:
        """Keep `features`, each (B, ...), of the images at `index` (B,)."""
        if not self._stores:
            needed = self.count * sum(byte_size(feature[0]) for feature in features)
            if needed > self.memory_bytes and self.directory is None:
                return
            self._allocate(features, needed)

        for store, feature, axes in zip(self._stores, features, self._layouts, strict=True):
            store[index.to(store.device)] = feature.permute(axes).to(store.device)
        self._filled[index.cpu()] = True
        self.complete = bool(self._filled.all())

    def _allocate(self, features: Sequence[Tensor], needed: int) -> None:
        """Make room for the features of all images, `needed` bytes, where they fit."""
        self._layouts = [memory_layout(feature) for feature in features]
        rows = []
        for feature, axes in zip(features, self._layouts, strict=True):
            rows.append(feature.permute(axes)[0])

        if needed > self.memory_bytes and self.directory is not None:
            self._stores = [_on_disk(row, self.count, self.directory) for row in rows]
            return
        place = self.device
        # A GPU keeps half of what is free for the training itself.
        if place.type != "cpu" and needed >= _free_on_device(place) / 2:
            place = torch.device("cpu")
        for row in rows:
            shape = (self.count, *row.shape)
            self._stores.append(torch.empty(shape, dtype=row.dtype, device=place))


def _on_disk(row: Tensor, count: int, directory: Path) -> Tensor:
    """Make room for `count` rows like this one in a file that has no name."""
    elements = count * row.numel()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="features-") as file:
        file.truncate(elements * row.element_size())
        stored = torch.from_file(file.name, shared=True, size=elements, dtype=row.dtype)
    return stored.view(count, *row.shape)


def _free_on_device(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]
