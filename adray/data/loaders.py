"""`get_dataloaders`: from the name of a data set to batches on a device.

Up to `settings.resident_gb` the uint8 images stay on the device (on a CPU: in the memory map) and are picked and
normalised there; above it worker processes stream them from the map. Both give the same batches.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adray.cache_folder import SharedWork
from adray.data.auxiliary import AuxiliaryImages
from adray.data.base import Sample
from adray.data.cache import Decoded, open_decoded
from adray.data.decode import Geometry
from adray.data.inspect_files import fingerprint
from adray.data.readers import list_samples
from adray.data.splits import check_training_defects
from adray.data.splits import holdout as split_holdout
from adray.data.synthetic_defects import SPLIT, draw_twins, twins_per_image
from adray.errors import InputError, nearest
from adray.settings import Settings, get_globals
from adray.types import Batch

logger = logging.getLogger(__name__)

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "minus1_1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel (RGB), of pixels in [0, 1]."""
_UPLOAD_ROWS = 256


@dataclass(frozen=True)
class Loaders:
    """The loaders of one trial.

    Attributes:
        train: training images, shuffled; labelled defects only in supervised training.
        valid: held-out normal training images, or None where none are held out.
        test: test images, in the reader's order; in a search without them the held-out images and their twins.
        fingerprint: hash of the names, contents, labels and split of all samples.
        settings: say where the data lie.
    """

    train: Loader
    valid: Loader | None
    test: Loader
    fingerprint: str
    settings: Settings

    def auxiliary(self, name: str, img_size: int, crop_size: int | None = None) -> AuxiliaryImages:
        """Images that are no product, decoded once into the cache.

        Args:
            name: a name in `AUXILIARY_SETS`, or any folder of images, relative to `dataset_dir` or absolute.
            img_size: side of the square that images are resized to, in pixels.
            crop_size: side of the centre crop taken from it, in pixels, or None.

        Raises:
            InputError: for a missing folder, and for one without a readable image.
        """
        return AuxiliaryImages(name, Geometry(img_size, crop_size), self.settings)

    @property
    def shared_work(self) -> list[SharedWork]:
        """What decoding the images cost, and who did it."""
        return [part.work for part in self.train.parts if part.work is not None]


def get_dataloaders(  # noqa: PLR0913 - the one door to all data, with the specification's parameters
    dataset_type: str | Sequence[str],
    category: str | Sequence[str],
    *,
    img_size: int = 256,
    crop_size: int | None = None,
    batch_size: int = 32,
    eval_batch_size: int | None = None,
    normalize: str | bool = "imagenet",
    holdout: float = 0.1,
    seed: int = 42,
    device: str | torch.device = "cpu",
    split_mode: str = "1cls",
    train_defects: float = 0.0,
    supervised: bool = False,
    evaluation: str = "test",
    settings: Settings | None = None,
) -> Loaders:
    """Make the loaders of one training: data sets and categories merged into one set.

    Args:
        dataset_type: name of a data set, or several.
        category: name of a category, several, or ``"all"``.
        img_size: side of the square that images are resized to, in pixels.
        crop_size: side of the centre crop taken from it, in pixels, or None.
        batch_size: images per training batch.
        eval_batch_size: images per validation and test batch; None for `batch_size`.
        normalize: one of `NORMALIZATIONS`; True means ``"imagenet"``, False ``"none"``.
        holdout: fraction in [0, 0.9] of the training normals kept apart for validation.
        seed: chooses the split, the held-out images and the order of training.
        device: where batches are.
        split_mode: which of VisA's splits.
        train_defects: fraction in [0, 0.9] of the defects that train, for data without a split.
        supervised: keep the labelled defects of the training split; else they are in no loader.
        evaluation: ``"test"``, or ``"synthetic"`` for a test loader of the held-out images and defective twins of them.
        settings: paths and budgets; None for those of this process.

    Raises:
        InputError: for sizes that cannot be, names that are not there, files that cannot be decoded, a category
            without normal training images, supervised training without labelled defects and their masks, or a
            synthetic evaluation without held-out images.
    """
    settings = settings or get_globals()
    geometry = Geometry(img_size, crop_size)
    how = normalization_name(normalize)
    eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
    _check_batch_sizes(batch_size=batch_size, eval_batch_size=eval_batch_size)
    samples = list_samples(
        dataset_type,
        category,
        settings,
        seed=seed,
        split_mode=split_mode,
        train_defects=train_defects,
    )
    _check_training_normals(samples)
    if supervised:
        check_training_defects(samples)
    train, held_out = split_holdout(samples, holdout, seed)
    train = [sample for sample in train if supervised or sample.label == 0]
    test = [sample for sample in samples if sample.split == "test"]
    store = PixelStore.open(samples, geometry, settings)
    if evaluation == SPLIT:
        store, test = _with_twins(store, held_out, seed)
    _mention_gaps(test, held_out, holdout)
    resident = store.nbytes <= settings.resident_gb * 1e9
    make = functools.partial(
        Loader, store=store, device=device, normalize=how, stream=None if resident else settings
    )
    return Loaders(
        train=make(train, batch_size=batch_size, shuffle_seed=seed),
        valid=make(held_out, batch_size=eval_batch_size) if held_out else None,
        test=make(test, batch_size=eval_batch_size),
        fingerprint=fingerprint(samples, settings.cache_dir),
        settings=settings,
    )


