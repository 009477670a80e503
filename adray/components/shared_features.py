"""What a frozen backbone gives for the images of a category, in files that all trials here read.

`<cache_dir>/features/<group>-<layer>.rows` holds one tapped map of every image of a category,
training and test alike, so that models which tap different layers share those that they have in
common. The group is a hash of all that decides the maps: the network and its weights, normalisation
and precision, the kind of device, the versions of torch and timm, and the contents and geometry of
the images. A file is built by the first trial of a sweep that needs it, while others wait, and only
where the plan says that several want it; a trial by itself writes none, but reads what is there.
Whatever goes wrong with a file costs time only: the trial then runs the backbone itself.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adray.cache_folder import CacheFolder, NotWholeError, SharedWork
from adray.components.device import autocast
from adray.components.row_file import RowFile, RowWriter, byte_size, make_room
from adray.files import canonical_hash
from adray.progress_lines import watched
from adray.types import Sharing

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Raised by hand when the maps or the layout of the files change."""
WAIT_SECONDS = 900.0
"""How long a trial waits for another one to build what it needs, before it goes on by itself."""
_DISK_BYTES_PER_SECOND = 1e9
"""A backbone that gives its maps faster than this is run again rather than stored: fast GPUs do not
gain by files."""


class ImageSource(Protocol):
    """What is asked of a loader; `adray.data.loader.Loader` is one."""

    device: torch.device

    @property
    def places(self) -> np.ndarray:
        """Give the part and the row of each sample, (N, 2)."""

    @property
    def content_keys(self) -> list[str]:
        """Give a hash of each part's pixels."""

    @property
    def part_sizes(self) -> list[int]:
        """Give the number of images of each part."""

    def part_batches(self, number: int, batch_size: int) -> Iterator[Tensor]:
        """Yield all images of a part, normalised, in the order of its rows."""


