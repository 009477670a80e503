"""Whether a promise holds on fresh normal images, and a new threshold of them without training.

Fresh normals are images that people took for good, of the production of now. How many of them are
called anomalous is held against the promise, and their scores against those of the calibration
normals: where they differ, production is no longer what the model was calibrated on.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adray.ensembles.team import member_folder, read_ensemble
from adray.errors import InputError
from adray.files import file_sha256, write_json
from adray.language.sentence import Sentence
from adray.prediction_log import LoggedImage
from adray.results.store import TrialRecord, read_trial
from adray.results.trial_files import FRESH_NORMALS, RECALIBRATION, newest_recalibration
from adray.runtime.alarm_chance import alarm_chance
from adray.thresholds import CONFIDENCE, Promise, make_promise, p_values, rate_ends
from adray.training_images import training_samples

if TYPE_CHECKING:
    from adray.predictor import Predictor

logger = logging.getLogger(__name__)

DRIFT = 0.01
"""Chance below which a difference of scores, or a trend in them, is called drift."""
LEAST_IMAGES = 5
"""Fewer fresh normals than this say nothing."""
_TABLE_ERROR = 1e-6
"""Part of a score by which rounding to the digits of a table moves it at most."""


@dataclass(frozen=True)
class Audit:
    """How fresh normals did against a promise."""

    images: int
    """Number of fresh normals."""
    alarms: int
    """How many of them lie above the threshold."""
    promise: Promise
    """What was promised of the threshold."""
    low: float
    """Rate of false alarms that is exceeded with a chance of `CONFIDENCE` (Clopper-Pearson)."""
    high: float
    """Rate that is not exceeded with that chance."""
    chance: float
    """Chance of so many alarms or more if the promise holds."""
    difference: float
    """Chance of scores that differ so much from those of the calibration normals if they are of one
    production (Kolmogorov-Smirnov)."""
    trend: float
    """Chance of such a trend of the scores in the order of the images (Spearman)."""

    @property
    def is_broken(self) -> bool:
        """Tell whether the promise does not hold: chance explains the alarms badly."""
        return self.chance < 1 - CONFIDENCE

    @property
    def is_above(self) -> bool:
        """Tell whether more ring than promised on average, as chance in the calibration may do."""
        return not self.is_broken and self.low > (self.promise.promised or 1.0)

    @property
    def has_drifted(self) -> bool:
        """Tell whether production differs from that of the calibration normals."""
        return min(self.difference, self.trend) < DRIFT


def audit(
    pred_score: NDArray, calibration: NDArray, promise: Promise, is_crossed: bool = False
) -> Audit:
    """Hold fresh normals against a promise.

    What is said of scores holds for the highest values of maps too, where the promise is that of
    regions. The number of alarms among m of them is beta-binomial (m, k, n + 1 - k) distributed if they come
    from the production of the n calibration normals, k of which are at or above the threshold. Of
    several trials that these chose among, the chance of any is at most the sum.

    Args:
        pred_score: (m,) scores of fresh normals in the order of production, as far as it is known.
        calibration: (n,) scores of the calibration normals.
        promise: what they promise.
        is_crossed: whether they trained too, each scored by a model without it. New normals then
            score lower by the model that is kept, and only higher scores are drift.

    Raises:
        InputError: for too few images, and without calibration normals.
    """
    from scipy import stats

    scores = np.asarray(pred_score, dtype=np.float64)
    check_enough(len(scores))
    if promise.score is None:
        raise InputError(Sentence.of("audit no calibration"))

    images = len(scores)
    alarms = int((scores > promise.score).sum())
    above = promise.normals + 1 - promise.rank
    low, high = rate_ends(alarms, images)
    # By their distribution functions: that of higher scores is less.
    difference = "less" if is_crossed else "two-sided"
    return Audit(
        images=images,
        alarms=alarms,
        promise=promise,
        low=low,
        high=high,
        chance=min(1.0, promise.tried * alarm_chance(alarms, images, above, promise.rank)),
        difference=float(stats.ks_2samp(scores, calibration, difference).pvalue),
        trend=_trend(scores),
    )


def check_enough(images: int) -> None:
    """Refuse fresh normals that are too few to say anything of a rate.

    Raises:
        InputError: with their number.
    """
    if images < LEAST_IMAGES:
        raise InputError(Sentence.of("audit few", images=images, least_images=LEAST_IMAGES))


def _trend(scores: NDArray[np.float64]) -> float:
    """Give the chance of a trend in the order of the scores, 1 where they are all equal."""
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0:
        return 1.0
    return float(spearmanr(np.arange(len(scores)), scores).pvalue)


# Fresh images


@dataclass(frozen=True)
class KnownImages:
    """Images that a trial, or a member of a team, has seen before."""

    by_size: Mapping[int, Sequence[Path]]
    """Of its training, those held out among them, by their size in bytes."""
    added: frozenset[str]
    """Sha256 of those that `adray update` added."""
    calibrating: frozenset[str]
    """Sha256 of those by which an audit calibrated it, and which it never learnt from."""

    def has_learnt(self, path: Path) -> bool:
        """Tell whether an image trained or was held out, whatever it is called now."""
        if not path.is_file():
            return False
        same_size = self.by_size.get(path.stat().st_size, ())
        if not same_size and not self.added:
            return False
        digest = file_sha256(path)
        return digest in self.added or any(file_sha256(known) == digest for known in same_size)

    def is_calibrated_by(self, path: Path) -> bool:
        """Tell whether an image is one of the calibration that an audit made."""
        return bool(self.calibrating) and path.is_file() and file_sha256(path) in self.calibrating


def known_images(model: Path) -> KnownImages | None:
    """Gather the images that a model has seen.

    Args:
        model: folder of a trial, its checkpoint, or the file of an ensemble.

    Returns:
        None where the training images are out of reach, so that nobody can tell.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    added: set[str] = set()
    calibrating: set[str] = set()
    for folder in _trials_of(model):
        record = read_trial(folder)
        training = None if record is None else _training_images(record)
        if record is None or training is None:
            return None
        for path in training:
            by_size[path.stat().st_size].append(path)
        added |= set(record.identity.get("update", {}).get("added", ()))
        newest = newest_recalibration(folder)
        if newest is not None:
            calibrating |= set(newest["calibration"].get("images", ()))
    return KnownImages(by_size, frozenset(added), frozenset(calibrating))