class PixelStore:
    """Decoded images of one or more categories, found by their sample.

    Attributes:
        parts: decoded images, one entry per (data set, category).
        nbytes: size of all pixels.
    """

    def __init__(self, parts: Sequence[Decoded], places: dict[Sample, tuple[int, int]]) -> None:
        self.parts, self._places = list(parts), places
        self.nbytes = sum(
            p.images.nbytes + (0 if p.masks is None else p.masks.nbytes) for p in parts
        )

    @classmethod
    def open(cls, samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> PixelStore:
        """Open the decoded images, one cache file per (data set, category), whatever the split and the order."""
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample.dataset, sample.category), []).append(sample)
        parts, places = [], {}
        for number, members in enumerate(groups.values()):
            members.sort(key=lambda sample: sample.key)
            parts.append(open_decoded(members, geometry, settings))
            places.update({sample: (number, row) for row, sample in enumerate(members)})
        return cls(parts, places)

    def joined(self, part: Decoded, samples: Sequence[Sample]) -> PixelStore:
        """This store and one further part, with the samples of its rows."""
        places = {sample: (len(self.parts), row) for row, sample in enumerate(samples)}
        return PixelStore([*self.parts, part], self._places | places)

    def places(self, samples: Sequence[Sample]) -> np.ndarray:
        """Part and row of each sample, (N, 2) int64."""
        return np.array([self._places[sample] for sample in samples], dtype=np.int64).reshape(
            -1, 2
        )  # (N, 2)

    def images(self, places: np.ndarray) -> np.ndarray:
        """Copy images out of the map: (B, 3, H, W) uint8 for (B, 2) places."""
        return _gather([part.images for part in self.parts], places)

    def masks(self, places: np.ndarray) -> np.ndarray:
        """Copy masks out of the map: (B, H, W) uint8 for (B, 2) places, zero where there is none."""
        return _gather([part.masks for part in self.parts], places, self.parts[0].images.shape[2:])


def _with_twins(
    store: PixelStore, held_out: Sequence[Sample], seed: int
) -> tuple[PixelStore, list[Sample]]:
    """Add defective twins of the held-out images: the larger store, and the images with their twins behind them.

    Raises:
        InputError: where no image is held out.
    """
    if not held_out:
        raise InputError(
            "no training images are held out to draw defects on; set holdout to 0.1 or more"
        )
    counts = Counter((sample.dataset, sample.category) for sample in held_out)
    names, twins = [], []
    for sample in held_out:
        image = store.images(store.places([sample]))[0]
        count = twins_per_image(counts[sample.dataset, sample.category])
        for number, twin in enumerate(draw_twins(image, sample.key, seed, count)):
            key = f"{sample.key}#{number}"
            names.append(
                replace(
                    sample,
                    label=1,
                    defect_type=twin.kind,
                    split=SPLIT,
                    mask_path=None,
                    relative_path=key,
                )
            )
            twins.append(twin)
    images, masks = (
        np.stack([twin.image for twin in twins]),
        np.stack([twin.mask for twin in twins]),
    )
    drawn = Decoded(images, masks, hashlib.blake2b(images.tobytes(), digest_size=16).hexdigest())
    return store.joined(drawn, names), [*held_out, *names]