class TappedNetwork(Protocol):
    """What is asked of a frozen network whose maps are shared, `TimmFeatureExtractor` for instance.

    The maps of a layer must be the same whichever others are tapped beside it.
    """

    backbone: str
    layers: tuple[str, ...]

    @property
    def weights_key(self) -> str:
        """Give a hash of the weights, the same whichever layers are tapped."""

    def tapping(self, layers: Sequence[str], seed: int) -> TappedNetwork:
        """Give the same network with other taps, or itself where that cannot be."""

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give one (B, ...) map per layer for (B, 3, H, W) images."""


@dataclass(frozen=True)
class Stage:
    """A frozen network and how it is run."""

    network: TappedNetwork
    """Gives the maps."""
    normalize: str
    """How the images that it sees are normalised, see `TrainConfig`."""
    precision: str
    """In which it runs, see `TrainConfig`."""
    seed: int
    """From which its weights were drawn where they are random."""
    device: torch.device
    """Where it runs."""
    batch_size: int
    """Images per step, which decides no map."""

    def key(self) -> str:
        """Hash all that decides the maps but the images."""
        about = {
            "format": _FORMAT,
            "backbone": self.network.backbone,
            "weights": self.network.weights_key,
            "normalize": self.normalize,
            "precision": self.precision,
            "device": self.device.type,
            "versions": [torch.__version__, metadata.version("timm")],
        }
        return canonical_hash(about)


class SharedFeatures:
    """The maps of one trial's images, as far as they are in files.

    Args:
        stage: the network.
        folder: see `adray.components.feature_folder`.
        sharing: what other trials want of the same network; None where no file is to be written.
    """

    work: list[SharedWork]
    """What was used, and who made it."""

    def __init__(self, stage: Stage, folder: CacheFolder, sharing: Sharing | None) -> None:
        self.stage = stage
        self.folder = folder
        self.sharing = sharing
        self.work = []
        self._key = stage.key()
        self._parts: dict[str, list[RowFile] | None] = {}  # by group, None where it is computed

    def open(self, loader: ImageSource) -> None:
        """Open the files of a loader's images, and build the missing ones that others want too."""
        for number in _parts_of(loader.places):
            group = self.group(loader, number)
            if group and group not in self._parts:
                self._parts[group] = self._open_part(loader, number, group)

    def group(self, loader: ImageSource, number: int) -> str:
        """Give the name of the files of a part of the images, empty where the part has none."""
        content = loader.content_keys[number]
        return canonical_hash([self._key, content])[:32] if content else ""

    def covers(self, loader: ImageSource) -> bool:
        """Tell whether all images of a loader have their maps in files."""
        groups = [self.group(loader, number) for number in _parts_of(loader.places)]
        return all(self._parts.get(group) is not None for group in groups)

    def get(self, loader: ImageSource, index: Tensor) -> tuple[Tensor, ...] | None:
        """Read the maps of the images at `index` (B,) of a loader.

        Returns:
            One (B, C, h, w) map per layer, or None where they must be computed.
        """
        places = loader.places[index.cpu().numpy()]  # (B, 2)
        pieces = []
        for number in _parts_of(places):
            rows = places[places[:, 0] == number, 1]
            maps = self._read(self.group(loader, number), rows)
            if maps is None:
                return None
            pieces.append(maps)

        if len(pieces) == 1:
            found = pieces[0]
        else:
            # The pieces follow each other by part; each image goes back to its place in the batch.
            order = np.argsort(places[:, 0], kind="stable")
            back = torch.from_numpy(np.argsort(order, kind="stable"))
            found = [torch.cat(rows)[back] for rows in zip(*pieces, strict=True)]
        return tuple(rows.to(loader.device, non_blocking=True) for rows in found)

    def _read(self, group: str, rows: np.ndarray) -> list[Tensor] | None:
        """Read rows of the files of a group, and take damaged files away."""
        files = self._parts.get(group)
        if files is None:
            return None
        try:
            return [file.read(rows) for file in files]
        except (NotWholeError, OSError) as error:
            logger.warning(
                "shared features are damaged (%s); the backbone runs again for these images", error
            )

        # The next trial finds none and builds them anew.
        for file in files:
            self.folder.remove(file.key)
        self._parts[group] = None
        return None

    def _open_part(self, loader: ImageSource, number: int, group: str) -> list[RowFile] | None:
        """Open the files of a group or build them, where others want them too.

        Whatever cannot be opened, built or waited for is computed by this trial alone: None.
        """
        # Most trials come when the files are there, and need no lock.
        with contextlib.suppress(NotWholeError, OSError):
            return self._existing(group)
        if self.sharing is None:
            return None

        try:
            with self.folder.lock(group, WAIT_SECONDS) as waited:
                return self._open_or_build(loader, number, group, waited)
        except OSError as error:
            logger.warning(
                "features of %s are computed in this trial alone, since %s cannot be used (%s); it saves time to make "
                "it writable, free disk space or raise shared_feature_gb",
                self.stage.network.backbone,
                self.folder.path,
                error,
            )
        return None

    def _existing(self, group: str, built: str = "", waited: float = 0.0) -> list[RowFile]:
        """Open the files of the own layers, and book the passes that made them.

        Args:
            group: of the files.
            built: name of the pass that this trial ran, empty for none.
            waited: seconds that it stood waiting.

        Raises:
            NotWholeError: for a damaged file.
            FileNotFoundError: for a missing one.
        """
        layers = self.stage.network.layers
        files = [RowFile(self.folder, f"{group}-{layer}") for layer in layers]

        passes = {file.about["pass"]: file.about for file in files}  # one pass made several files
        for key, about in passes.items():
            build_seconds = about["build_seconds"]
            alone_seconds = about["alone_seconds"]
            is_own = key == built
            self.work.append(
                SharedWork("features", key, build_seconds, alone_seconds, is_own, waited)
            )
            waited = 0.0  # it was waited once
        return files

    def _open_or_build(
        self, loader: ImageSource, number: int, group: str, waited: float
    ) -> list[RowFile] | None:
        """Take what another trial has built meanwhile, else build it.

        The caller holds the group's lock, for which it stood `waited` seconds.
        """
        with contextlib.suppress(NotWholeError, FileNotFoundError):
            return self._existing(group, waited=waited)

        missing = [layer for layer in self._wanted() if not self._is_whole(f"{group}-{layer}")]
        built = self._build(loader, number, group, missing)
        if not built:
            return None
        try:
            return self._existing(group, built, waited)
        except NotWholeError as error:
            raise OSError(f"files are damaged right after writing: {error}") from error

    def _wanted(self) -> list[str]:
        """List the layers that this trial or any other wants."""
        assert self.sharing is not None, "files are only written for several"
        return sorted({*self.stage.network.layers, *self.sharing.layers})

    def _is_whole(self, key: str) -> bool:
        """Tell whether a file is there and, as far as can be seen without reading it all, whole."""
        try:
            RowFile(self.folder, key)
        except (NotWholeError, OSError):
            return False
        return True

    def _build(self, loader: ImageSource, number: int, group: str, layers: Sequence[str]) -> str:
        """Run the backbone over all images of a part and write its maps, one file per layer.

        Returns:
            Name of this pass, empty where files would not save time.

        Raises:
            OSError: where the disk does not take them, or the folder's limit does not.
        """
        started = time.monotonic()
        stage = self.stage
        # Random weights may not come out the same under other taps: then it writes its own layers.
        network = stage.network.tapping(layers, stage.seed)
        count = loader.part_sizes[number]

        with contextlib.ExitStack() as stack:
            writers = []
            for layer in network.layers:
                writer = RowWriter(self.folder, f"{group}-{layer}", count)
                writers.append(stack.enter_context(writer))
            batches = loader.part_batches(number, stage.batch_size)
            spent = _fill(writers, network, stage, batches)
            if spent is None:
                logger.info(
                    "%s is as fast as a disk here: its features are not shared", network.backbone
                )
                return ""

            seconds = time.monotonic() - started
            name = uuid.uuid4().hex
            for writer in writers:
                writer.finish(**{"pass": name, "build_seconds": seconds, "alone_seconds": spent})
        logger.info(
            "computed features of %d images with %s in %.1f s", count, network.backbone, seconds
        )
        return name


def _parts_of(places: np.ndarray) -> list[int]:
    """List the parts that occur in places (N, 2), rising."""
    return np.unique(places[:, 0]).tolist()


@torch.no_grad()
def _fill(
    writers: Sequence[RowWriter],
    network: TappedNetwork,
    stage: Stage,
    batches: Iterator[Tensor],
) -> float | None:
    """Write the maps of all images.

    Returns:
        Seconds that the network took, None where it is faster than a disk.
    """
    spent = 0.0
    for step, image in enumerate(watched(batches, "features")):
        started = time.monotonic()
        with autocast(stage.device, stage.precision):
            maps = [rows.cpu() for rows in network(image)]
        seconds = time.monotonic() - started
        spent += seconds

        if step == 0:
            make_room(writers, maps)
        # The first batch warms up, so the second one is timed.
        if step == 1 and seconds * _DISK_BYTES_PER_SECOND < sum(map(byte_size, maps)):
            return None
        for rows, writer in zip(maps, writers, strict=True):
            writer.append(rows)
    return spent
