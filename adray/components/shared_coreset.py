"""Coresets in files that all trials on this machine read: patches in the order of their selection.

The order does not depend on how many are wanted, so `<cache_dir>/features/<key>.rows` holds every
smaller coreset as its beginning. The key is a hash of the features' keys, the order of the training
images, the embedding and the seed. What is beside the file lets a later trial that wants more go on
where the selection stopped. The nearest patches of a coreset to the patches of some images, which
take the longest of what is left, are kept likewise.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adray.cache_folder import NotWholeError, SharedWork
from adray.components.feature_cache import FeatureCache
from adray.components.k_center_greedy import k_center_greedy, k_center_passes
from adray.components.row_file import RowFile, RowWriter, make_room
from adray.components.shared_features import WAIT_SECONDS, SharedFeatures
from adray.files import canonical_hash
from adray.types import Json

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised by hand when the selection or the layout of the file changes."""


class SharedCoreset:
    """The coreset of one training's patches.

    Args:
        features: of the same trial.
        loader: of the training images, in whose order the patches come.
        about: plain values that decide the patches, beyond the features, and the selection.
    """

    def __init__(self, features: SharedFeatures, loader: Any, about: Sequence[Any]) -> None:
        self.features = features
        self.folder = features.folder
        images = _image_keys(features, loader, loader.places[loader.order()])
        layers = features.stage.network.layers
        self.key = canonical_hash([_FORMAT, layers, images, list(about)])[:32]

    def read(self, count: int) -> Tensor | None:
        """Read the first `count` patches of the selection.

        Returns:
            (count, D) on the host, or None where there are not so many.
        """
        file = self._file()
        if file is None or file.count < count:
            return None
        return self._first(file, count)

    def select(
        self, patches: Tensor, count: int, largest: int, generator: torch.Generator
    ) -> Tensor:
        """Choose patches, and add what is missing in the file to it where others want it too.

        Args:
            patches: (N, D) float32, all of them.
            count: patches wanted.
            largest: patches that the trial which wants most of them will want.
            generator: of the start point, on the CPU.

        Returns:
            (count, D), on the device of `patches`.
        """
        if self.features.sharing is not None:
            try:
                with self.folder.lock(self.key, WAIT_SECONDS) as waited:
                    largest = max(count, largest)
                    return self._read_or_extend(patches, count, largest, generator, waited)
            except OSError as error:
                logger.warning(
                    "the coreset is selected in this trial alone: %s cannot be used (%s)",
                    self.key,
                    error,
                )
        return patches[k_center_greedy(patches, count, generator)]

    def _read_or_extend(
        self, patches: Tensor, count: int, largest: int, generator: torch.Generator, waited: float
    ) -> Tensor:
        """Take what another trial has selected meanwhile, else go on where the file stops.

        The caller holds the lock, for which it stood `waited` seconds.
        """
        # Whoever held the lock before may have selected enough.
        file = self._file()
        if file is not None and file.count >= count:
            found = self._first(file, count, waited)
            if found is not None:
                return found.to(patches.device)

        done = []
        seconds_before = 0.0
        if file is not None:
            done = [torch.tensor(rows, device=patches.device) for rows in file.about["passes"]]
            seconds_before = float(file.about["build_seconds"])

        started = time.monotonic()
        passes = k_center_passes(patches, largest, generator, done)
        chosen = patches[torch.cat(passes)]
        spent = time.monotonic() - started
        seconds = seconds_before + spent

        about = {"passes": [rows.tolist() for rows in passes], "build_seconds": seconds}
        try:
            self._write(chosen, about)
        except OSError as error:
            logger.warning("the coreset is not kept for other trials: %s", error)
        logger.info(
            "selected %d patches in %.1f s, of which this trial takes %d", len(chosen), spent, count
        )
        self._book(count, len(chosen), seconds, waited, built=True)
        return chosen[:count]

    def _write(self, chosen: Tensor, about: Json) -> None:
        with RowWriter(self.folder, self.key, len(chosen)) as writer:
            make_room([writer], [chosen])
            writer.append(chosen)
            writer.finish(**about)

    def _file(self) -> RowFile | None:
        """Open the file where it is there and, as far as one sees without reading it all, whole."""
        with contextlib.suppress(NotWholeError, OSError):
            return RowFile(self.folder, self.key)
        return None

    def _first(self, file: RowFile, count: int, waited: float = 0.0) -> Tensor | None:
        """Read the first rows of a file, which is taken away where they are damaged."""
        try:
            rows = file.read(np.arange(count))
        except (NotWholeError, OSError) as error:
            logger.warning("a shared coreset is damaged (%s) and is selected again", error)
            self.folder.remove(self.key)
            return None
        self._book(count, file.count, float(file.about["build_seconds"]), waited, built=False)
        return rows

    def _book(self, count: int, total: int, seconds: float, waited: float, *, built: bool) -> None:
        """Note that `count` of `total` patches, selected in `seconds`, were used."""
        alone = seconds * count / total
        self.features.work.append(SharedWork("coreset", self.key, seconds, alone, built, waited))


