"""`get_dataloaders`: from the name of a data set to batches on a device.

Up to `settings.resident_gb` the uint8 images stay on the device (on a CPU: in the memory map) and
are picked and normalised there; above it worker processes stream them from the map. Both give the
same batches.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adray.cache_folder import SharedWork
from adray.conditions import PLAIN, Condition
from adray.data.auxiliary import AuxiliaryImages
from adray.data.base import SYNTHETIC, Sample, categories_of, defects_of, normals_of, split_of
from adray.data.conditions import divide
from adray.data.decoded_file import Decoded
from adray.data.file_facts import FileFacts
from adray.data.geometry import Geometry
from adray.data.inspect_files import inspect_files
from adray.data.loader import Loader
from adray.data.normalization import normalization_name
from adray.data.pixel_checks import clipped_note, data_fingerprint, mask_remarks
from adray.data.pixel_rule import rule_of
from adray.data.pixels import PixelStore
from adray.data.readers import list_samples
from adray.data.roi import roi_of
from adray.data.splits import check_training_defects
from adray.data.synthetic_defects import copies_per_image, draw_defective_copies
from adray.data.tiled_loader import TiledLoader, map_side, tiles_of
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.settings import Settings, get_globals
from adray.tiling import Tiling
from adray.types import PixelRule, Roi

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """The loaders of one trial."""

    train: Loader
    """Training images, shuffled; labelled defects only in supervised training."""
    valid: Loader | TiledLoader | None
    """Held-out normal training images, or None where none are held out."""
    test: Loader | TiledLoader
    """Test images, in the reader's order; in a search without them the held-out images and
    defective copies of them."""
    fingerprint: str
    """Hash of the names, contents, labels and split of all samples, and of how they are read."""
    pixels: PixelRule
    """How the numbers in image files became 8 bits."""
    roi: Roi | None
    """The part of images that counts; None for all of it."""
    notes: tuple[str, ...]
    """What a reader of the figures must know of the images and masks, a sentence each."""
    settings: Settings
    """Paths and budgets that the loaders were made with."""
    made: Mapping[Sample, Sample] = field(default_factory=dict)
    """Samples that a condition changed, each to the one of the data set that it was."""

    def auxiliary(self, name: str, img_size: int, crop_size: int | None = None) -> AuxiliaryImages:
        """Open images that are no product, decoded once into the cache.

        Args:
            name: a name in `AUXILIARY_SETS`, or any folder of images, relative to `dataset_dir` or
                absolute.
            img_size: side of the square that images are resized to, in pixels.
            crop_size: side of the centre crop taken from it, in pixels, or None.

        Raises:
            InputError: for a missing folder, and for one without a readable image.
        """
        return AuxiliaryImages(name, Geometry(img_size, crop_size), self.settings)

    @property
    def shared_work(self) -> list[SharedWork]:
        """Tell what decoding the images cost, and who did it."""
        return [part.work for part in self.train.parts if part.work is not None]


def get_dataloaders(  # noqa: PLR0913 - the one door to all data, as specified
    dataset_type: str | Sequence[str],
    category: str | Sequence[str],
    *,
    img_size: int = 256,
    crop_size: int | None = None,
    fit: str = "squeeze",
    aspect: float = 1.0,
    tiling: Tiling | None = None,
    tile_top: float = 0.0,
    batch_size: int = 32,
    eval_batch_size: int | None = None,
    normalize: str | bool = "imagenet",
    holdout: int | float = 0.1,
    seed: int = 42,
    device: str | torch.device = "cpu",
    split_mode: str = "1cls",
    train_defects: float = 0.0,
    supervised: bool = False,
    evaluation: str = "test",
    condition: Condition = PLAIN,
    settings: Settings | None = None,
) -> Loaders:
    """Make the loaders of one training: data sets and categories merged into one set.

    Args:
        dataset_type: name of a data set, or several.
        category: name of a category, several, or ``"all"``.
        img_size: side of the square that images are resized to, in pixels.
        crop_size: side of the centre crop taken from it, in pixels, or None.
        fit: how an image that is no square becomes one, see `adray.config.TrainConfig.fit`.
        aspect: width over height of what images become, whose shorter side is then `img_size`.
        tiling: how images are cut into tiles; None takes them whole.
        tile_top: how an image is scored by its tiles, see `adray.tiling.image_score`.
        batch_size: images per training batch.
        eval_batch_size: images per validation and test batch; None for `batch_size`.
        normalize: one of `NORMALIZATIONS`; True means ``"imagenet"``, False ``"none"``.
        holdout: fraction in [0, 0.9] of the training normals kept apart for validation, or from 1 on
            a number of them per category.
        seed: chooses the split, the held-out images and the order of training.
        device: where batches are.
        split_mode: which of VisA's splits.
        train_defects: fraction in [0, 0.9] of the defects that train, for data without a split.
        supervised: keep the labelled defects of the training split; else they are in no loader.
        evaluation: ``"test"``, or ``"synthetic"`` for a test loader of the held-out images and
            defective copies of them.
        condition: how training differs from the plain case.
        settings: paths and budgets; None for those of this process.

    Raises:
        InputError: for sizes that cannot be, names that are not there, files that cannot be
            decoded, a category without normal training images, too few images for the condition,
            supervised training without labelled defects and their masks, or a synthetic evaluation
            without held-out images.
    """
    settings = settings or get_globals()
    normalization = normalization_name(normalize)
    eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
    _check_batch_size("batch_size", batch_size)
    _check_batch_size("eval_batch_size", eval_batch_size)

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

    parts = divide(samples, holdout, seed, condition)
    train = parts.train if supervised else normals_of(parts.train)
    held_out = parts.held_out
    test = parts.test

    # All samples are opened: which of them train must not decide what a cache file holds.
    rule = rule_of(samples, settings)
    roi = roi_of(samples, settings)
    geometry = Geometry(img_size, crop_size, fit=fit, roi=roi, tiling=tiling, aspect=aspect)
    cutter = Cutter(samples, parts.made, geometry, settings)
    store = PixelStore.open(cutter.pieces(samples), geometry, settings, rule)
    store = store.aliased(cutter.made)
    pieces = cutter.pieces(held_out)
    if evaluation == SYNTHETIC:
        store, copies = _with_defective_copies(store, pieces, seed)
        test = pieces + copies
    _mention_gaps(test, held_out, holdout)

    resident = store.nbytes <= settings.resident_gb * 1e9
    make = functools.partial(
        Loader,
        store=store,
        device=device,
        normalize=normalization,
        stream=None if resident else settings,
    )

    def make_whole(images: list[Sample]) -> Any:
        loader = make(cutter.pieces(images), batch_size=eval_batch_size)
        if tiling is None:
            return loader
        sizes = np.array([cutter.size(image) for image in images], np.int64).reshape(-1, 2)
        side = cutter.map_side
        return TiledLoader(images, loader, sizes, geometry, side, tile_top, rule, settings)

    is_drawn = evaluation == SYNTHETIC
    return Loaders(
        train=make(cutter.pieces(train), batch_size=batch_size, shuffle_seed=seed),
        valid=make_whole(held_out) if held_out else None,
        test=make(test, batch_size=eval_batch_size) if is_drawn else make_whole(test),
        fingerprint=data_fingerprint(samples, rule, settings),
        pixels=rule,
        roi=roi,
        notes=(
            *clipped_note(store.outside(test if is_drawn else cutter.pieces(test)), rule),
            *map(str, mask_remarks(test, geometry, settings)),
            *_tile_notes(tiling, is_drawn),
        ),
        settings=settings,
        made=parts.made,
    )


class Cutter:
    """Tells which samples of tiles the samples of images become; they stay as they are without tiles.

    Args:
        samples: of all images.
        made: samples that a condition changed, each to the one that it was.
        geometry: with or without tiles.
        settings: where facts of files are remembered.

    Attributes:
        made: the same of what the loaders hold.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        made: Mapping[Sample, Sample],
        geometry: Geometry,
        settings: Settings,
    ) -> None:
        self._geometry = geometry
        self._facts: Mapping[Path, FileFacts] = {}
        self.made = dict(made)
        if geometry.tiling is None:
            return
        self._facts = inspect_files([sample.path for sample in samples], settings.cache_dir)
        self.made = {}
        for changed, original in made.items():
            pairs = zip(self.pieces([changed]), self.pieces([original]), strict=True)
            self.made.update(pairs)

    def size(self, sample: Sample) -> tuple[int, int]:
        """Give height and width of an image."""
        found = self._facts[sample.path]
        return found.height, found.width

    @property
    def map_side(self) -> int:
        """Give the side of the square on which maps of all images are compared."""
        sizes = {(found.height, found.width) for found in self._facts.values()}
        return map_side(sorted(sizes), self._geometry)

    def pieces(self, images: Sequence[Sample]) -> list[Sample]:
        """Give the samples of what is loaded of images, image by image.

        Raises:
            InputError: for an image of which no tile counts.
        """
        if self._geometry.tiling is None:
            return list(images)
        pieces = []
        for image in images:
            numbers = self._geometry.counted_tiles(*self.size(image))
            pieces += tiles_of(image, numbers)
        return pieces


