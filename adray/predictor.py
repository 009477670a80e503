"""What a trained model, or a team of them, says of new images: scores and maps.

An image goes through the same decoding, resizing and normalisation as in the trial, so its score is
the same. One that cannot be read or judged costs its own outcome, which says why. Each
model of a team reads the image in its own way, and their calibrated scores and maps are averaged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from adray.components.tiler import tile, tile_starts, untile
from adray.data.decode import (
    DecodedImage,
    ScaledImage,
    array_pixels,
    decode_file,
    decode_full,
    full_array,
    scale_array,
    scale_file,
)
from adray.data.geometry import Box, Geometry, Placement, own_cells
from adray.data.normalization import normalize_images
from adray.data.tiled_loader import with_lowest_outside_roi
from adray.ensembles.team import (
    MapPart,
    Member,
    combine_maps,
    combine_scores,
    widest_part,
)
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of
from adray.regions import Region, find_regions
from adray.thresholds import (
    FALSE_ALARMS,
    PROMISE,
    Promise,
    Threshold,
    check_threshold,
    make_promise,
    p_values,
    promised_pixels,
    promised_threshold,
)
from adray.tiling import MapJoiner, image_score
from adray.types import EIGHT_BITS, Batch, PixelRule, Prediction, Roi

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

logger = logging.getLogger(__name__)


_TILES_IN_FLIGHT = 8
"""Tiles that are scored at a time by a model that was trained on tiles."""


@dataclass(frozen=True)
class EightBitPixels:
    """Pixels that were read by a model's rule already, such as a tile of a larger image."""

    pixels: np.ndarray
    """(3, H, W) uint8."""


Source = str | Path | np.ndarray | torch.Tensor | EightBitPixels


@dataclass(frozen=True)
class Outcome:
    """What a predictor says of one image."""

    name: str
    """The path, or ``image <position>`` for arrays."""
    pred_score: float | None = None
    """Higher is more anomalous; None where the image could not be judged."""
    anomaly_map: np.ndarray | None = None
    """(H, W) float32 at the size that the model sees, or None."""
    image: np.ndarray | None = None
    """The (3, H, W) uint8 pixels that the model saw, or None."""
    reason: str = ""
    """Why there is no score; empty where there is one. A score that is no number is none."""
    explanation: str | None = None
    """The text that the model writes; None where it writes none."""
    outside: float = 0.0
    """Part of the image's pixels that lay outside of the range that the model was trained with, and
    were clipped."""
    size: tuple[int, int] | None = None
    """Height and width of the image itself; None where it could not be read."""
    pixels: PixelRule | None = None
    """How the numbers in its file became 8 bits; None for an image that is no file."""
    placement: Placement | None = None
    """Where the image lies in `image` and `anomaly_map`; None where they show all of it."""
    roi: Roi | None = None
    """The part of the image that counts; None for all of it."""
    tile: int | None = None
    """Number of the tile that this is of; None for an image."""
    accepted: str = ""
    """What is not as the model was trained, and was accepted when it was loaded; mostly empty."""
    p_value: float | None = None
    """Part of normal images that score as high, see `adray.thresholds.p_values`; None where the
    model brings no calibration normals, and for an image in tiles."""

    @property
    def inside(self) -> np.ndarray | None:
        """Tell which pixels of `anomaly_map` count, (H, W) bool, None where all do."""
        if self.placement is None or (self.placement.is_full and self.roi is None):
            return None
        return self.placement.counted(self.roi)