def _gather(
    arrays: Sequence[np.ndarray | None], places: np.ndarray, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Rows of several arrays of one shape, in the order of `places`; a missing array reads as zeros."""
    if len(arrays) == 1 and arrays[0] is not None:
        return arrays[0][places[:, 1]]
    shape = next((array.shape[1:] for array in arrays if array is not None), shape)
    rows = np.zeros((len(places), *shape), np.uint8)
    for number in np.unique(places[:, 0]):
        array, here = arrays[number], places[:, 0] == number
        if array is not None:
            rows[here] = array[places[here, 1]]
    return rows


class Loader:
    """Batches of a list of samples, on a device.

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
        drop_last: bool = False,
    ) -> None:
        """Prepare the batches; on a GPU a resident loader uploads its images here.

        Args:
            samples: what to load.
            store: holds their pixels.
            batch_size: images per batch, the last one may have fewer.
            device: where batches shall be.
            normalize: one of `NORMALIZATIONS`.
            shuffle_seed: seed of the order, in which labelled defects are repeated until they are as many as the
                normal images; None keeps the order of `samples`.
            stream: None for resident images; else the settings of the worker processes that stream them.
            drop_last: leave out a last batch that is not full.
        """
        self.samples = list(samples)
        self.has_mask = np.array([s.label == 0 or s.has_mask for s in self.samples], dtype=bool)
        self.any_mask = any(sample.has_mask for sample in self.samples)
        self.batch_size, self.device = batch_size, torch.device(device)
        self._normalize, self._shuffle_seed, self._drop_last, self._epoch = (
            normalize,
            shuffle_seed,
            drop_last,
            0,
        )
        self._label = torch.tensor(
            [s.label for s in self.samples], dtype=torch.int64, device=self.device
        )
        self._rows_by_label = [
            np.flatnonzero([s.label == label for s in self.samples]) for label in (0, 1)
        ]
        self._count = len(self.order())
        self._pixels = _Pixels(store, store.places(self.samples), self.any_mask)
        self._source: _FromMap | _FromDevice | _FromWorkers
        if stream is not None:
            self._source = _FromWorkers(self._pixels, self.device, stream)
        elif self.device.type == "cpu":
            self._source = _FromMap(self._pixels)
        else:
            self._source = _FromDevice(self._pixels, self.device)

    def __len__(self) -> int:
        """Number of batches."""
        full, rest = divmod(self._count, self.batch_size)
        return full + bool(rest and not self._drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that was set; a second pass without `set_epoch` repeats the order."""
        order = self.order()
        # one copy to the device for the whole epoch, none per batch
        indices = torch.from_numpy(order).to(self.device).split(self.batch_size)
        rows = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)][
            : len(self)
        ]
        for index, (images, masks) in zip(indices, self._source.read(rows, indices), strict=False):
            yield Batch(
                image=normalize_images(images, self._normalize),
                label=self._label[index],
                mask=None if masks is None else masks.unsqueeze(1),  # (B, H, W) -> (B, 1, H, W)
                index=index,
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass: it depends on the seed and `epoch` alone."""
        self._epoch = epoch

    def images(self, index: int | np.ndarray) -> np.ndarray:
        """Pixels before normalisation: (3, H, W) uint8 for one position, (B, 3, H, W) for an array of them."""
        images = self._pixels.store.images(self._pixels.places[np.atleast_1d(index)])
        return images[0] if np.ndim(index) == 0 else images

    # What is shared between trials is kept per part of the store, since their loaders pick from it differently

    @property
    def places(self) -> np.ndarray:
        """Part of the store and row in it of each sample, (N, 2) int64."""
        return self._pixels.places

    @property
    def parts(self) -> list[Decoded]:
        """The parts of the store."""
        return self._pixels.store.parts

    @property
    def content_keys(self) -> list[str]:
        """For each part of the store a hash of all that decides its pixels."""
        return [part.key for part in self.parts]

    @property
    def part_sizes(self) -> list[int]:
        """Number of images of each part of the store."""
        return [len(part.images) for part in self.parts]

    def part_batches(self, number: int, batch_size: int) -> Iterator[Tensor]:
        """All images of a part of the store, normalised and on the device, in the order of its rows."""
        images = self.parts[number].images
        for start in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[start : start + batch_size].copy())
            yield normalize_images(pixels.to(self.device), self._normalize)

    def order(self) -> np.ndarray:
        """Positions in `samples` of the images of the epoch that was set, in their order."""
        if self._shuffle_seed is None:
            return np.arange(len(self.samples))
        rng = np.random.default_rng([self._shuffle_seed, self._epoch])
        normal, defective = self._rows_by_label
        if len(defective):
            repeated = np.resize(rng.permutation(defective), max(len(normal), len(defective)))
            return rng.permutation(np.concatenate([normal, repeated]))
        return rng.permutation(len(self.samples))


Pair = tuple[Tensor, Tensor | None]
"""Images (B, 3, H, W) and masks (B, H, W), both uint8; masks are None in a loader without any."""


class _Pixels(Dataset[Pair]):
    """The pixels of one loader; an item is a whole batch, so that it costs one gather."""

    def __init__(self, store: PixelStore, places: np.ndarray, with_masks: bool) -> None:
        self.store, self.places, self.with_masks = store, places, with_masks

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: np.ndarray) -> Pair:
        places = self.places[index]
        masks = torch.from_numpy(self.store.masks(places)) if self.with_masks else None
        return torch.from_numpy(self.store.images(places)), masks


