"""A team of models for one product: scores on one scale, their mean, the combined map, and the file that says it all.

Scores of different models have different units. Each is calibrated on the held-out normals alone, so that no defect
and no label is needed: how seldom a normal image scores that high.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adray.config import build, to_plain
from adray.errors import InputError
from adray.fields import check_range
from adray.files import file_sha256, write_json
from adray.results.store import read_trial
from adray.results.trial_files import find_checkpoint

FORMAT = 1
LEAST_HOLDOUT = 5
"""Fewer held-out normals than this say nothing of a spread."""
MOST_MEMBERS = 20
MOST_FREEDOM = 1000
"""More degrees of freedom than this are not told from a normal distribution."""
_SMALL_CHANCE = 1e-250  # below it logarithms are summed, since floats end at 1e-308


@dataclass(frozen=True)
class Calibration:
    """How the scores of one model are brought to the scale of all: -log10 of the chance of a normal image above it.

    The chance is that of the predictive distribution of one more normal image, Student's t, as in the textbook
    interval for a new observation. With few held-out normals it has heavy tails, so that a model is trusted as far as
    its own evidence goes, and a model that raised a false alarm among them has a wide scale and counts less. A score
    of 2 is one normal image in a hundred. The mean over models is Fisher's way to combine independent tests: it lets
    a model that is sure decide, where a mean of compressed scores would outvote it. Strictly rising, and any change
    of the unit or the origin of the scores cancels.
    """

    center: float
    """Mean of the held-out normals."""
    scale: float
    """Their standard deviation, widened for the doubt about the mean; above 0."""
    freedom: float
    """Degrees of freedom, one less than there are held-out normals, but at most `MOST_FREEDOM`."""

    def __call__(self, pred_score: np.ndarray | float) -> np.ndarray:
        """Calibrated scores, float64, above 0; 0.3 at the mean of the normals."""
        deviation = (np.asarray(pred_score, dtype=np.float64) - self.center) / self.scale
        tail = _log_tail(np.abs(deviation), self.freedom)
        return np.where(deviation >= 0, -tail, -np.log1p(-np.exp(tail))) / math.log(10)


def _log_tail(deviation: np.ndarray, freedom: float) -> np.ndarray:
    """Log P(T > deviation) of Student's t, also where the chance is far below the smallest float; deviation >= 0."""
    from scipy.special import betainc, betaln, hyp2f1

    half = freedom / 2
    log_x = -2 * np.log(
        np.hypot(1, deviation / math.sqrt(freedom))
    )  # x = freedom / (freedom + deviation^2)
    x = np.exp(log_x)
    chance = betainc(half, 0.5, x)
    with np.errstate(divide="ignore"):
        # The incomplete beta function as its series (DLMF 8.17.7), in logarithms; x is far below 0.9 where it is used.
        series = (
            half * log_x
            - math.log(half)
            - betaln(half, 0.5)
            + np.log(hyp2f1(half, 0.5, half + 1, x.clip(0, 0.9)))
        )
        return np.where(chance > _SMALL_CHANCE, np.log(chance), series) - math.log(2)


def calibrate(holdout_score: np.ndarray) -> Calibration:
    """Find the predictive distribution of the scores of normal images.

    Args:
        holdout_score: (M,) scores of normal images that the model was not trained on, M >= `LEAST_HOLDOUT`.

    Raises:
        InputError: for too few scores, one that is not finite, or scores that are all equal.
    """
    scores = np.asarray(holdout_score, dtype=np.float64)
    if len(scores) < LEAST_HOLDOUT:
        raise InputError(
            f"it has {len(scores)} held-out normals, but calibration needs at least {LEAST_HOLDOUT}; run it with a "
            "larger train.holdout"
        )
    if not np.isfinite(scores).all():
        raise InputError(
            "scores of held-out normals are NaN or infinite; check its training (loss, learning rate)"
        )
    spread = float(scores.std(ddof=1)) * math.sqrt(1 + 1 / len(scores))
    if np.ptp(scores) == 0 or not 0 < spread < math.inf:
        raise InputError(
            f"all {len(scores)} held-out normals score {scores[0]:g}, so its scores cannot be calibrated"
        )
    return Calibration(float(scores.mean()), spread, float(min(len(scores) - 1, MOST_FREEDOM)))


@dataclass(frozen=True)
class Member:
    """One model of a team."""

    folder: str
    """Of its trial, relative to the ensemble file."""
    id: str
    """The trial's whole id."""
    configuration: str
    """Name of the configuration."""
    weight: float
    """Share of its calibrated score in the team's, above 0; those of a team sum to 1."""
    center: float
    """See `Calibration`."""
    scale: float
    """See `Calibration`."""
    freedom: float
    """See `Calibration`."""
    map_range: tuple[float, ...] | None = None
    """Smallest and almost largest value of its anomaly maps; None for a model without maps."""
    checkpoint_sha256: str | None = None
    """Of its checkpoint; None where none was kept."""

    def __post_init__(self) -> None:
        for name in ("weight", "scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}, but must be above 0")
        check_range("freedom", self.freedom, 1, MOST_FREEDOM)
        _check_map_range(self.map_range)
        if not self.folder or "\0" in self.folder:
            raise InputError(f"folder {self.folder!r} is no path of a trial")

    @property
    def calibration(self) -> Calibration:
        """From the member's score to the team's scale."""
        return Calibration(self.center, self.scale, self.freedom)