class SharedNeighbors:
    """The nearest patches in a coreset to all patches of a loader's images.

    Args:
        coreset: the coreset.
        count: patches of it that are looked among.
        loader: of the images, in a fixed order.
        keep: whether others want what is found.
    """

    def __init__(self, coreset: SharedCoreset, count: int, loader: Any, keep: bool) -> None:
        self.features = coreset.features
        self.folder = coreset.folder
        self.keep = keep
        images = _image_keys(self.features, loader, loader.places)
        self.key = canonical_hash([_FORMAT, coreset.key, count, images])[:32]
        self._found = FeatureCache(len(images), loader.device, math.inf, None)
        self._seconds = 0.0
        self._files = self._open()

    def get(
        self, index: Tensor, search: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest patches for the images at `index` (B,).

        Args:
            index: positions in the loader.
            search: finds them where they are in no file.

        Returns:
            Distance to the nearest patch and its place in the coreset, each (B, P).
        """
        found = self._read(index)
        if found is not None:
            return found

        started = time.monotonic()
        distance, neighbor = search()
        if self.keep:
            self._found.put(index, (distance, neighbor))
        self._seconds += time.monotonic() - started
        return distance, neighbor

    def _read(self, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Read what the files have of some images, and give up damaged files."""
        if self._files is None:
            return None
        rows = index.cpu().numpy()
        try:
            distance, neighbor = [file.read(rows).to(index.device) for file in self._files]
        except (NotWholeError, OSError) as error:
            logger.warning("shared neighbors are damaged (%s) and are searched again", error)
            self._files = None
            return None
        return distance, neighbor

    def close(self) -> None:
        """Keep what was found, once all images were looked at."""
        if self._files is None and self.keep and self._found.complete:
            rows = self._found.get(torch.arange(self._found.count)) or ()
            with contextlib.suppress(OSError):  # others search themselves then
                self._write(rows)
                self._book(self._seconds, built=True)

    def _write(self, rows: Sequence[Tensor]) -> None:
        """Write distances and places to a file each, unless another trial is doing so."""
        with self.folder.lock(self.key, 0.0), contextlib.ExitStack() as stack:
            writers = []
            for key in self._keys():
                writer = RowWriter(self.folder, key, len(rows[0]))
                writers.append(stack.enter_context(writer))

            make_room(writers, rows)
            for writer, values in zip(writers, rows, strict=True):
                writer.append(values)
                writer.finish(build_seconds=self._seconds)

    def _open(self) -> list[RowFile] | None:
        """Open the files, where both are there and whole."""
        try:
            files = [RowFile(self.folder, key) for key in self._keys()]
        except (NotWholeError, OSError):
            return None
        self._book(float(files[0].about["build_seconds"]), built=False)
        return files

    def _keys(self) -> tuple[str, str]:
        return f"{self.key}-distance", f"{self.key}-neighbor"

    def _book(self, seconds: float, *, built: bool) -> None:
        self.features.work.append(SharedWork("neighbors", self.key, seconds, seconds, built))


def _image_keys(features: SharedFeatures, loader: Any, places: np.ndarray) -> list[list[Any]]:
    """Give each image's key, of what decides its features: the group of its part, and its row.

    Args:
        features: name the groups.
        loader: of the images.
        places: part and row of each image, (N, 2).
    """
    groups = [features.group(loader, number) for number in range(len(loader.content_keys))]
    return [[groups[number], row] for number, row in places.tolist()]
