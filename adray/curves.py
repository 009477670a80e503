"""What a detector catches and falsely reports at every threshold, and the figures read off that.

A curve counts, for falling thresholds, how many anomalous (tp) and normal (fp) samples score at
least the threshold. Samples are images, parts or pixels. Each metric is a small function of it, so
that all of them together cost one sort, or one histogram.

Sources: F. Provost and T. Fawcett 2001 (ROC); average precision as in scikit-learn; P. Bergmann et
al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5 (per-region overlap up to a false
positive rate of 0.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FPR_LIMIT = 0.3
"""AUPRO integrates over false positive rates up to this one, where no other is asked for."""
SMALL_FPR_LIMIT = 0.05
"""The limit of MVTec AD 2, and of MVTec LOCO's headline."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Curve:
    """What a detector catches and what it falsely reports, for K falling thresholds."""

    threshold: Floats
    """(K,) scores, strictly falling; a sample is reported when its score is >= the threshold."""
    tp: NDArray[np.float64]
    """(K,) counts of reported anomalous samples, rising, the last one is all of them."""
    fp: NDArray[np.float64]
    """(K,) counts of reported normal samples, rising, the last one is all of them."""
    overlap: NDArray[np.float64] | None = None
    """(K,) share in 0..1 of a defect region that is reported, mean over regions, rising; None where
    not asked for."""
    exact: bool = True
    """False when near scores share a histogram bin; then `error_bound` says what that costs."""

    @property
    def positives(self) -> float:
        """Count the anomalous samples."""
        return float(self.tp[-1])

    @property
    def negatives(self) -> float:
        """Count the normal samples."""
        return float(self.fp[-1])


def curve(scores: Floats, labels: NDArray) -> Curve:
    """Make the exact curve over all distinct scores.

    Args:
        scores: (N,) finite, N >= 1, higher is more anomalous; compared in the precision they come
            in.
        labels: (N,) bool or 0/1, true for anomalous; one class may be missing.
    """
    positive = np.asarray(labels, dtype=bool)
    thresholds = np.unique(scores)[::-1]
    return count_samples(np.sort(scores[positive]), np.sort(scores[~positive]), thresholds)


def count_samples(positives: Floats, negatives: Floats, threshold: Floats) -> Curve:
    """Make the curve of two rising lists of scores at the given falling thresholds."""
    tp = positives.size - np.searchsorted(positives, threshold)
    fp = negatives.size - np.searchsorted(negatives, threshold)
    return Curve(threshold, tp.astype(np.float64), fp.astype(np.float64))


# ---- functions of a curve; both classes are present ----


def auroc(curve: Curve) -> float:
    """Compute the area under the ROC curve, 0..1.

    It is the chance that an anomalous sample outscores a normal one, where ties count half.
    """
    return _area(curve.fp, curve.tp) / (curve.positives * curve.negatives)


def aupr(curve: Curve) -> float:
    """Compute the average precision, 0..1, as scikit-learn does.

    It is the sum of (recall step) * precision, without interpolation.
    """
    tp_step = np.diff(curve.tp, prepend=0)
    return float(np.sum(tp_step * curve.tp / (curve.tp + curve.fp))) / curve.positives


def best_f1(curve: Curve) -> float:
    """Compute the best F1, 0..1, that any threshold reaches, see `f1_max`."""
    best, _ = f1_max(curve)
    return best


def f1_max(curve: Curve) -> tuple[float, float]:
    """Find the best F1, 0..1, of any threshold, and the highest threshold that reaches it.

    The threshold was chosen by the labels: it is an oracle.
    """
    f1 = 2 * curve.tp / (curve.positives + curve.tp + curve.fp)
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.threshold[best])


def aupro(curve: Curve, fpr_limit: float = FPR_LIMIT) -> float:
    """Compute the area under the per-region overlap over the false positive rate, 0..1.

    The curve is cut at `fpr_limit`, interpolated exactly there, and its area divided by the limit.
    A perfect map gives 1, a constant one `fpr_limit` / 2.

    Raises:
        ValueError: the curve was made without regions.
    """
    if curve.overlap is None:
        raise ValueError("aupro needs a curve with regions, as pixel_curve makes it")
    # Most points lie beyond the limit and are not looked at.
    seen = int(np.searchsorted(curve.fp, fpr_limit * curve.negatives, side="right")) + 2
    fpr = from_origin(curve.fp[:seen] / curve.negatives)
    overlap = from_origin(curve.overlap[:seen])

    cut = int(np.searchsorted(fpr, fpr_limit, side="right"))
    around = slice(cut - 1, cut + 1)  # the points before and after the limit
    at_limit = np.interp(fpr_limit, fpr[around], overlap[around])
    fpr = np.append(fpr[1:cut], fpr_limit)
    overlap = np.append(overlap[1:cut], at_limit)
    return _area(fpr, overlap) / fpr_limit


