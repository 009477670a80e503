"""Where to cut between normal and anomalous scores: four rules, and which needed the test labels.

A rule that chose its threshold by the labels of the test set is an *oracle*: figures at it say what
would be possible, not what a line in production gets. Only percentile-95 of held-out normals can be
had before the first defect is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.curves import Curve, curve
from adray.metrics import (
    Confusion,
    check_finite,
    check_scores,
    confusion,
    describe_problems,
)

PERCENTILES = np.linspace(0, 100, 1001)
"""Candidates of the F1-percentile rule."""
UNIFORM_STEPS = 1001
"""Number of candidates of the F1-uniform rule, both ends included."""
FEW_HOLDOUT = 20
"""With fewer normals than this the 95th percentile is little more than their maximum."""


@dataclass(frozen=True)
class Threshold:
    """One threshold on `pred_score`; scores >= `value` are anomalous."""

    name: str
    """A key of `THRESHOLDS`."""
    value: float | None
    """In the unit of the scores; None (n/a) where the rule has nothing to go by, then `note` says
    why."""
    oracle: bool
    """Whether the labels of the test set chose it."""
    note: str = ""
    """What a reader must know, else empty."""


@dataclass(frozen=True)
class Rule:
    """How a threshold is found.

    An oracle goes by the curve of the test set, any other by that of held-out normals.
    """

    title: str
    """Its name in the thresholds file."""
    meaning: str
    """Half a sentence for tables."""
    oracle: bool
    """Whether it goes by the labels of the test set."""
    compute: Callable[[Curve], float]
    """Finds the threshold on a curve."""


def f1_percentile(curve: Curve) -> float:
    """Find the candidate with the best F1 among the percentiles 0, 0.1, ... 100 of the scores.

    Ties go to the highest.
    """
    return _best_f1(curve, np.percentile(_scores(curve), PERCENTILES))


def f1_uniform(curve: Curve) -> float:
    """Find the candidate with the best F1 among 1,001 evenly spaced from lowest to highest score.

    Ties go to the highest.
    """
    lowest = curve.threshold[-1]
    highest = curve.threshold[0]
    return _best_f1(curve, np.linspace(lowest, highest, UNIFORM_STEPS))


def roc_youden(curve: Curve) -> float:
    """Find the score with the largest J = sensitivity + specificity - 1 (W. J. Youden 1950).

    Ties go to the highest.
    """
    # Specificity is 1 - fp / negatives, so the ones cancel.
    youden = curve.tp / curve.positives - curve.fp / curve.negatives
    return float(curve.threshold[np.argmax(youden)])


def percentile_95(curve: Curve) -> float:
    """Give the 95th percentile of the scores: about 5 % of normal images are reported.

    It is interpolated linearly.
    """
    return float(np.percentile(_scores(curve), 95))


def _best_f1(curve: Curve, candidates: NDArray[np.float64]) -> float:
    """Find the highest of the rising candidates that reach the best F1."""
    falling = candidates[::-1]
    # How many distinct scores each candidate reports, (C,); the curve's thresholds fall.
    reached = np.searchsorted(-curve.threshold, -falling, side="right")
    tp = np.append(0, curve.tp)[reached]
    fp = np.append(0, curve.fp)[reached]
    f1 = 2 * tp / (curve.positives + tp + fp)
    return float(falling[np.argmax(f1)])


def _scores(curve: Curve) -> NDArray[np.float64]:
    """Give the scores that a curve was made of, falling, with their repetitions."""
    counts = np.diff(curve.tp + curve.fp, prepend=0).astype(np.int64)
    return np.repeat(curve.threshold, counts)


THRESHOLDS: dict[str, Rule] = {
    "f1_percentile": Rule(
        "F1 (Percentile)", "best F1 among percentiles of the test scores", True, f1_percentile
    ),
    "f1_uniform": Rule("F1 (Uniform)", "best F1 among evenly spaced scores", True, f1_uniform),
    "roc_youden": Rule("ROC (Youden J)", "largest sensitivity + specificity - 1", True, roc_youden),
    "percentile_95": Rule(
        "Percentile (95%)", "95th percentile of held-out normals", False, percentile_95
    ),
}
"""Every rule by its name; the one place to add one."""


PIXEL_DEVIATIONS = 3
"""Standard deviations above the mean at which a pixel of a map is reported."""


@dataclass(frozen=True)
class PixelScale:
    """How high a model's maps are where nothing is wrong."""

    mean: float
    """Of all pixels of held-out normal images."""
    deviation: float
    """Standard deviation of the same."""


