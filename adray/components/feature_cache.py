"""What a frozen stage gave for each training image, computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adray.components.row_file import memory_layout


class FeatureCache:
    """Features of N images by index, on the device, in host memory or in a memory-mapped file, whichever fits.

    Args:
        count: number of images N.
        device: where features are wanted.
        memory_bytes: above this the cache is a file.
        directory: folder of that file, which has no name there and goes with the process; None keeps nothing then,
            for features that lie in a file already.
    """

    def __init__(
        self, count: int, device: torch.device, memory_bytes: float, directory: str | Path | None
    ) -> None:
        self.count, self.device = count, device
        self.memory_bytes, self.directory = (
            memory_bytes,
            None if directory is None else Path(directory),
        )
        self.complete = False
        self._filled = torch.zeros(count, dtype=torch.bool)
        self._stores: list[Tensor] = []
        self._layouts: list[tuple[list[int], list[int]]] = []

    def get(self, index: Tensor) -> tuple[Tensor, ...] | None:
        """Features of the images at `index` (B,), or None while one of them is missing."""
        if not self.complete and not bool(self._filled[index.cpu()].all()):
            return None
        stored = (store[index.to(store.device)].to(self.device) for store in self._stores)
        return tuple(
            rows.permute(back) for rows, (_, back) in zip(stored, self._layouts, strict=True)
        )

    def put(self, index: Tensor, features: tuple[Tensor, ...]) -> None:
        """Keep `features`, each (B, ...), of the images at `index` (B,)."""
        if not self._stores:
            if self.directory is None and _row_bytes(features) * self.count > self.memory_bytes:
                return
            self._layouts = [memory_layout(feature) for feature in features]
            self._stores = self._allocate(
                [f.permute(to) for f, (to, _) in zip(features, self._layouts, strict=True)]
            )
        for store, feature, (to, _) in zip(self._stores, features, self._layouts, strict=True):
            store[index.to(store.device)] = feature.permute(to).to(store.device)
        self._filled[index.cpu()] = True
        self.complete = bool(self._filled.all())

    def _allocate(self, features: list[Tensor]) -> list[Tensor]:
        needed = _row_bytes(features) * self.count
        if needed > self.memory_bytes and self.directory is not None:
            return [_on_disk(f, self.count, self.directory) for f in features]
        place = (
            self.device
            if self.device.type == "cpu" or needed < _free_on_device(self.device) / 2
            else "cpu"
        )
        return [
            torch.empty((self.count, *f.shape[1:]), dtype=f.dtype, device=place) for f in features
        ]


def _on_disk(feature: Tensor, count: int, directory: Path) -> Tensor:
    """Room for `count` rows like those of `feature` in a file that has no name."""
    elements = count * feature[0].numel()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="features-") as file:
        file.truncate(elements * feature.element_size())
        stored = torch.from_file(file.name, shared=True, size=elements, dtype=feature.dtype)
    return stored.view(count, *feature.shape[1:])


def _row_bytes(features: Sequence[Tensor]) -> int:
    return sum(f[0].numel() * f.element_size() for f in features)


def _free_on_device(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]