@dataclass(frozen=True)
class TrialModel:
    """One trained configuration: it reads images as its trial did, and scores them."""

    trainer: BaseTrainer
    """It holds the model, and how images are prepared for it."""

    @property
    def geometry(self) -> Geometry:
        """Give what happens to an image before the model sees it."""
        return Geometry.of(self.trainer.train_config, self.trainer.roi)

    @property
    def batch_size(self) -> int:
        """Count the images per step in the trial."""
        config = self.trainer.train_config
        return config.eval_batch_size or config.batch_size

    @property
    def view(self) -> float:
        """Give the part of its square's side that the model sees, 1 without a centre crop."""
        config = self.trainer.train_config
        return config.input_size / config.img_size

    @property
    def pixels(self) -> PixelRule:
        """Give how the numbers in an image become 8 bits."""
        return self.trainer.pixels

    def predict_tiles(self, source: Source, number: int) -> Outcome:
        """Score an image by its tiles, for a model that was trained on tiles.

        A few tiles are scored at a time, which bounds the memory whatever the image's size.
        """
        name = _name_of(source, number)
        try:
            scaled = self._scaled(source)
            outcome = Outcome(
                name,
                image=scaled.pixels(),
                outside=scaled.outside,
                size=scaled.size,
                pixels=self.pixels if isinstance(source, str | Path) else None,
                roi=self.geometry.roi,
            )
            return self._score_tiles(outcome, scaled)
        except Exception as error:  # whatever is wrong with one image, it costs no other
            return Outcome(name, reason=_sentence(error))

    def _scaled(self, source: Source) -> ScaledImage:
        """Bring an image to where its tiles are cut.

        Raises:
            InputError: for what is no image, or does not suit the model.
        """
        if isinstance(source, str | Path):
            return scale_file(_checked_file(Path(source)), self.geometry, self.pixels)
        if isinstance(source, EightBitPixels):
            array = rearrange(source.pixels, "c h w -> h w c")
            return scale_array(array, self.geometry, EIGHT_BITS)
        return scale_array(_as_array(source), self.geometry, self.pixels)

    def _score_tiles(self, outcome: Outcome, scaled: ScaledImage) -> Outcome:
        """Add score and map to the outcome of an image, or why there is no score."""
        geometry = self.geometry
        grid = scaled.grid
        known = self.trainer.tile_grid
        shape = (len(grid.rows), len(grid.columns))
        if known is not None and shape != known:
            reason = (
                f"it has {shape[0]} x {shape[1]} tiles, and the model knows {known[0]} x {known[1]} "
                "places (tile_model: position); give images of that size"
            )
            return replace(outcome, reason=reason)
        joiner = MapJoiner(grid)
        scores: list[float] = []
        has_map = False
        numbers = geometry.counted_tiles(*scaled.size)
        for some in _batches(numbers, min(self.batch_size, _TILES_IN_FLIGHT)):
            tiles = [
                Outcome(
                    f"{outcome.name}, tile {number}",
                    image=scaled.tile(geometry, number),
                    size=scaled.size,
                    tile=number,
                )
                for number in some
            ]
            for number, judged in zip(some, self.score(tiles), strict=True):
                if judged.pred_score is None:
                    return replace(outcome, reason=f"tile {number}: {judged.reason}")
                scores.append(judged.pred_score)
                if judged.anomaly_map is not None:
                    has_map = True
                    joiner.add(number, judged.anomaly_map)

        top = self.trainer.train_config.tile_top
        score = image_score(np.array(scores, np.float32), top)
        if not has_map:
            return replace(outcome, pred_score=score)
        whole = with_lowest_outside_roi(joiner.joined(), geometry)
        height, width = scaled.size
        if whole.shape != scaled.size:
            whole = map_of_image(whole, None, width, height)
        return replace(outcome, pred_score=score, anomaly_map=np.ascontiguousarray(whole))

    def read(self, source: Source, number: int) -> Outcome:
        """Read the pixels of an image, or why there are none."""
        name = _name_of(source, number)
        try:
            decoded = self._decode(source)
        except Exception as error:  # whatever is wrong with one image, it costs no other
            return Outcome(name, reason=_sentence(error))
        return Outcome(
            name,
            image=decoded.pixels,
            outside=decoded.outside,
            size=decoded.size,
            pixels=self.pixels if isinstance(source, str | Path) else None,
            placement=self.geometry.place(*decoded.size),
            roi=self.geometry.roi,
        )

    def _decode(self, source: Source) -> DecodedImage:
        """Bring an image to what the model sees, before normalisation.

        Raises:
            InputError: for what is no image, or does not suit the model.
        """
        if isinstance(source, str | Path):
            return decode_file(_checked_file(Path(source)), self.geometry, self.pixels)
        if isinstance(source, EightBitPixels):
            array = rearrange(source.pixels, "c h w -> h w c")
            return array_pixels(array, self.geometry, EIGHT_BITS)
        return array_pixels(_as_array(source), self.geometry, self.pixels)

    def score(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Add score and map to the outcomes that have pixels, or why there is no score."""
        readable = [place for place, outcome in enumerate(outcomes) if outcome.image is not None]
        scored = list(outcomes)
        found = self._score_readable([outcomes[place] for place in readable])
        for place, outcome in zip(readable, found, strict=True):
            scored[place] = outcome
        return scored

    def _score_readable(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Score images together, or one by one where that fails."""
        if not outcomes:
            return []
        try:
            prediction = self._predict(outcomes)
            return [_with_prediction(outcome, prediction, i) for i, outcome in enumerate(outcomes)]
        except Exception as error:  # whatever a model does with one image, it costs no other
            if len(outcomes) == 1:
                return [replace(outcomes[0], reason=f"the model fails on it: {_sentence(error)}")]
            logger.warning("%d images are scored one by one: %s", len(outcomes), _sentence(error))
            alone = []
            for outcome in outcomes:
                alone += self._score_readable([outcome])
            return alone

    def _predict(self, outcomes: Sequence[Outcome]) -> Prediction:
        """Predict images that have pixels. The answer is float32 on the CPU."""
        trainer = self.trainer
        images = [outcome.image for outcome in outcomes if outcome.image is not None]
        pixels = torch.from_numpy(np.stack(images))
        image = normalize_images(pixels.to(trainer.device), trainer.train_config.normalize)
        index = torch.arange(len(pixels), device=trainer.device)
        numbers = [outcome.tile or 0 for outcome in outcomes]
        tile = torch.tensor(numbers, dtype=torch.int64, device=trainer.device)
        batch = Batch(
            image,
            torch.zeros_like(index),
            None,
            index,
            inside=self._inside(outcomes),
            tile=tile,
        )

        prediction = trainer.predict_batch(batch)
        anomaly_map = prediction.anomaly_map
        return replace(
            prediction,
            pred_score=prediction.pred_score.float().cpu(),
            anomaly_map=None if anomaly_map is None else anomaly_map.float().cpu(),
        )

    def _inside(self, outcomes: Sequence[Outcome]) -> torch.Tensor | None:
        """Tell which pixels of images count, see `Batch.inside`."""
        geometry = self.geometry
        if not geometry.hides:
            return None
        shown = []
        for outcome in outcomes:
            assert outcome.size is not None, "it has pixels"
            if outcome.tile is None:
                shown.append(geometry.inside(*outcome.size))
            else:
                shown.append(geometry.tile_inside(*outcome.size, outcome.tile))
        if np.all(shown):
            return None
        return torch.from_numpy(np.stack(shown)[:, None]).to(self.trainer.device)


@dataclass(frozen=True)
class Predictor:
    """A trained configuration, or a team of several."""

    models: tuple[TrialModel, ...]
    """One, or the members of a team."""
    thresholds: dict[str, float]
    """Value on `pred_score` by rule, of those that the trial or the team could compute."""
    map_range: tuple[float, float] | None = None
    """Smallest and almost largest value of the test set's maps, for pictures; None if unknown."""
    team: tuple[Member, ...] = ()
    """How the models' scores and maps are combined, one per model; empty for a single trial."""
    calibration: tuple[float, ...] = ()
    """Scores of normal images that no model trained on; empty where none are known."""
    calibration_peaks: tuple[float, ...] = ()
    """Highest value of the map of each of these images; empty where it is not known."""
    rate: float = FALSE_ALARMS
    """Rate of false alarms that the threshold `adray.thresholds.PROMISE` was asked for."""
    tried: int = 1
    """Number of trials of which this one was chosen by its calibration normals, see
    `adray.thresholds.make_promise`."""
    is_crossed: bool = False
    """Whether the calibration normals trained too, each scored by a model without it. New normals
    then score rather lower."""
    accepted: tuple[str, ...] = ()
    """What is not as the models were trained, and was accepted; each outcome says so."""

    @property
    def trainer(self) -> BaseTrainer:
        """Give the trainer of the one model, which holds it and how its images are prepared.

        Raises:
            InputError: for a team, which has several.
        """
        if len(self.models) != 1:
            raise InputError(Sentence.of("predict no single", number=len(self.models)))
        return self.models[0].trainer

    def predict(self, images: Iterable[Source], batch_size: int | None = None) -> Iterator[Outcome]:
        """Score images in their order. One that fails gives an outcome with its reason.

        Args:
            images: paths; arrays (H, W) or (H, W, 3), red first; or tensors (3, H, W), of any size.
                They are uint8 from 0 to 255, or the numbers of deep images where the model was
                trained on such. A stream that ends with an error has the outcomes before it.
            batch_size: images per step, which does not change scores; None for the trial's, or a
                team's smallest. A stream is read by so many images.

        Raises:
            InputError: for a single image in place of several, and a batch size below 1.
        """
        _check_images(images)
        size = min(model.batch_size for model in self.models) if batch_size is None else batch_size
        if size < 1:
            raise InputError(Sentence.of("predict size", size=size))
        if self.models[0].geometry.tiling is not None:
            size = 1  # images may be large, and it is their tiles that come together
        return self._predict_all(images, size)

    def _predict_all(self, images: Iterable[Source], size: int) -> Iterator[Outcome]:
        """Score images in their order, `size` of them together."""
        accepted = "; ".join(self.accepted)
        for chunk in _chunks(images, size):
            for outcome in self._predict_batch(chunk):
                p_value = self._p_value(outcome.pred_score)
                yield replace(outcome, accepted=accepted, p_value=p_value)

    def _p_value(self, score: float | None) -> float | None:
        """Say how rare a score is among normals, None where that is not known."""
        if score is None or not self.calibration:
            return None
        return float(p_values(np.array([score]), np.array(self.calibration), self.tried)[0])

    def promise(self, rate: float) -> Promise:
        """Say what the calibration normals promise at a rate of false alarms.

        Raises:
            InputError: for a rate outside (0, 1), and without calibration normals.
        """
        if not self.calibration:
            raise InputError(Sentence.of("predict no rate"))
        return make_promise(np.array(self.calibration), rate, self.tried)

    @property
    def peaks(self) -> np.ndarray | None:
        """Give the highest values of the calibration normals' maps, None where none is known."""
        return np.array(self.calibration_peaks) if self.calibration_peaks else None

    def chosen_among(self, tried: int | None) -> Predictor:
        """Give the same model as one of several that its calibration normals chose among.

        Args:
            tried: number of these; None, or fewer than are counted already, changes nothing.
        """
        if tried is None or tried <= self.tried:
            return self
        chosen = replace(self, tried=tried)
        if not self.calibration:
            return chosen
        value = promised_threshold(chosen.promise(self.rate)).value
        assert value is not None, "there are calibration normals"
        return replace(chosen, thresholds=self.thresholds | {PROMISE: value})

    def pixel_promise(self, rate: float | None = None) -> Threshold:
        """Find the threshold of maps that at most a part of new normal images reaches anywhere.

        Args:
            rate: that part, in (0, 1); None for the trial's rate of false alarms.

        Raises:
            InputError: for a rate outside (0, 1), and for a model without such a threshold.
        """
        found = promised_pixels(self.peaks, self.rate if rate is None else rate, self.tried)
        if found.value is None:
            raise InputError(Sentence.of("predict no regions"))
        return found

    def regions(
        self, outcome: Outcome, smallest_area: int = 1, rate: float | None = None
    ) -> list[Region]:
        """Find the regions of an image's map that the promise lets stand out.

        Args:
            outcome: of `predict` by this predictor.
            smallest_area: regions of fewer pixels of the image are left out, at least 1.
            rate: part of new normal images that may have any region, in (0, 1); None for the
                trial's rate of false alarms.

        Returns:
            In the image's own pixels, that with the highest peak first; none for an image without
            a score.

        Raises:
            InputError: as `pixel_promise`, and for an area below 1.
        """
        threshold = self.pixel_promise(rate).value
        assert threshold is not None, "refused before"
        return regions_of(outcome, threshold, smallest_area)

    def predict_tiled(
        self, images: Iterable[Source], tile_size: int, overlap: float = 0.25
    ) -> Iterator[Outcome]:
        """Score large images piece by piece, for models trained on images at the pieces' scale.

        Each tile is scored as an image of its own. The score is the highest, the maps are laid side
        by side.

        Args:
            images: as for `predict`.
            tile_size: side of a tile in pixels of the image.
            overlap: part of a tile that its neighbour shares at least.

        Returns:
            Outcomes whose image and map have the size of the image. One that is smaller than a tile
            has a reason.

        Raises:
            InputError: for a model that sees only the middle of an image or a rectangle, or has a
                region of interest. Also for models that read pixels in several ways, and for an
                overlap out of range.
        """
        if any(model.geometry.tiling is not None for model in self.models):
            raise InputError(Sentence.of("predict tiles twice"))
        if any(model.geometry.roi is not None for model in self.models):
            raise InputError(Sentence.of("predict tiles roi"))
        if any(model.view < 1 for model in self.models):
            raise InputError(Sentence.of("predict tiles crop"))
        if any(model.geometry.aspect != 1 for model in self.models):
            raise InputError(Sentence.of("predict tiles aspect"))
        _check_images(images)
        tile_starts(tile_size, tile_size, overlap)
        rules = {model.pixels for model in self.models}
        if len(rules) > 1:
            raise InputError(Sentence.of("predict tiles ranges"))
        return self._predict_whole(images, rules.pop(), tile_size, overlap)

    def _predict_whole(
        self, images: Iterable[Source], rule: PixelRule, tile_size: int, overlap: float
    ) -> Iterator[Outcome]:
        """Score images in their order, each by its tiles."""
        for number, source in enumerate(images):
            name = _name_of(source, number)
            try:
                outcome = self._predict_tiles(name, _full_image(source, rule), tile_size, overlap)
            except Exception as error:  # whatever is wrong with one image, it costs no other
                outcome = Outcome(name, reason=_sentence(error))
            yield replace(outcome, accepted="; ".join(self.accepted))

    def _predict_tiles(
        self, name: str, whole_image: DecodedImage, tile_size: int, overlap: float
    ) -> Outcome:
        """Score the tiles of one image, which is decoded at its own size."""
        pixels = whole_image.pixels
        pieces = tile(torch.from_numpy(pixels), tile_size, overlap)
        outcomes = list(self.predict(EightBitPixels(piece.numpy()) for piece in pieces))
        for outcome in outcomes:
            if outcome.reason:
                return Outcome(name, reason=f"one of its tiles: {outcome.reason}")

        score = max(_scores_of(outcomes))
        whole = Outcome(
            name, score, image=pixels, outside=whole_image.outside, size=whole_image.size
        )
        maps = [outcome.anomaly_map for outcome in outcomes if outcome.anomaly_map is not None]
        if not maps:
            return whole

        small = torch.from_numpy(np.stack(maps)[:, None])  # (N, 1, S, S)
        size = (tile_size, tile_size)
        enlarged = F.interpolate(small, size, mode="bilinear", align_corners=False)
        joined = untile(enlarged, pixels.shape[1], pixels.shape[2], overlap)  # (1, H, W)
        return replace(whole, anomaly_map=joined[0].numpy())

    def threshold(self, wanted: str) -> float:
        """Give the value of a rule's name, or of a number.

        Raises:
            InputError: for a rule that the trial could not compute, and for NaN and infinity.
        """
        try:
            return check_threshold(float(wanted))
        except InputError:
            raise
        except ValueError:
            pass
        if wanted not in self.thresholds:
            known = (
                nearest_of(wanted, self.thresholds)
                if self.thresholds
                else Sentence.of("predict give number")
            )
            raise InputError(
                Sentence.of("predict threshold unknown", wanted=repr(wanted), known=known)
            )
        return self.thresholds[wanted]

    def _predict_batch(self, chunk: list[tuple[int, Source]]) -> list[Outcome]:
        """Score some numbered images with each model, and combine what a team says."""
        if self.models[0].geometry.tiling is not None:
            return [self.models[0].predict_tiles(source, number) for number, source in chunk]

        # Models that want the same pixels share them.
        readers = {(model.geometry, model.pixels): model for model in self.models}
        read = {}
        for key, model in readers.items():
            read[key] = [model.read(source, number) for number, source in chunk]

        by_model = [model.score(read[model.geometry, model.pixels]) for model in self.models]
        if not self.team:
            return by_model[0]
        return [self._combine(outcomes) for outcomes in zip(*by_model, strict=True)]

    def _combine(self, outcomes: tuple[Outcome, ...]) -> Outcome:
        """Combine what a team's members say of one image.

        The picture is that of the member that sees most of it.
        """
        for outcome in outcomes:
            if outcome.pred_score is None:
                return outcome
        score = float(combine_scores(_scores_of(outcomes), self.team))
        if not math.isfinite(score):
            return replace(
                outcomes[0], pred_score=None, reason=_no_number("the team's score", score)
            )

        parts = []
        for i, (outcome, member) in enumerate(zip(outcomes, self.team, strict=True)):
            if outcome.anomaly_map is not None and member.map_range is not None:
                view = self.models[i].view
                parts.append(MapPart(i, outcome.anomaly_map, member.map_range, member.weight, view))
        if not parts:
            return replace(outcomes[0], pred_score=score, anomaly_map=None)
        shown = outcomes[widest_part(parts).position]
        return replace(shown, pred_score=score, anomaly_map=combine_maps(parts))


def own_size(outcome: Outcome) -> tuple[int, int]:
    """Give height and width of an outcome's image, which has a map."""
    assert outcome.anomaly_map is not None, "asked only where there is a map"
    height, width = outcome.anomaly_map.shape
    return outcome.size or (height, width)


def own_map(outcome: Outcome) -> np.ndarray:
    """Give a map at the size of its image, (H, W). What the model does not see is its lowest value."""
    assert outcome.anomaly_map is not None, "asked only where there is a map"
    height, width = own_size(outcome)
    lowest = float(outcome.anomaly_map.min())
    return map_over_image(outcome, width, height, lowest)


def map_over_image(outcome: Outcome, width: int, height: int, unseen: float = 0.0) -> np.ndarray:
    """Bring the map of an outcome to the size of its image, or of a smaller picture of it.

    Args:
        outcome: which has a map.
        width: of the picture.
        height: of the picture.
        unseen: value of what the model does not see, or does not count.

    Returns:
        (height, width).
    """
    assert outcome.anomaly_map is not None, "asked only where there is a map"
    whole = map_of_image(outcome.anomaly_map, outcome.placement, width, height, unseen)
    if outcome.roi is not None:
        whole[~own_cells(outcome.roi, height, width)] = unseen
    return whole


def regions_of(outcome: Outcome, threshold: float, smallest_area: int = 1) -> list[Region]:
    """Find where an image's map reaches a threshold, see `adray.regions.find_regions`.

    One whose own map stays below has none, whatever rounding adds to the larger map.
    """
    anomaly_map = outcome.anomaly_map
    if anomaly_map is None or anomaly_map.max() < threshold:
        return []
    return find_regions(own_map(outcome), threshold, smallest_area)


def _scores_of(outcomes: Iterable[Outcome]) -> list[float]:
    """List the scores of the images that have one."""
    return [outcome.pred_score for outcome in outcomes if outcome.pred_score is not None]


def map_of_image(
    anomaly_map: np.ndarray,
    placement: Placement | None,
    width: int,
    height: int,
    unseen: float = 0.0,
) -> np.ndarray:
    """Bring a map to the size of its image, linearly.

    Args:
        anomaly_map: at the size that the model sees.
        placement: where the image lies on it; None where it shows all of the image.
        width: of the image, or of a smaller picture of it.
        height: of the image, or of a smaller picture of it.
        unseen: value of what the map does not show.

    Returns:
        (height, width).
    """
    seen = Box(0, 0, height, width)
    shown = anomaly_map
    if placement is not None:
        shown = anomaly_map[placement.rows, placement.columns]
        seen = placement.resized(height, width).seen
    small = torch.from_numpy(np.ascontiguousarray(shown))[None, None]
    size = (seen.height, seen.width)
    inner = F.interpolate(small, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    if size == (height, width):
        return inner

    whole = np.full((height, width), unseen, np.float32)
    whole[seen.top : seen.top + seen.height, seen.left : seen.left + seen.width] = inner
    return whole


def _name_of(source: Source, number: int) -> str:
    """Name an image by its path, or by its position."""
    return str(source) if isinstance(source, str | Path) else f"image {number}"


def _checked_file(path: Path) -> Path:
    """Give the path of an image back, but of no pipe or device, which may never end.

    Raises:
        InputError: for such.
    """
    if path.exists() and not path.is_file():
        raise InputError(Sentence.of("predict no image", path=str(path)))
    return path


def _sentence(error: Exception) -> str:
    """Say in one line why an image failed."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:200]}"


def _with_prediction(outcome: Outcome, prediction: Prediction, i: int) -> Outcome:
    """Add what a model says of the image `i` of a batch, or why that is no verdict."""
    score = float(prediction.pred_score[i])
    if not math.isfinite(score):
        return replace(outcome, reason=_no_number("its score", score))
    explanation = None if prediction.explanation is None else prediction.explanation[i]
    outcome = replace(outcome, explanation=explanation)
    if prediction.anomaly_map is None:
        return replace(outcome, pred_score=score)

    anomaly_map = prediction.anomaly_map[i, 0].numpy()
    strange = anomaly_map[~np.isfinite(anomaly_map)]
    if strange.size:
        return replace(outcome, reason=_no_number("a pixel of its anomaly map", strange[0]))
    return replace(outcome, pred_score=score, anomaly_map=anomaly_map)


def _no_number(what: str, value: float) -> str:
    """Say that the model gave something that no threshold can be compared with."""
    return f"{what} is {value}, which is no number to judge it by; look at the image"


def _check_images(images: object) -> None:
    """Refuse a single image where several are expected, whose parts would be taken for images.

    Raises:
        InputError: says how to give one.
    """
    if isinstance(images, str | Path):
        raise InputError(Sentence.of("predict one path", images=repr(str(images))))
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim < 4:
        shape = tuple(images.shape)
        raise InputError(Sentence.of("predict one array", shape=str(shape)))


def _chunks(images: Iterable[Source], size: int) -> Iterator[list[tuple[int, Source]]]:
    """Group images with their numbers. Those before an error of a stream come first."""
    chunk: list[tuple[int, Source]] = []
    try:
        for numbered in enumerate(images):
            chunk.append(numbered)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Group numbers, `size` of them together."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _full_image(source: Source, rule: PixelRule) -> DecodedImage:
    """Read an image at its own size."""
    if isinstance(source, EightBitPixels):
        return DecodedImage(source.pixels, 0.0, source.pixels.shape[1:])
    if isinstance(source, str | Path):
        return decode_full(_checked_file(Path(source)), rule)
    return full_array(_as_array(source), rule)


def _as_array(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Give an image in memory as an array, (H, W) or (H, W, C).

    Raises:
        InputError: for a tensor whose channels do not come first, and for what is no image.
    """
    if isinstance(source, np.ndarray):
        return source
    if not isinstance(source, torch.Tensor):
        raise InputError(Sentence.of("predict image kind", source=type(source).__name__))

    shape = tuple(source.shape)
    if source.ndim == 2:
        source = source[None]
    if source.ndim != 3 or source.shape[0] not in (1, 3):
        raise InputError(Sentence.of("predict tensor shape", shape=str(shape)))
    return rearrange(source, "c h w -> h w c").detach().cpu().numpy()
