"""What a frozen backbone gives for the images of a category, kept in files that all trials on this machine read.

`<cache_dir>/features/<group>-<layer>.rows` holds one tapped map of every image of a category, training and test
alike, so that models which tap different layers share those that they have in common. The group is a hash of all that
decides the maps: the network and its weights, normalisation and precision, the kind of device, the versions of torch
and timm, and the contents and geometry of the images. A file is built by the first trial of a sweep that needs it,
while others wait, and only where the plan says that several want it; a trial by itself writes none, but reads what is
there. Whatever goes wrong with a file costs time only: the trial then runs the backbone itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adray.cache_folder import CacheFolder, NotWholeError, SharedWork
from adray.components.device import move_to
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.row_file import RowFile, RowWriter, byte_size, make_room
from adray.files import canonical_hash
from adray.settings import Settings
from adray.types import Sharing

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Raised by hand when the maps or the layout of the files change."""
WAIT_SECONDS = 900.0
"""How long a trial waits for another one to build what it needs, before it goes on by itself."""
_DISK_BYTES_PER_SECOND = 1e9
"""A backbone that gives its maps faster than this is run again rather than stored: fast GPUs do not gain by files."""


class ImageSource(Protocol):
    """What is asked of a loader; `adray.data.loader.Loader` is one."""

    device: torch.device

    @property
    def places(self) -> np.ndarray:
        """Part and row of each sample, (N, 2)."""

    @property
    def content_keys(self) -> list[str]:
        """A hash of each part's pixels."""

    @property
    def part_sizes(self) -> list[int]:
        """Number of images of each part."""

    def part_batches(self, number: int, batch_size: int) -> Iterator[Tensor]:
        """All images of a part, normalised, in the order of its rows."""


@dataclass(frozen=True)
class Stage:
    """A frozen network and how it is run.

    Attributes:
        extractor: the network.
        normalize: of the images that it sees.
        precision: in which it runs.
        seed: from which its weights were drawn where they are random.
        autocast: the context in which it runs.
        batch_size: images per step, which decides no map.
    """

    extractor: TimmFeatureExtractor
    normalize: str
    precision: str
    seed: int
    autocast: Callable[[], AbstractContextManager[Any]]
    batch_size: int

    def key(self, device: torch.device) -> str:
        """Hash of all but the images that decides the maps."""
        import timm

        about = {
            "format": _FORMAT,
            "backbone": self.extractor.backbone,
            "weights": self.extractor.identity["sha256"] or random_weights_key(self.extractor),
            "normalize": self.normalize,
            "precision": self.precision,
            "device": device.type,
            "versions": [torch.__version__, timm.__version__],
        }
        return canonical_hash(about)

    def tapping(self, layers: Sequence[str]) -> TimmFeatureExtractor:
        """The same network with other taps; where random weights do not come out the same, the network itself."""
        own = self.extractor
        if tuple(layers) == own.layers:
            return own
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            other = TimmFeatureExtractor(own.backbone, layers, own.weights)
        move_to(next(own.parameters()).device, other)
        mine, theirs = own.state_dict(), other.state_dict()
        same = all(torch.equal(mine[name], theirs[name]) for name in mine.keys() & theirs.keys())
        return other if same else own