def _tile_notes(tiling: Tiling | None, is_drawn: bool) -> list[str]:
    """Say what a reader of figures must know of tiles."""
    if tiling is None or not is_drawn:
        return []
    return ["synthetic defects are drawn on single tiles, and the figures are of these"]


def _with_defective_copies(
    store: PixelStore, held_out: Sequence[Sample], seed: int
) -> tuple[PixelStore, list[Sample]]:
    """Draw defects on copies of the held-out images.

    Returns:
        The store with these copies in a further part, and their samples.

    Raises:
        InputError: where no image is held out.
    """
    if not held_out:
        raise InputError(Sentence.of("data none held out"))

    counts = Counter((sample.dataset, sample.category) for sample in held_out)
    samples = []
    images = []
    masks = []
    sizes = []
    for sample in held_out:
        place = store.places([sample])
        image = store.images(place)[0]
        inside = np.array(True)
        if store.geometry.hides:
            height, width = store.sizes(place)[0].tolist()
            geometry = store.geometry
            if sample.tile is None:
                inside = geometry.inside(height, width)
            else:
                inside = geometry.tile_inside(height, width, sample.tile)
        wanted = copies_per_image(counts[sample.dataset, sample.category])
        for number, copy in enumerate(draw_defective_copies(image, sample.key, seed, wanted)):
            # What does not count stays as it is, and a defect that lies there is none.
            mask = copy.mask * inside
            if not mask.any():
                continue
            images.append(np.where(inside, copy.image, image))
            masks.append(mask)
            if store.geometry.hides:
                sizes.append((height, width))
            # It has no file of its own: it is named after its image, and found by this name.
            named = replace(
                sample,
                label=1,
                defect_type=copy.kind,
                split=SYNTHETIC,
                mask_paths=(),
                relative_path=f"{sample.key}#{number}",
            )
            samples.append(named)

    pixels = np.stack(images)
    key = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    within = np.zeros(len(pixels), np.float32)
    part = Decoded(pixels, np.stack(masks), within, key, sizes=np.array(sizes, np.int32))
    return store.joined(part, samples), samples


def _check_batch_size(name: str, size: int) -> None:
    """Refuse what is no number of images.

    Raises:
        InputError: with the name and the value.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(Sentence.of("data images", name=name, size=repr(size)))


def _check_training_normals(samples: Sequence[Sample]) -> None:
    """Refuse a category without a normal training image.

    Raises:
        InputError: names the first, or says that there are no images at all.
    """
    if not samples:
        raise InputError(Sentence.of("split no_images"))

    trained = categories_of(normals_of(split_of(samples, "train")))
    for dataset, category in sorted(categories_of(samples) - trained):
        raise InputError(Sentence.of("split no_normals", place=f"{dataset}/{category}"))


def _mention_gaps(test: Sequence[Sample], held_out: Sequence[Sample], holdout: int | float) -> None:
    """Say once what figures the data cannot give."""
    defects = defects_of(test)
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
