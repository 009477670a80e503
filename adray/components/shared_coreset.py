"""Coresets in files that all trials on this machine read: patches in the order of their selection.

The order does not depend on how many are wanted, so `<cache_dir>/features/<key>.rows` holds every smaller coreset as
its beginning. The key is a hash of the features' keys, the order of the training images, the embedding and the seed.
What is beside the file lets a later trial that wants more go on where the selection stopped. The nearest patches of a
coreset to the patches of some images, which take the longest of what is left, are kept likewise.
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
        self.features, self.folder = features, features.folder
        places = loader.places[loader.order()]
        groups = [features.group(loader, number) for number in range(len(loader.content_keys))]
        images = [[groups[number], row] for number, row in places.tolist()]
        self.key = canonical_hash([_FORMAT, features.stage.extractor.layers, images, list(about)])[
            :32
        ]

    def read(self, count: int) -> Tensor | None:
        """The first `count` patches of the selection, (count, D) on the host, or None where there are not so many."""
        file = self._file()
        return None if file is None or file.count < count else self._first(file, count)

    def select(
        self, patches: Tensor, count: int, largest: int, generator: torch.Generator
    ) -> Tensor:
        """Choose patches; what is missing in the file is selected under a lock and added, where others want it too.

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
                    return self._read_or_extend(
                        patches, count, max(count, largest), generator, waited
                    )
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
        file = self._file()
        if (
            file is not None
            and file.count >= count
            and (found := self._first(file, count, waited)) is not None
        ):
            return found.to(patches.device)
        begun = (
            []
            if file is None
            else [torch.tensor(p, device=patches.device) for p in file.about["passes"]]
        )
        before = 0.0 if file is None else float(file.about["build_seconds"])
        started = time.monotonic()
        passes = k_center_passes(patches, largest, generator, begun)
        chosen = patches[torch.cat(passes)]
        seconds = before + time.monotonic() - started
        about = {"passes": [p.tolist() for p in passes], "build_seconds": seconds}
        try:
            self._write(chosen, about)
        except OSError as error:
            logger.warning("the coreset is not kept for other trials: %s", error)
        logger.info(
            "selected %d patches in %.1f s, of which this trial takes %d",
            len(chosen),
            seconds - before,
            count,
        )
        self._book(count, len(chosen), seconds, waited, built=True)
        return chosen[:count]

    def _write(self, chosen: Tensor, about: dict[str, Any]) -> None:
        with RowWriter(self.folder, self.key, len(chosen)) as writer:
            make_room([writer], [chosen])
            writer.append(chosen)
            writer.finish(**about)

    def _file(self) -> RowFile | None:
        with contextlib.suppress(NotWholeError, OSError):
            return RowFile(self.folder, self.key)
        return None

    def _first(self, file: RowFile, count: int, waited: float = 0.0) -> Tensor | None:
        try:
            rows = file.read(np.arange(count))
        except (NotWholeError, OSError) as error:
            logger.warning("a shared coreset is damaged (%s) and is selected again", error)
            self.folder.remove(self.key)
            return None
        self._book(count, file.count, float(file.about["build_seconds"]), waited, built=False)
        return rows

    def _book(self, count: int, total: int, seconds: float, waited: float, *, built: bool) -> None:
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
        self.features, self.folder, self.keep = coreset.features, coreset.folder, keep
        groups = [self.features.group(loader, number) for number in range(len(loader.content_keys))]
        images = [[groups[number], row] for number, row in loader.places.tolist()]
        self.key = canonical_hash([_FORMAT, coreset.key, count, images])[:32]
        self._found = FeatureCache(len(images), loader.device, math.inf, None)
        self._seconds = 0.0
        self._files = self._open()

    def get(
        self, index: Tensor, search: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Distance to the nearest patch and its place in the coreset for the images at `index` (B,), each (B, P).

        Args:
            index: positions in the loader.
            search: finds them where they are in no file.
        """
        if self._files is not None:
            try:
                distance, neighbor = (
                    file.read(index.cpu().numpy()).to(index.device) for file in self._files
                )
            except (NotWholeError, OSError) as error:
                logger.warning("shared neighbors are damaged (%s) and are searched again", error)
                self._files = None
            else:
                return distance, neighbor
        started = time.monotonic()
        distance, neighbor = search()
        if self.keep:
            self._found.put(index, (distance, neighbor))
        self._seconds += time.monotonic() - started
        return distance, neighbor

    def close(self) -> None:
        """Keep what was found, once all images were looked at."""
        if self._files is None and self.keep and self._found.complete:
            rows = self._found.get(torch.arange(self._found.count)) or ()
            with contextlib.suppress(OSError):  # others search themselves then
                self._write(rows)
                self._book(self._seconds, built=True)

    def _write(self, rows: Sequence[Tensor]) -> None:
        with self.folder.lock(self.key, 0.0), contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(RowWriter(self.folder, key, len(rows[0])))
                for key in self._keys()
            ]
            make_room(writers, rows)
            for writer, values in zip(writers, rows, strict=True):
                writer.append(values)
                writer.finish(build_seconds=self._seconds)

    def _open(self) -> list[RowFile] | None:
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