def random_weights_key(extractor: TimmFeatureExtractor) -> str:
    """Hash of the first weights, which all taps have; what comes after them was drawn from the same random numbers."""
    digest = hashlib.sha256()
    for name, values in extractor.state_dict().items():
        if not name.startswith(("net.layer2", "net.layer3", "net.layer4")):
            digest.update(name.encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()


def feature_folder(settings: Settings) -> CacheFolder:
    """Where shared features lie."""
    folder = Path(settings.cache_dir).expanduser() / "features"
    return CacheFolder(folder, ".rows", ".json", int(settings.shared_feature_gb * 1e9))


class SharedFeatures:
    """The maps of one trial's images, as far as they are in files.

    Args:
        stage: the network.
        folder: see `feature_folder`.
        sharing: what other trials want of the same network; None where no file is to be written.

    Attributes:
        work: what was used, and who made it.
    """

    def __init__(self, stage: Stage, folder: CacheFolder, sharing: Sharing | None) -> None:
        self.stage, self.folder, self.sharing = stage, folder, sharing
        self.work: list[SharedWork] = []
        self._parts: dict[str, list[RowFile] | None] = {}
        self._key = ""

    def open(self, loader: ImageSource) -> None:
        """Open the files of a loader's images; build those that are missing, where others want them too."""
        self._key = self._key or self.stage.key(loader.device)
        for number in np.unique(loader.places[:, 0]).tolist():
            group = self.group(loader, number)
            if group and group not in self._parts:
                self._parts[group] = self._open_part(loader, number, group)

    def group(self, loader: ImageSource, number: int) -> str:
        """What the files of a part of the loader's images are named by, empty where the part has no name."""
        content = loader.content_keys[number]
        return canonical_hash([self._key, content])[:32] if content else ""

    def covers(self, loader: ImageSource) -> bool:
        """Whether all images of a loader have their maps in files."""
        return all(
            self._parts.get(self.group(loader, number)) is not None
            for number in np.unique(loader.places[:, 0]).tolist()
        )

    def get(self, loader: ImageSource, index: Tensor) -> tuple[Tensor, ...] | None:
        """The maps of the images at `index` (B,) of a loader, (B, C, h, w) each; None where they must be computed."""
        places = loader.places[index.cpu().numpy()]
        pieces = []
        for number in np.unique(places[:, 0]).tolist():
            maps = self._read(self.group(loader, number), places[places[:, 0] == number, 1])
            if maps is None:
                return None
            pieces.append(maps)
        device = loader.device
        if len(pieces) == 1:
            return tuple(rows.to(device, non_blocking=True) for rows in pieces[0])
        back = torch.from_numpy(np.argsort(np.argsort(places[:, 0], kind="stable"), kind="stable"))
        return tuple(
            torch.cat(rows)[back].to(device, non_blocking=True)
            for rows in zip(*pieces, strict=True)
        )

    def _read(self, group: str, rows: np.ndarray) -> list[Tensor] | None:
        files = self._parts.get(group)
        if files is None:
            return None
        try:
            return [file.read(rows) for file in files]
        except (NotWholeError, OSError) as error:
            logger.warning(
                "shared features are damaged (%s); the backbone runs again for these images", error
            )
            for file in files:
                self.folder.remove(file.key)
            self._parts[group] = None
            return None

    def _open_part(self, loader: ImageSource, number: int, group: str) -> list[RowFile] | None:
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
                self.stage.extractor.backbone,
                self.folder.path,
                error,
            )
        return None

    def _existing(self, group: str, built: str = "", waited: float = 0.0) -> list[RowFile]:
        """Open the files of the own layers, and book the passes that made them."""
        files = [RowFile(self.folder, f"{group}-{layer}") for layer in self.stage.extractor.layers]
        for key, about in {file.about["pass"]: file.about for file in files}.items():
            figures = about["build_seconds"], about["alone_seconds"]
            self.work.append(
                SharedWork("features", key, *figures, built=key == built, waited_seconds=waited)
            )
            waited = 0.0
        return files

    def _open_or_build(
        self, loader: ImageSource, number: int, group: str, waited: float
    ) -> list[RowFile] | None:
        """Under the lock: take what another trial has built meanwhile, else build it."""
        with contextlib.suppress(NotWholeError, FileNotFoundError):
            return self._existing(group, waited=waited)
        keys = ((layer, f"{group}-{layer}") for layer in self._wanted())
        missing = [(layer, key) for layer, key in keys if not self._is_whole(key)]
        built = _build(self.stage, loader, number, missing, self.folder)
        try:
            return self._existing(group, built, waited) if built else None
        except NotWholeError as error:
            raise OSError(f"files are damaged right after writing: {error}") from error

    def _wanted(self) -> list[str]:
        assert self.sharing is not None, "files are only written for several"
        return sorted({*self.stage.extractor.layers, *self.sharing.layers})

    def _is_whole(self, key: str) -> bool:
        try:
            RowFile(self.folder, key)
        except (NotWholeError, OSError):
            return False
        return True


def _build(
    stage: Stage,
    loader: ImageSource,
    number: int,
    files: Sequence[tuple[str, str]],
    folder: CacheFolder,
) -> str:
    """Run the backbone over all images of a part and write its maps, one file per layer.

    Args:
        stage: the network.
        loader: gives the images.
        number: of the part.
        files: layer and key of each file.
        folder: where they go; the caller holds the lock of their group.

    Returns:
        Name of this pass, empty where files would not save time.

    Raises:
        OSError: where the disk does not take them, or the folder's limit does not.
    """
    started, count = time.monotonic(), loader.part_sizes[number]
    extractor = stage.tapping([layer for layer, _ in files])
    keys = dict(files)
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(RowWriter(folder, keys[layer], count)) for layer in extractor.layers
        ]
        spent = _fill(writers, extractor, stage, loader.part_batches(number, stage.batch_size))
        if spent is None:
            logger.info(
                "%s is as fast as a disk here: its features are not shared", extractor.backbone
            )
            return ""
        seconds, name = time.monotonic() - started, uuid.uuid4().hex
        for writer in writers:
            writer.finish(**{"pass": name, "build_seconds": seconds, "alone_seconds": spent})
    logger.info(
        "computed features of %d images with %s in %.1f s", count, extractor.backbone, seconds
    )
    return name


@torch.no_grad()
def _fill(
    writers: Sequence[RowWriter],
    extractor: TimmFeatureExtractor,
    stage: Stage,
    batches: Iterator[Tensor],
) -> float | None:
    """Write the maps of all images; gives the seconds that the network took, None where it is faster than a disk."""
    spent = 0.0
    for step, image in enumerate(batches):
        begun = time.monotonic()
        with stage.autocast():
            maps = [rows.cpu() for rows in extractor(image)]
        seconds = time.monotonic() - begun
        spent += seconds
        if step == 0:
            make_room(writers, maps)
        elif step == 1 and seconds * _DISK_BYTES_PER_SECOND < sum(
            map(byte_size, maps)
        ):  # the first batch warms up
            return None
        for rows, writer in zip(maps, writers, strict=True):
            writer.append(rows)
    return spent
