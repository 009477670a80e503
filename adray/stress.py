"""What a trained trial makes of its test images under corruptions, without training it again.

Each corruption is one pass of the model over the test images. They come decoded from the cache, and
threads change the next batch while the model looks at this one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adray.changed_data import settings_of
from adray.conditions import KINDS, Condition, Corruption
from adray.config import build
from adray.data.base import Sample
from adray.data.conditions import divide
from adray.data.contact_sheet import draw_contact_sheet
from adray.data.corruptions import MOVING, CorruptedImage, corrupt
from adray.data.decode import decode_defect, decode_full
from adray.data.geometry import UNSEEN_COLOR, Geometry
from adray.data.normalization import normalize_images
from adray.data.pixel_checks import data_fingerprint
from adray.data.pixels import PixelStore
from adray.data.readers import list_samples
from adray.data.splits import identity_of
from adray.errors import InputError
from adray.files import atomic_path, readable_name
from adray.language.sentence import Sentence
from adray.metrics import check_finite
from adray.predict import load_predictor
from adray.predictor import EightBitPixels, TrialModel
from adray.results.corrupted_scores import (
    CONTACT_SHEET,
    CorruptedRow,
    lacking_corruptions,
    write_corrupted,
)
from adray.results.current import Images, data_of
from adray.results.store import TrialRecord, read_trial
from adray.results.trial_files import SCORES_FILE, image_names, read_judged_images
from adray.settings import Settings, get_globals
from adray.types import Batch, PixelRule

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

logger = logging.getLogger(__name__)

Done = Callable[[Corruption, int, int], None]
"""Told after each corruption: which, how many are scored now, and of how many."""
_MAX_THREADS = 16
_SHEET_QUALITY = 80


def stress_trial(
    folder: Path,
    wanted: Sequence[Corruption],
    device: str | None = None,
    *,
    settings: Settings | None = None,
    done: Done | None = None,
    accept_other_weights: bool = False,
) -> None:
    """Score a trial under the corruptions that it lacks, and write a file for each.

    Args:
        folder: of a finished trial with its checkpoint.
        wanted: corruptions.
        device: ``cpu``, ``cuda``, ...; a GPU where there is one when None.
        settings: where its images lie; those of its sweep when None.
        done: told of each corruption that is scored.
        accept_other_weights: see `adray.predict.load_predictor`.

    Raises:
        InputError: for a folder without a finished trial, one that is judged by drawn defects,
            images that are out of reach or have changed, a checkpoint that cannot be loaded, and a
            score that is no finite number.
    """
    record = stressable(folder)
    lacking = lacking_corruptions(record, wanted)
    if not lacking:
        return
    predictor = load_predictor(folder, device, accept_other_weights=accept_other_weights)
    trainer = predictor.trainer
    images = open_test_images(record, trainer, settings)
    _write_contact_sheet(folder, images)
    for number, corruption in enumerate(lacking, start=len(wanted) - len(lacking) + 1):
        rows = score_corrupted(trainer, images, corruption)
        write_corrupted(record, corruption, rows)
        if done is not None:
            done(corruption, number, len(wanted))


def stressable(folder: Path) -> TrialRecord:
    """Read a trial that can be scored under corruptions.

    Raises:
        InputError: for a folder without a finished trial, and one that is judged by drawn defects.
    """
    record = read_trial(folder)
    if record is None or record.result is None:
        raise InputError(Sentence.of("stress no finished", folder=str(folder)))
    if record.is_drawn:
        raise InputError(Sentence.of("stress drawn", folder=str(folder)))
    return record


# The test images


@dataclass(frozen=True)
class SeenImage:
    """A corrupted test image as the model sees it."""

    pixels: NDArray[np.uint8]
    """(3, H, W)."""
    mask: NDArray[np.uint8] | None
    """(H, W) with 1 on defects that count; None where nothing moved."""
    inside: NDArray[np.bool_] | None
    """(H, W) true for what counts; None where all does."""


@dataclass(frozen=True)
class StressImages:
    """The test images of a trial, decoded, at the size that they are resized to."""

    samples: tuple[Sample, ...]
    """N images, in the order of the trial's scores."""
    store: PixelStore
    """Their pixels, before a centre crop, and also those outside of a region of interest."""
    geometry: Geometry
    """What the model sees of them."""
    paths: tuple[str, ...]
    """What the trial's scores call them, wherever they lie now."""
    sizes: NDArray[np.int64] | None
    """(N, 2) height and width of the images themselves; None where all of the square counts."""

    def read(self, number: int, corruption: Corruption) -> SeenImage:
        """Corrupt an image. Only what moves brings a mask."""
        sample = self.samples[number]
        place = self.store.places([sample])
        pixels = self.store.images(place)[0]
        mask = self.store.masks(place)[0] if corruption.kind in MOVING else None

        # The room around an image is no part of it, and stays as it is.
        rows, columns = self._covered(number)
        part = None if mask is None else mask[rows, columns]
        found = corrupt(pixels[:, rows, columns], part, corruption, identity_of(sample))
        pixels[:, rows, columns] = found.pixels
        if mask is not None:
            mask[rows, columns] = found.mask
        return self._seen(number, pixels, mask)

    def picture(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Give the pixels of an image as it is, (3, H, W), and its mask (H, W) where it has one."""
        sample = self.samples[number]
        place = self.store.places([sample])
        mask = self.store.masks(place)[0] if sample.mask_paths else None
        return self.store.images(place)[0], mask

    def is_seen(self, number: int) -> bool:
        """Tell whether some of the defect of an image counts, going by its mask."""
        place = self.store.places([self.samples[number]])
        seen = self._seen(number, self.store.images(place)[0], self.store.masks(place)[0])
        return seen.mask is not None and bool(seen.mask.any())

    def _covered(self, number: int) -> tuple[slice, slice]:
        """Give the rows and columns of the frame, before a centre crop, that an image lies on."""
        if self.sizes is None:
            return slice(None), slice(None)
        placed = self.store.geometry.place(*self.sizes[number].tolist())
        return placed.rows, placed.columns

    def _seen(
        self, number: int, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None
    ) -> SeenImage:
        """Take what the model sees, and paint what does not count as in the training."""
        pixels = self._cropped(pixels)
        mask = None if mask is None else self._cropped(mask)
        if self.sizes is None:
            return SeenImage(pixels, mask, None)

        height, width = self.sizes[number].tolist()
        inside = _inside(self.geometry, height, width)
        if self.geometry.roi is not None:
            share = _share(self.geometry, height, width)
            unseen = np.array(UNSEEN_COLOR, np.float32)[:, None, None]
            pixels = np.rint(unseen + (pixels - unseen) * share).astype(np.uint8)
        return SeenImage(pixels, None if mask is None else mask * inside, inside)

    def _cropped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take the centre crop of an array (..., H, W)."""
        first = self.geometry.margin
        height, width = self.geometry.frame
        return np.ascontiguousarray(pixels[..., first : first + height, first : first + width])


@dataclass(frozen=True)
class TiledImages:
    """The test images of a trial whose model looks at tiles, decoded at their own size.

    They are corrupted whole, before they are cut, so that no tile differs from its neighbour.
    """

    samples: tuple[Sample, ...]
    """N images, in the order of the trial's scores."""
    paths: tuple[str, ...]
    """What the trial's scores call them, wherever they lie now."""
    rule: PixelRule
    """How the numbers in their files become 8 bits."""
    settings: Settings
    """What is said of the data set."""

    def picture(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Give the pixels of an image as it is, (3, H, W), and its mask (H, W) where it has one."""
        sample = self.samples[number]
        decoded = decode_full(sample.path, self.rule)
        if not sample.mask_paths:
            return decoded.pixels, None
        height, width = decoded.size
        options = self.settings.options_of(sample.dataset)
        defect = decode_defect(sample.mask_paths, (width, height), options, str(sample.path))
        return decoded.pixels, defect.astype(np.uint8)

    def read(self, number: int, corruption: Corruption) -> tuple[CorruptedImage, bool]:
        """Corrupt an image, and tell whether its whole defect was moved out of it."""
        pixels, mask = self.picture(number)
        found = corrupt(pixels, mask, corruption, identity_of(self.samples[number]))
        had_defect = mask is not None and bool(mask.any())
        has_defect = found.mask is not None and bool(found.mask.any())
        return found, had_defect and not has_defect


@functools.lru_cache(maxsize=64)
def _inside(geometry: Geometry, height: int, width: int) -> NDArray[np.bool_]:
    """Tell which pixels of the frame count, (H, W), once for all images of a size."""
    return geometry.inside(height, width)


@functools.lru_cache(maxsize=64)
def _share(geometry: Geometry, height: int, width: int) -> NDArray[np.float32]:
    """Say which share of each pixel of the frame is not painted over, (H, W) from 0 to 1.

    A pixel at the edge of a region is mixed by the resize, in which a white image and a black one
    differ by as much as is left of the image.
    """
    size = (width, height)
    white = np.asarray(geometry.apply(Image.new("RGB", size, "white")), np.float32)
    black = np.asarray(geometry.apply(Image.new("RGB", size, "black")), np.float32)
    return (white - black)[..., 0] / np.float32(255)


def open_test_images(
    record: TrialRecord, trainer: BaseTrainer, settings: Settings | None = None
) -> StressImages | TiledImages:
    """Open the test images of a trial, which are those of its scores.

    Args:
        record: the trial.
        trainer: its model, which says how images are read.
        settings: where they lie; those of its sweep when None, and where it has none those of this
            process.

    Raises:
        InputError: for images that are out of reach, or have changed since.
    """
    settings = settings or settings_of(record) or get_globals()
    config = trainer.train_config
    images = Images.of(record)
    seed = int(record.identity["seed"])
    samples = list_samples(
        images.datasets,
        images.categories,
        settings,
        seed=seed,
        split_mode=images.split_mode,
        train_defects=images.train_defects,
    )
    _check_unchanged(record, samples, trainer, settings)
    condition = build(Condition, record.identity.get("condition", {}), "condition")
    parts = divide(samples, config.kept_apart, seed, condition)

    paths = _paths_in_scores(record, parts.test)
    if config.tile is not None:
        return TiledImages(tuple(parts.test), paths, trainer.pixels, settings)

    # All are opened, as in the training, so that it is the same file of the cache.
    whole = Geometry(config.img_size, fit=config.fit, aspect=config.aspect)
    store = PixelStore.open(samples, whole, settings, trainer.pixels).aliased(parts.made)
    geometry = Geometry.of(config, trainer.roi)
    sizes = None
    if geometry.hides:
        seen = PixelStore.open(samples, geometry, settings, trainer.pixels).aliased(parts.made)
        sizes = seen.sizes(seen.places(parts.test))
    return StressImages(tuple(parts.test), store, geometry, paths, sizes)


def _paths_in_scores(record: TrialRecord, test: Sequence[Sample]) -> tuple[str, ...]:
    """Read what a trial's scores call its test images, which have to be these in this order.

    Raises:
        InputError: where the scores cannot be read, or are of other images.
    """
    scored = read_judged_images(record.folder, is_drawn=False)
    if scored is None:
        raise InputError(
            Sentence.of("stress file missing", folder=str(record.folder), scores_file=SCORES_FILE)
        )
    present = [readable_name(str(sample.path)) for sample in test]
    if not test or image_names(scored.paths) != image_names(present):
        raise InputError(
            Sentence.of(
                "stress other images",
                folder=str(record.folder),
                scores_file=SCORES_FILE,
                images=len(scored.paths),
                present=len(present),
            )
        )
    return scored.paths


def _check_unchanged(
    record: TrialRecord, samples: Sequence[Sample], trainer: BaseTrainer, settings: Settings
) -> None:
    """Refuse images other than those that the trial was trained and tested on.

    Raises:
        InputError: where the fingerprints differ.
    """
    today = data_fingerprint(samples, trainer.pixels, settings)
    before = data_of(record)
    if today != before:
        raise InputError(
            Sentence.of(
                "stress changed", folder=str(record.folder), before=before[:8], today=today[:8]
            )
        )


def _write_contact_sheet(folder: Path, images: StressImages | TiledImages) -> None:
    """Show what happens to an image: a defective one with a mask, where there is such."""
    path = folder / CONTACT_SHEET

    def rank(number: int) -> tuple[bool, bool]:
        sample = images.samples[number]
        return bool(sample.mask_paths), sample.label == 1

    number = max(range(len(images.samples)), key=rank)
    pixels, mask = images.picture(number)
    sample = images.samples[number]
    sheet = draw_contact_sheet(pixels, mask, identity_of(sample), KINDS)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "JPEG", quality=_SHEET_QUALITY)


# One corruption


def score_corrupted(
    trainer: BaseTrainer, images: StressImages | TiledImages, corruption: Corruption
) -> list[CorruptedRow]:
    """Score all test images under a corruption.

    Raises:
        InputError: for a score that is no finite number.
    """
    if isinstance(images, TiledImages):
        found = list(_score_tiled(trainer, images, corruption))
    else:
        found = list(_score_whole(trainer, images, corruption))
    check_finite("pred_score", np.array([one.pred_score for one in found]))

    rows = []
    for sample, path, one in zip(images.samples, images.paths, found, strict=True):
        row = CorruptedRow(
            sample.dataset,
            sample.category,
            path,
            sample.label,
            sample.defect_type,
            one.pred_score,
            one.is_gone,
        )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Scored:
    """What is found of one image."""

    pred_score: float
    """Higher is more anomalous."""
    is_gone: bool
    """Whether its whole defect was moved out of it."""


def _score_whole(
    trainer: BaseTrainer, images: StressImages, corruption: Corruption
) -> Iterator[_Scored]:
    """Score images batch by batch."""
    number = 0
    for batch in _batches(trainer, images, corruption):
        for one, score in zip(batch, _predict(trainer, batch), strict=True):
            is_gone = one.mask is not None and not one.mask.any()
            yield _Scored(score, is_gone and images.is_seen(number))
            number += 1


def _score_tiled(
    trainer: BaseTrainer, images: TiledImages, corruption: Corruption
) -> Iterator[_Scored]:
    """Score large images one by one, the next one corrupted while this one is looked at.

    Raises:
        InputError: for an image that the model cannot judge.
    """
    model = TrialModel(trainer)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(images.read, 0, corruption)
        for number, path in enumerate(images.paths):
            found, is_gone = ahead.result()
            if number + 1 < len(images.paths):
                ahead = pool.submit(images.read, number + 1, corruption)
            outcome = model.predict_tiles(EightBitPixels(found.pixels), number)
            if outcome.pred_score is None:
                raise InputError(
                    Sentence.of(
                        "stress image", path=path, label=corruption.label, reason=outcome.reason
                    )
                )
            yield _Scored(outcome.pred_score, is_gone)


def _batches(
    trainer: BaseTrainer, images: StressImages, corruption: Corruption
) -> Iterator[list[SeenImage]]:
    """Corrupt all test images batch by batch, the next one while this one is looked at."""
    config = trainer.train_config
    size = config.eval_batch_size or config.batch_size
    threads = min(torch.get_num_threads(), _MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[SeenImage]] = []
        for start in range(0, len(images.samples) + size, size):
            current = ahead
            numbers = range(start, min(start + size, len(images.samples)))
            ahead = [pool.submit(images.read, number, corruption) for number in numbers]
            if current:
                yield [future.result() for future in current]


def _predict(trainer: BaseTrainer, batch: Sequence[SeenImage]) -> list[float]:
    """Score one batch."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in batch]))
    image = normalize_images(pixels.to(trainer.device), trainer.train_config.normalize)
    index = torch.arange(len(pixels), device=trainer.device)
    counted = [one.inside for one in batch if one.inside is not None]
    inside = None
    if counted:
        inside = torch.from_numpy(np.stack(counted)[:, None]).to(trainer.device)  # (B, 1, H, W)
    labels = torch.zeros_like(index)
    prediction = trainer.predict_batch(Batch(image, labels, None, index, inside=inside))
    return prediction.pred_score.float().cpu().tolist()