def _trials_of(model: Path) -> list[Path]:
    """List the folders of a model's trials: several for a team."""
    if model.suffix == ".json" and model.is_file():
        return [member_folder(model, member) for member in read_ensemble(model).members]
    return [model.parent if model.is_file() else model]


def _training_images(record: TrialRecord) -> list[Path] | None:
    """List the images of a trial's training split, None where they are out of reach."""
    samples = training_samples(record)
    return None if samples is None else [sample.path for sample in samples]


@dataclass(frozen=True)
class FreshScores:
    """What a model says of fresh normals."""

    scores: tuple[float, ...]
    """Of the images that can be read, in their order."""
    peaks: tuple[float, ...]
    """Highest value of the map of each; empty for a model without maps."""
    reasons: tuple[str, ...]
    """Why the others have no score, a sentence each."""
    own_peaks: tuple[float, ...] = ()
    """Highest value of the map of each at the size of its image, by which it has regions."""
    images: tuple[Path, ...] = ()
    """The files of those that have a score; empty where they come from a log."""


def scores_of(predictor: Predictor, paths: Iterable[Path]) -> FreshScores:
    """Score images."""
    from adray.predictor import own_map  # loads torch, as the predictor did

    scores = []
    peaks = []
    own_peaks = []
    images = []
    reasons = []
    for outcome in predictor.predict(paths):
        if outcome.pred_score is None:
            reasons.append(f"{outcome.name}: {outcome.reason}")
            continue
        scores.append(outcome.pred_score)
        images.append(Path(outcome.name))
        if outcome.anomaly_map is not None:
            peak = float(outcome.anomaly_map.max())
            peaks.append(peak)
            own_peaks.append(min(peak, float(own_map(outcome).max())))
    return FreshScores(tuple(scores), tuple(peaks), tuple(reasons), tuple(own_peaks), tuple(images))


def scores_of_log(
    images: Sequence[LoggedImage], calibration: Sequence[float], tried: int
) -> FreshScores:
    """Take the scores of images from a log of `predict`.

    Args:
        images: of the log.
        calibration: scores of the model's calibration normals.
        tried: see `adray.thresholds.p_values`.

    Raises:
        InputError: for p-values that these calibration normals do not give, as another model or
            another calibration has them, and for scores without any.
    """
    scores = []
    own_peaks = []
    reasons = []
    for image in images:
        if image.pred_score is None:
            reasons.append(f"{image.image}: {image.reason}")
            continue
        _check_p_value(image, image.pred_score, calibration, tried)
        scores.append(image.pred_score)
        if image.peak is not None:
            own_peaks.append(image.peak)
    has_all_maps = len(own_peaks) == len(scores)
    return FreshScores(tuple(scores), (), tuple(reasons), tuple(own_peaks) if has_all_maps else ())


def _check_p_value(
    image: LoggedImage, score: float, calibration: Sequence[float], tried: int
) -> None:
    """Refuse a logged p-value that these calibration normals do not give its score.

    Raises:
        InputError: with both p-values.
    """
    if image.p_value is None:
        raise InputError(Sentence.of("audit no p_value", image=image.image))
    error = abs(score) * _TABLE_ERROR
    ends = np.array([score + error, score - error])
    low, high = p_values(ends, np.array(calibration), tried)
    if not low - _TABLE_ERROR <= image.p_value <= high + _TABLE_ERROR:
        raise InputError(
            Sentence.of(
                "audit other p_value",
                image=image.image,
                p_value=f"{image.p_value:.4g}",
                low=f"{low:.4g}",
            )
        )


def recalibrate(folder: Path, fresh: FreshScores, rate: float) -> tuple[Path, Promise]:
    """Write fresh normals as the calibration of a trial. Its result and older records stay.

    Args:
        folder: of the trial.
        fresh: what it says of fresh normals.
        rate: of false alarms.

    Returns:
        The record, which `adray.predict.load_predictor` reads from now on, and what it promises.
    """
    promise = make_promise(np.array(fresh.scores), rate)
    now = datetime.now(timezone.utc)
    path = folder / f"{RECALIBRATION}{now:%Y%m%dT%H%M%S%f}.json"
    calibration = {
        "kind": FRESH_NORMALS,
        "scores": sorted(fresh.scores),
        "peaks": sorted(fresh.peaks),
        "images": sorted(map(file_sha256, fresh.images)),
    }
    about = {
        "created": now.isoformat(timespec="seconds"),
        "calibration": calibration,
        "promise": asdict(promise),
    }
    write_json(path, about)
    return path, promise
