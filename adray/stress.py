"""What a trained trial makes of its test images under corruptions, without training it again.

Each corruption is one pass of the model over the test images. They come decoded from the cache, and
threads change the next batch while the model looks at this one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from adray.changed_data import settings_of
from adray.conditions import KINDS, Condition, Corruption
from adray.config import build
from adray.data.base import Sample
from adray.data.conditions import divide
from adray.data.contact_sheet import draw_contact_sheet
from adray.data.corruptions import MOVING, CorruptedImage, corrupt
from adray.data.decode import Geometry
from adray.data.normalization import normalize_images
from adray.data.pixel_checks import data_fingerprint
from adray.data.pixels import PixelStore
from adray.data.readers import list_samples
from adray.data.splits import identity_of
from adray.errors import InputError
from adray.files import atomic_path
from adray.metrics import check_finite
from adray.predict import load_predictor
from adray.results.corrupted_scores import (
    CONTACT_SHEET,
    CorruptedRow,
    lacking_corruptions,
    write_corrupted,
)
from adray.results.current import Images, data_of
from adray.results.store import TrialRecord, read_trial
from adray.settings import Settings, get_globals
from adray.types import Batch

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
        raise InputError(
            f"{folder} holds no finished trial; name the folder of one, as `python -m adray status "
            "STORE` lists them, or its part and configuration"
        )
    if record.is_drawn:
        raise InputError(
            f"{folder} is judged by defects that are drawn on held-out normals, and has no test "
            "images to corrupt; name a trial that was tested"
        )
    return record


# The test images


@dataclass(frozen=True)
class StressImages:
    """The test images of a trial, decoded, at the size that they are resized to."""

    samples: tuple[Sample, ...]
    """N images, in the order of the trial's scores."""
    store: PixelStore
    """Their pixels, before a centre crop."""
    geometry: Geometry
    """The size, and the crop that the model sees."""

    def read(self, number: int, corruption: Corruption) -> CorruptedImage:
        """Corrupt an image.

        Returns:
            Pixels and mask at the size that the model sees. Only what moves brings a mask.
        """
        sample = self.samples[number]
        place = self.store.places([sample])
        mask = self.store.masks(place)[0] if corruption.kind in MOVING else None
        found = corrupt(self.store.images(place)[0], mask, corruption, identity_of(sample))
        return CorruptedImage(
            self._cropped(found.pixels),
            None if found.mask is None else self._cropped(found.mask),
        )

    def is_seen(self, number: int) -> bool:
        """Tell whether the model sees some of the defect of an image, going by its mask."""
        mask = self.store.masks(self.store.places([self.samples[number]]))[0]
        return bool(self._cropped(mask).any())

    def _cropped(self, pixels: np.ndarray) -> np.ndarray:
        """Take what the model sees of an array (..., S, S)."""
        inside = slice(self.geometry.margin, self.geometry.margin + self.geometry.side)
        return np.ascontiguousarray(pixels[..., inside, inside])


def open_test_images(
    record: TrialRecord, trainer: BaseTrainer, settings: Settings | None = None
) -> StressImages:
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

    # All are opened, as in the training, so that it is the same file of the cache.
    whole = Geometry(config.img_size)
    store = PixelStore.open(samples, whole, settings, trainer.pixels).aliased(parts.made)
    geometry = Geometry(config.img_size, config.crop_size)
    return StressImages(tuple(parts.test), store, geometry)


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
            f"the images of {record.folder}, or how they are read, have changed since it was trained "
            f"(fingerprint {before[:8]}, now {today[:8]}), so its scores under corruptions would be "
            "of other images; run the sweep again, or put the images back"
        )


def _write_contact_sheet(folder: Path, images: StressImages) -> None:
    """Show what happens to an image: a defective one with a mask, where there is such."""
    path = folder / CONTACT_SHEET

    def rank(sample: Sample) -> tuple[bool, bool]:
        return bool(sample.mask_paths), sample.label == 1

    sample = max(images.samples, key=rank)
    place = images.store.places([sample])
    mask = images.store.masks(place)[0] if sample.mask_paths else None
    pixels = images.store.images(place)[0]
    sheet = draw_contact_sheet(pixels, mask, identity_of(sample), KINDS)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "JPEG", quality=_SHEET_QUALITY)


# One corruption


def score_corrupted(
    trainer: BaseTrainer, images: StressImages, corruption: Corruption
) -> list[CorruptedRow]:
    """Score all test images under a corruption.

    Raises:
        InputError: for a score that is no finite number.
    """
    scores: list[float] = []
    gone: list[bool] = []
    for batch in _batches(trainer, images, corruption):
        scores += _predict(trainer, batch)
        for one in batch:
            is_gone = one.mask is not None and not one.mask.any()
            gone.append(is_gone and images.is_seen(len(gone)))
    check_finite("pred_score", np.array(scores))

    rows = []
    for sample, score, is_gone in zip(images.samples, scores, gone, strict=True):
        row = CorruptedRow(
            sample.dataset,
            sample.category,
            str(sample.path),
            sample.label,
            sample.defect_type,
            score,
            is_gone,
        )
        rows.append(row)
    return rows


def _batches(
    trainer: BaseTrainer, images: StressImages, corruption: Corruption
) -> Iterator[list[CorruptedImage]]:
    """Corrupt all test images batch by batch, the next one while this one is looked at."""
    config = trainer.train_config
    size = config.eval_batch_size or config.batch_size
    threads = min(torch.get_num_threads(), _MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[CorruptedImage]] = []
        for start in range(0, len(images.samples) + size, size):
            current = ahead
            numbers = range(start, min(start + size, len(images.samples)))
            ahead = [pool.submit(images.read, number, corruption) for number in numbers]
            if current:
                yield [future.result() for future in current]


def _predict(trainer: BaseTrainer, batch: Sequence[CorruptedImage]) -> list[float]:
    """Score one batch."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in batch]))
    image = normalize_images(pixels.to(trainer.device), trainer.train_config.normalize)
    index = torch.arange(len(pixels), device=trainer.device)
    prediction = trainer.predict_batch(Batch(image, torch.zeros_like(index), None, index))
    return prediction.pred_score.float().cpu().tolist()