def pixel_scale(held_out_maps: Iterable[NDArray]) -> PixelScale:
    """Take mean and deviation of the pixels of maps, one map after the other.

    Args:
        held_out_maps: maps (H, W) of held-out normals, all of one size, at least one.
    """
    # No copy of all maps is made: the variance is that within images plus that between them.
    means = []
    variances = []
    for one in held_out_maps:
        means.append(one.mean(dtype=np.float64))
        variances.append(one.var(dtype=np.float64))
    deviation = np.sqrt(np.mean(variances) + np.var(means))
    return PixelScale(float(np.mean(means)), float(deviation))


def pixel_threshold(held_out_map: NDArray | None) -> Threshold:
    """Find the threshold of pixels: mean + 3 standard deviations of the maps of held-out normals.

    It is that of the baselines of MVTec AD 2 (L. Heckler-Kram et al. 2025).

    Args:
        held_out_map: (M, H, W) maps of held-out normals, None or empty without any.

    Raises:
        InputError: a map holds NaN or infinity.
    """
    if held_out_map is None or not len(held_out_map):
        return Threshold("mean_3std", None, False, "n/a: no maps of held-out normals")
    check_finite("anomaly_map of held-out normals", held_out_map)
    scale = pixel_scale(held_out_map)
    value = scale.mean + PIXEL_DEVIATIONS * scale.deviation
    return Threshold("mean_3std", value, False, _note_on_count(len(held_out_map)))


def compute_thresholds(
    pred_score: NDArray, label: NDArray, holdout_score: NDArray | None = None
) -> dict[str, Threshold]:
    """Compute all thresholds of `THRESHOLDS`.

    Args:
        pred_score: (N,) scores of the test set, higher is more anomalous.
        label: (N,) 0 normal, 1 anomalous.
        holdout_score: (M,) scores of held-out normals, which were neither trained on nor are in the
            test set; None or empty without any.

    Raises:
        InputError: as `adray.metrics.image_metrics`; a held-out score that is NaN or infinite
            likewise.
    """
    scores, positive = check_scores(pred_score, label)
    held_out = np.empty(0) if holdout_score is None else np.asarray(holdout_score, dtype=np.float64)
    held_out, normal = check_scores(held_out, np.zeros(held_out.shape))

    found = {}
    for name, rule in THRESHOLDS.items():
        if rule.oracle:
            found[name] = _by_labels(name, rule, scores, positive)
        else:
            found[name] = _by_holdout(name, rule, held_out, normal)
    return found


def chosen_threshold(thresholds: Mapping[str, Threshold]) -> Threshold | None:
    """Choose the threshold of verdicts and pictures.

    It is percentile-95 of held-out normals, else the oracle F1, else none.
    """
    for name in ("percentile_95", "f1_percentile"):
        if thresholds[name].value is not None:
            return thresholds[name]
    return None


def confusions(
    thresholds: Mapping[str, Threshold], pred_score: NDArray, label: NDArray
) -> dict[str, Confusion]:
    """Count right and wrong verdicts at each threshold that has a value, by the threshold's name.

    Args:
        thresholds: by name.
        pred_score: (N,) scores of the test set, higher is more anomalous.
        label: (N,) 0 normal, 1 anomalous.

    Raises:
        InputError: as `adray.metrics.image_metrics`.
    """
    found = {}
    for name, threshold in thresholds.items():
        if threshold.value is not None:
            found[name] = confusion(pred_score, label, threshold.value)
    return found


def _by_labels(
    name: str, rule: Rule, scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> Threshold:
    """Find an oracle's threshold on the test set, where both classes are there."""
    if not scores.size or positive.all() or not positive.any():
        return Threshold(name, None, rule.oracle, "; ".join(describe_problems(scores, positive)))
    value = rule.compute(curve(scores, positive))
    note = "every test image is reported at it" if value <= scores.min() else ""
    return Threshold(name, value, rule.oracle, note)


def _by_holdout(
    name: str, rule: Rule, scores: NDArray[np.float64], normal: NDArray[np.bool_]
) -> Threshold:
    """Find a threshold on the scores of held-out normals, where there are some."""
    if not scores.size:
        return Threshold(name, None, rule.oracle, "n/a: no held-out normals (holdout: 0)")
    value = rule.compute(curve(scores, normal))
    return Threshold(name, value, rule.oracle, _note_on_count(scores.size))


def _note_on_count(count: int) -> str:
    """Say where there are few held-out normals."""
    return f"from only {count} held-out normals" if count < FEW_HOLDOUT else ""