def _check_map_range(map_range: tuple[float, ...] | None) -> None:
    if map_range is not None and len(map_range) != 2:
        raise InputError(f"map_range has {len(map_range)} values, but must have 2, low and high")


@dataclass(frozen=True)
class Ensemble:
    """A team of models for one category, as it lies in a file."""

    dataset: str
    """Name of the data set."""
    category: str
    """Name of the category."""
    members: tuple[Member, ...]
    """The models, in the order in which they were chosen."""
    thresholds: dict[str, float]
    """Value on the combined score by rule, as `adray.thresholds.THRESHOLDS` has them."""
    map_range: tuple[float, ...] | None = (0.0, 1.0)
    """Of the combined map; None where no member has maps."""
    figures: dict[str, Any] | None = None
    """How the team was chosen and what that is worth; for readers, not needed to predict."""
    format: int = FORMAT
    """Version of the file."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InputError(f"format is {self.format}, but this version of adray reads {FORMAT}")
        check_range("the number of members", len(self.members), 1, MOST_MEMBERS)
        _check_map_range(self.map_range)
        total = math.fsum(member.weight for member in self.members)
        if not math.isclose(total, 1, rel_tol=1e-6):
            raise InputError(f"the weights of the members sum to {total:g}, but must sum to 1")


def write_ensemble(path: str | Path, ensemble: Ensemble) -> None:
    """Write the file that `python -m adray predict` runs."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(ensemble))


def read_ensemble(path: str | Path) -> Ensemble:
    """Read a file that `write_ensemble` wrote.

    Raises:
        InputError: for a file that is missing, damaged, or holds something else.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return build(Ensemble, stored, f"ensemble {path}")
    except FileNotFoundError as error:
        raise InputError(
            f"ensemble file {path} does not exist; `python -m adray ensemble STORE` writes one"
        ) from error
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError, OSError) as error:
        raise InputError(
            f"ensemble file {path} is damaged ({' '.join(str(error).split())[:120]}); write it again with "
            "`python -m adray ensemble STORE`"
        ) from error


def relative_folder(folder: Path, file: Path) -> str:
    """A trial's folder as seen from the ensemble file, so that a store can move as a whole."""
    return os.path.relpath(folder.resolve(), file.parent.resolve())


def member_folder(file: str | Path, member: Member) -> Path:
    """The folder of a member's trial, which is still the one that was chosen and can be run.

    Raises:
        InputError: for a folder that is gone, another trial in it, and a checkpoint that is missing or another one.
    """
    folder = Path(os.path.normpath(Path(file).resolve().parent / member.folder))
    name = f"ensemble {file}: {member.configuration} ({member.id[:8]})"
    try:
        record = read_trial(folder)
    except OSError:  # a path that cannot be, or may not be read
        record = None
    if record is None:
        raise InputError(
            f"{name} is not at {folder}; move the file together with its store, or write it again with "
            "`python -m adray ensemble STORE`"
        )
    if record.trial.get("id") != member.id:
        raise InputError(f"{name} was replaced by another trial at {folder}; write the file again")
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise InputError(
            f"{name} kept no checkpoint in {folder}; choose among trials that did (`python -m adray ensemble STORE "
            "--with-checkpoint`), or run its sweep into a new store with keep: all"
        )
    if member.checkpoint_sha256 is not None and file_sha256(checkpoint) != member.checkpoint_sha256:
        raise InputError(
            f"{name}: {checkpoint} changed since the file was written; write the file again"
        )
    return folder


def combine_scores(
    pred_scores: Sequence[np.ndarray | float], members: Sequence[Member]
) -> np.ndarray:
    """The weighted mean of the members' calibrated scores.

    Args:
        pred_scores: by member, its own scores, (N,) or one number.
        members: in the same order.
    """
    calibrated = [
        member.weight * member.calibration(s)
        for member, s in zip(members, pred_scores, strict=True)
    ]
    return np.sum(calibrated, axis=0)


@dataclass(frozen=True)
class MapPart:
    """The anomaly map of one member, and what it counts.

    Attributes:
        position: of the member in its team.
        values: (S, S) float32.
        map_range: smallest and almost largest value of the member's maps, which become 0 and 1.
        weight: above 0.
        view: side of the member's centre crop over the side of the resized image; 1 without a crop.
    """

    position: int
    values: np.ndarray
    map_range: Sequence[float]
    weight: float
    view: float


def widest_part(parts: Sequence[MapPart]) -> MapPart:
    """The one that sees the most of an image: the largest share, then the most pixels, then the first."""
    return max(parts, key=lambda part: (part.view, len(part.values)))


def combine_maps(parts: Sequence[MapPart]) -> np.ndarray:
    """The weighted mean of maps, each divided by its own range, at the size and with the view of the widest.

    A member that crops its images says nothing of the border, and the others decide there.

    Args:
        parts: at least one; the sizes may differ.

    Returns:
        (T, T) float32, mostly between 0 and 1.
    """
    widest = widest_part(parts)
    side = len(widest.values)
    total, seen = np.zeros((side, side)), np.zeros((side, side))
    for part in parts:
        low, high = part.map_range
        inner = max(1, round(side * part.view / widest.view))
        start = round((side - inner) / 2)
        place = np.s_[start : start + inner, start : start + inner]
        total[place] += part.weight * _resized((part.values - low) / max(high - low, 1e-30), inner)
        seen[place] += part.weight
    return (total / seen).astype(np.float32)


def _resized(values: np.ndarray, side: int) -> np.ndarray:
    if len(values) == side:
        return values
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))  # mode F
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