def separation(curve: Curve) -> float | None:
    """Compute mean anomalous minus mean normal score, in pooled standard deviations (Cohen's d).

    Needs a curve over all distinct scores, as `curve` makes it.

    Returns:
        Any sign, no limits; None when the scores do not vary within the classes.
    """
    anomalous_mean, anomalous_squares = _moments(curve.threshold, curve.tp)
    normal_mean, normal_squares = _moments(curve.threshold, curve.fp)
    squares = anomalous_squares + normal_squares
    freedom = curve.positives + curve.negatives - 2
    if squares == 0 or freedom == 0:
        return None
    return float((anomalous_mean - normal_mean) / np.sqrt(squares / freedom))


def small_aupro(curve: Curve) -> float:
    """Compute `aupro` up to a false positive rate of `SMALL_FPR_LIMIT`."""
    return aupro(curve, SMALL_FPR_LIMIT)


def error_bound(curve: Curve) -> float:
    """Bound how far auroc, aupr, f1_max and aupro may be from exact, since scores share bins.

    The exact curve passes through every corner of the binned one, and may take any rising way in
    between. So an area is off by at most half the rectangle between two corners, and precision and
    F1 are bounded by the way that meets all anomalous, or all normal samples of a bin first. Scores
    that are truly equal count as if they were not.
    """
    if curve.exact:
        return 0.0
    bound = _bound_of_counts(curve)
    if curve.overlap is not None:
        for limit in (FPR_LIMIT, SMALL_FPR_LIMIT):
            bound = max(bound, overlap_bound(curve, limit))
    return bound


def _bound_of_counts(curve: Curve) -> float:
    """Bound the error of auroc, aupr and f1_max, see `error_bound`."""
    tp = curve.tp
    fp = curve.fp
    tp_before = from_origin(tp)[:-1]
    fp_before = from_origin(fp)[:-1]
    tp_step = tp - tp_before
    fp_step = fp - fp_before

    # A bin's anomalous samples come first at best, last at worst.
    precision = tp / (tp + fp)
    best_precision = tp / np.maximum(tp + fp_before, 1)
    worst_precision = (tp_before + 1) / (tp_before + 1 + fp)
    best_f1_max = np.max(2 * tp / (curve.positives + tp + fp_before))
    bounds = [
        np.sum(tp_step * fp_step) / (2 * curve.positives * curve.negatives),
        np.sum(tp_step * (best_precision - precision)) / curve.positives,
        np.sum(tp_step * np.maximum(precision - worst_precision, 0)) / curve.positives,
        best_f1_max - best_f1(curve),
    ]
    return float(max(bounds))


def overlap_bound(curve: Curve, fpr_limit: float) -> float:
    """Bound how far aupro up to `fpr_limit` may be from exact, as `error_bound` does.

    Raises:
        ValueError: the curve was made without regions.
    """
    if curve.overlap is None:
        raise ValueError("a bound of aupro needs a curve with regions, as pixel_curve makes it")
    # The last one is the rectangle that the limit cuts.
    seen = int(np.searchsorted(curve.fp, fpr_limit * curve.negatives, side="right")) + 1
    fpr_step = np.diff(curve.fp[:seen], prepend=0) / curve.negatives
    boxes = fpr_step * np.diff(curve.overlap[:seen], prepend=0)
    # It can be missed whole, not by half only.
    return float((np.sum(boxes) + boxes[-1]) / (2 * fpr_limit))


def from_origin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the first point of a curve, (0, 0), in front of its values."""
    return np.concatenate(([0.0], values))


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Sum the trapezoids under a curve that starts at the origin."""
    # scipy.integrate has the same, and takes longer to import than a sweep to plan.
    return float(np.sum(np.diff(x, prepend=0) * (from_origin(y)[:-1] + y))) / 2


def _moments(threshold: Floats, cumulative: NDArray[np.float64]) -> tuple[float, float]:
    """Give the mean and the sum of squared deviations of one class."""
    count = np.diff(cumulative, prepend=0)
    present = count > 0
    count = count[present]
    # Counted from the first score, the squares are exactly 0 when all scores are equal.
    origin = threshold[present][0]
    offset = threshold[present] - origin
    mean = np.sum(count * offset) / cumulative[-1]
    return float(origin + mean), float(np.sum(count * (offset - mean) ** 2))