class _FromMap:
    """Reads from the memory map in this process."""

    def __init__(self, pixels: _Pixels) -> None:
        self._pixels = pixels

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        return (self._pixels[index] for index in rows)


class _FromDevice:
    """Keeps all pixels on the device and picks them there."""

    def __init__(self, pixels: _Pixels, device: torch.device) -> None:
        starts = range(0, len(pixels), _UPLOAD_ROWS)
        chunks = [pixels[np.arange(i, min(i + _UPLOAD_ROWS, len(pixels)))] for i in starts]
        self._images = torch.cat([images.to(device) for images, _ in chunks])
        self._masks = (
            torch.cat([m.to(device) for _, m in chunks if m is not None])
            if pixels.with_masks
            else None
        )

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        for index in indices:
            yield self._images[index], None if self._masks is None else self._masks[index]


class _FromWorkers:
    """Streams from the memory map through worker processes."""

    def __init__(self, pixels: _Pixels, device: torch.device, settings: Settings) -> None:
        self._device, self._order = device, _Order()
        workers = settings.num_workers
        self._batches = DataLoader(
            pixels,
            sampler=self._order,
            batch_size=None,
            num_workers=workers,
            pin_memory=settings.pin_memory and device.type == "cuda",
            persistent_workers=settings.persistent_workers and workers > 0,
            # forked workers inherit the map: nothing is pickled, and a cache file deleted in mid-run stays readable
            multiprocessing_context="fork" if workers > 0 else None,
            # its own generator: streaming must not move the random numbers that training draws
            generator=torch.Generator(),
        )

    def read(self, rows: list[np.ndarray], indices: Sequence[Tensor]) -> Iterator[Pair]:
        self._order.batches = rows
        for images, masks in self._batches:
            on_device = images.to(self._device, non_blocking=True)
            yield on_device, None if masks is None else masks.to(self._device, non_blocking=True)


class _Order(Sampler[np.ndarray]):
    """The batches of the coming pass, as persistent workers must be told through one object."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def normalize_images(images: Tensor, how: str = "imagenet") -> Tensor:
    """Turn pixels into what a network was trained on, on their device: (x / 255 - mean) / std per channel.

    Args:
        images: (B, 3, H, W) uint8.
        how: one of `NORMALIZATIONS`.

    Returns:
        (B, 3, H, W) float32.
    """
    scale, shift = _constants(how, images.device)
    return images.to(torch.float32).mul_(scale).add_(shift)


@functools.cache
def _constants(how: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of `normalize_images`, (3, 1, 1) each, kept on the device."""
    mean, std = (
        np.array(values).reshape(3, 1, 1) for values in NORMALIZATIONS[how]
    )  # (3,) -> (3, 1, 1)
    scale, shift = 1 / (255 * std), -mean / std
    make = functools.partial(torch.tensor, dtype=torch.float32, device=device)
    return make(scale), make(shift)


def normalization_name(normalize: str | bool) -> str:
    """The row of `NORMALIZATIONS` that is meant; True and False are the specification's imagenet and none.

    Raises:
        InputError: for another name.
    """
    name = (
        {True: "imagenet", False: "none"}[normalize] if isinstance(normalize, bool) else normalize
    )
    if name not in NORMALIZATIONS:
        raise InputError(f"normalize: {name!r} is unknown; {nearest(name, NORMALIZATIONS)}")
    return name


def _check_batch_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{name} is {size!r}; give a whole number of images, at least 1")


def _check_training_normals(samples: Sequence[Sample]) -> None:
    names = {(s.dataset, s.category) for s in samples}
    trained = {(s.dataset, s.category) for s in samples if s.split == "train" and s.label == 0}
    for dataset, category in sorted(names - trained):
        raise InputError(
            f"{dataset}/{category} has no normal training images; add some or leave the category out"
        )
    if not samples:
        raise InputError("the data set has no images; check dataset_type, category and dataset_dir")


def _mention_gaps(test: Sequence[Sample], held_out: Sequence[Sample], holdout: float) -> None:
    """Say once what figures the data cannot give."""
    defects = [sample for sample in test if sample.label == 1]
    bare = sum(not sample.has_mask for sample in defects)
    if bare:
        logger.warning(
            "%d of %d defective test images have no mask; pixel metrics leave them out",
            bare,
            len(defects),
        )
    if holdout > 0 and not held_out:
        logger.warning(
            "too few training images to hold one out; what needs held-out images reads n/a"
        )
