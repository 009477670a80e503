"""How good are scores and maps: AUROC, AUPR, F1, AUPRO, separation, all read off one shared `Curve`.

A curve counts, for falling thresholds, how many anomalous (tp) and normal (fp) samples score at least the threshold.
Each metric is a small function of it, so the four pixel metrics cost one histogram, or one sort, together.
Sources: F. Provost and T. Fawcett 2001 (ROC); average precision as in scikit-learn; P. Bergmann et al., "The MVTec
Anomaly Detection Dataset", IJCV 2021, section 5 (per-region overlap up to a false positive rate of 0.3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from adray.errors import InputError

FPR_LIMIT = 0.3
"""AUPRO integrates over false positive rates up to this one."""
MAX_ERROR = 1e-5
"""Above this error bound a histogram is thrown away and the pixels are sorted."""
HISTOGRAM_BINS = 1 << 19
"""Wanted number of histogram bins; rounding to powers of two makes at most twice as many and a few."""
CHUNK_PIXELS = 1 << 20
"""Pixels worked on at a time, which bounds the temporaries to some tens of MB whatever the data set."""
EIGHT_CONNECTED = np.ones((3, 3), dtype=np.uint8)

Floats = NDArray[np.floating]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """What a detector catches and what it falsely reports, for K falling thresholds.

    Attributes:
        threshold: (K,) scores, strictly falling; a sample is reported when its score is >= the threshold.
        tp: (K,) float64 counts of reported anomalous samples, rising, the last one is all of them.
        fp: (K,) float64 counts of reported normal samples, rising, the last one is all of them.
        overlap: (K,) share in 0..1 of a defect region that is reported, mean over regions; None where not asked for.
        exact: False when near scores share a histogram bin; then `error_bound` says what that costs.
    """

    threshold: Floats
    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    overlap: NDArray[np.float64] | None = None
    exact: bool = True

    @property
    def positives(self) -> float:
        """Number of anomalous samples."""
        return float(self.tp[-1])

    @property
    def negatives(self) -> float:
        """Number of normal samples."""
        return float(self.fp[-1])


def curve(scores: Floats, labels: NDArray) -> Curve:
    """The exact curve over all distinct scores.

    Args:
        scores: (N,) finite, N >= 1, higher is more anomalous; compared in the precision they come in.
        labels: (N,) bool or 0/1, true for anomalous; one class may be missing.
    """
    positive = np.asarray(labels, dtype=bool)
    return _count(np.sort(scores[positive]), np.sort(scores[~positive]), np.unique(scores)[::-1])


def _count(positives: Floats, negatives: Floats, threshold: Floats) -> Curve:
    """The curve of two rising lists of scores at the given falling thresholds."""
    tp = positives.size - np.searchsorted(positives, threshold)
    fp = negatives.size - np.searchsorted(negatives, threshold)
    return Curve(threshold, tp.astype(np.float64), fp.astype(np.float64))


# ---- functions of a curve; both classes are present ----


def auroc(curve: Curve) -> float:
    """Area under the ROC curve, 0..1: the chance that an anomalous sample outscores a normal one, ties count half."""
    return _area(curve.fp, curve.tp) / (curve.positives * curve.negatives)


def aupr(curve: Curve) -> float:
    """Average precision, 0..1: the sum of (recall step) * precision, without interpolation, as in scikit-learn."""
    return (
        float(np.sum(np.diff(curve.tp, prepend=0) * curve.tp / (curve.tp + curve.fp)))
        / curve.positives
    )


def f1_max(curve: Curve) -> tuple[float, float]:
    """The best F1, 0..1, that any threshold reaches, and the highest threshold that reaches it.

    The threshold was chosen by the labels: it is an oracle.
    """
    f1 = 2 * curve.tp / (curve.positives + curve.tp + curve.fp)
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.threshold[best])


def aupro(curve: Curve, fpr_limit: float = FPR_LIMIT) -> float:
    """Area under the per-region overlap over the false positive rate, cut at `fpr_limit` and divided by it; 0..1.

    The curve is interpolated exactly at the limit. A perfect map gives 1, a constant one `fpr_limit` / 2.

    Raises:
        ValueError: the curve was made without regions.
    """
    if curve.overlap is None:
        raise ValueError("aupro needs a curve with regions, as pixel_curve makes it")
    fpr, overlap = _from_origin(curve.fp / curve.negatives), _from_origin(curve.overlap)
    cut = int(np.searchsorted(fpr, fpr_limit, side="right"))
    at_limit = np.interp(fpr_limit, fpr[cut - 1 : cut + 1], overlap[cut - 1 : cut + 1])
    return _area(np.append(fpr[1:cut], fpr_limit), np.append(overlap[1:cut], at_limit)) / fpr_limit


def separation(curve: Curve) -> float | None:
    """Mean anomalous minus mean normal score, in pooled standard deviations (Cohen's d).

    Any sign, no limits; None when the scores do not vary within the classes, for it is undefined there. Needs a
    curve over all distinct scores, as `curve` makes it.
    """
    anomalous_mean, anomalous_squares = _moments(curve.threshold, curve.tp)
    normal_mean, normal_squares = _moments(curve.threshold, curve.fp)
    squares, freedom = anomalous_squares + normal_squares, curve.positives + curve.negatives - 2
    if squares == 0 or freedom == 0:
        return None
    return float((anomalous_mean - normal_mean) / np.sqrt(squares / freedom))


def error_bound(curve: Curve, fpr_limit: float = FPR_LIMIT) -> float:
    """How far auroc, aupr, f1_max or aupro can at most lie from their exact values because scores share bins.

    The exact curve passes through every corner of the binned one; in between it may take any rising way. So an area
    is off by at most half the rectangle between two corners, and precision and F1 are bounded by the way that meets
    all anomalous, or all normal samples of a bin first. Scores that are truly equal count as if they were not.
    """
    if curve.exact:
        return 0.0
    tp, fp = curve.tp, curve.fp
    tp_before, fp_before = _from_origin(tp)[:-1], _from_origin(fp)[:-1]
    tp_step, fp_step = tp - tp_before, fp - fp_before
    precision = tp / (tp + fp)
    best_precision = tp / np.maximum(tp + fp_before, 1)
    worst_precision = (tp_before + 1) / (tp_before + 1 + fp)
    bounds = [
        np.sum(tp_step * fp_step) / (2 * curve.positives * curve.negatives),
        np.sum(tp_step * (best_precision - precision)) / curve.positives,
        np.sum(tp_step * np.maximum(precision - worst_precision, 0)) / curve.positives,
        np.max(2 * tp / (curve.positives + tp + fp_before)) - f1_max(curve)[0],
    ]
    if curve.overlap is not None:
        inside = fp_before <= fpr_limit * curve.negatives
        boxes = (fp_step / curve.negatives * np.diff(curve.overlap, prepend=0))[inside]
        # the rectangle that the limit cuts can be missed whole, not by half only
        bounds.append((np.sum(boxes) + boxes[-1]) / (2 * fpr_limit))
    return float(max(bounds))


def _from_origin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of a curve with its first point, (0, 0), in front."""
    return np.concatenate(([0.0], values))


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Trapezoids under a curve that starts at the origin."""
    return float(np.sum(np.diff(x, prepend=0) * (_from_origin(y)[:-1] + y))) / 2


def _moments(threshold: Floats, cumulative: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and sum of squared deviations of one class; exactly 0 squares when all its scores are equal."""
    count = np.diff(cumulative, prepend=0)
    present = count > 0
    count, origin = count[present], threshold[present][0]
    offset = threshold[present] - origin
    mean = np.sum(count * offset) / cumulative[-1]
    return float(origin + mean), float(np.sum(count * (offset - mean) ** 2))


# ---- curves of pixels ----


def pixel_curve(anomaly_map: Floats, mask: NDArray, exact: bool = False) -> Curve:
    """One curve over all pixels of all images, with the overlap of regions.

    By default a histogram; when its `error_bound` is above `MAX_ERROR`, and with `exact`, the pixels are sorted.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool, with defective and normal pixels among all images.
        exact: Sort at once.
    """
    if not exact:
        binned = binned_curve(anomaly_map, mask)
        bound = error_bound(binned)
        if bound <= MAX_ERROR:
            logger.debug(
                "pixel metrics by a histogram of %d bins, error at most %.1g", binned.tp.size, bound
            )
            return binned
        logger.debug("pixel metrics by sorting: a histogram's error bound is %.1g", bound)
    return sorted_curve(anomaly_map, mask)


def sorted_curve(anomaly_map: Floats, mask: NDArray) -> Curve:
    """The exact curve of pixels, thinned to the corners where it bends.

    It bends only where a defective pixel comes in and where the last normal pixel before one did; leaving out the
    thresholds in between keeps the curve small where defects are. Arguments as in `pixel_curve`.
    """
    inside, negatives = anomaly_map[mask], anomaly_map[~mask]
    negatives.sort()
    order = np.argsort(inside)
    positives = inside[order]
    bends = np.unique(positives)
    above = np.searchsorted(negatives, bends, side="right")
    above = above[above < negatives.size]
    lowest = min(positives[0], negatives[0])
    corners = np.unique(np.concatenate((bends, negatives[above], [lowest])))[::-1]
    counts = _count(positives, negatives, corners)
    covered = _from_origin(np.cumsum(_region_weights(mask)[order][::-1]))
    overlap = covered[counts.tp.astype(np.int64)] / covered[-1]
    return Curve(counts.threshold, counts.tp, counts.fp, overlap)


def binned_curve(anomaly_map: Floats, mask: NDArray) -> Curve:
    """The curve of pixels by a histogram over the bit patterns of the scores.

    Read as ordered integers, float32 scores fall into 65,536 coarse bins by their upper half; each is split by
    leading bits of the lower half, the finer the more of the pixels or of the defective pixels it holds. So the
    resolution follows the scores wherever they lie, and outliers take none of it. Arguments as in `pixel_curve`.
    """
    first_bin, low_bits = _plan_bins(anomaly_map, mask)
    bins = int(first_bin[-1])
    total, positive, weight = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for part in _chunks(anomaly_map.shape):
        key, inside = _ordered_keys(anomaly_map[part]), mask[part].ravel()
        coarse = key >> np.uint32(16)
        index = first_bin[coarse] + ((key & np.uint32(0xFFFF)) >> low_bits[coarse])
        total += np.bincount(index, minlength=bins)
        index = index[inside]
        positive += np.bincount(index, minlength=bins)
        weight += np.bincount(index, weights=_region_weights(mask[part]), minlength=bins)
    filled = np.flatnonzero(total)[::-1]
    tp, covered = np.cumsum(positive[filled]), np.cumsum(weight[filled])
    threshold = _lowest_scores(filled, first_bin, low_bits)
    return Curve(threshold, tp, np.cumsum(total[filled]) - tp, covered / covered[-1], exact=False)


def _plan_bins(anomaly_map: Floats, mask: NDArray) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """For each coarse bin its first fine bin (65537,), the last is their number, and the bits to drop (65536,)."""
    total, positive = np.zeros(1 << 16), np.zeros(1 << 16)
    for part in _chunks(anomaly_map.shape):
        coarse = _ordered_keys(anomaly_map[part]) >> np.uint32(16)
        total += np.bincount(coarse, minlength=1 << 16)
        positive += np.bincount(coarse[mask[part].ravel()], minlength=1 << 16)
    wanted = HISTOGRAM_BINS / 2 * (total / total.sum() + positive / positive.sum())
    kept_bits = np.clip(np.ceil(np.log2(np.maximum(wanted, 1))), 0, 16).astype(np.int64)
    first_bin = np.concatenate(([0], np.cumsum(np.left_shift(1, kept_bits))))
    return first_bin, (16 - kept_bits).astype(np.uint32)


def _lowest_scores(
    bins: NDArray, first_bin: NDArray[np.int64], low_bits: NDArray[np.uint32]
) -> Floats:
    """The lowest float32 score that falls into each of the fine bins."""
    coarse = np.searchsorted(first_bin, bins, side="right") - 1
    key = (
        (coarse << 16) + ((bins - first_bin[coarse]) << low_bits[coarse].astype(np.int64))
    ).astype(np.uint32)
    return np.where(key >> np.uint32(31), key ^ np.uint32(1 << 31), ~key).view(np.float32)


def _ordered_keys(scores: Floats) -> NDArray[np.uint32]:
    """(M,) unsigned integers in the order of the M float32 scores.

    The bits of positive floats already rise with their value, those of negative ones fall: flip these, and set the
    sign bit of the others.
    """
    bits = (scores.ravel() + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 equal to 0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    return bits ^ flip


def _region_weights(mask: NDArray) -> NDArray[np.float64]:
    """1 / size of its 8-connected region for each defective pixel of (N, H, W), in the order of `mask` (P,)."""
    weights = [np.empty(0)]
    for image in mask:
        if image.any():
            region, _ = ndimage.label(image, structure=EIGHT_CONNECTED)
            region = region[image]
            weights.append(1 / np.bincount(region)[region])
    return np.concatenate(weights)


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of whole images, about `CHUNK_PIXELS` each."""
    images = max(1, CHUNK_PIXELS // (shape[1] * shape[2]))
    return (slice(start, start + images) for start in range(0, shape[0], images))


# ---- the table, and what others call ----


@dataclass(frozen=True)
class Metric:
    """One metric: `compute` reads it off a curve on which both classes are present; None where it is undefined."""

    meaning: str
    level: str
    """``image`` or ``pixel``."""
    higher_is_better: bool
    compute: Callable[[Curve], float | None]


METRICS: dict[str, Metric] = {
    "image_auroc": Metric(
        "chance that a defective image outscores a normal one", "image", True, auroc
    ),
    "image_aupr": Metric("average precision of images", "image", True, aupr),
    "image_f1_max": Metric(
        "best F1 of images over all thresholds (oracle)", "image", True, lambda c: f1_max(c)[0]
    ),
    "separation": Metric(
        "distance of the mean scores in pooled standard deviations", "image", True, separation
    ),
    "pixel_auroc": Metric(
        "chance that a defective pixel outscores a normal one", "pixel", True, auroc
    ),
    "pixel_aupr": Metric("average precision of pixels", "pixel", True, aupr),
    "pixel_f1_max": Metric(
        "best F1 of pixels over all thresholds (oracle)", "pixel", True, lambda c: f1_max(c)[0]
    ),
    "pixel_aupro": Metric(
        "per-region overlap up to a false positive rate of 0.3", "pixel", True, aupro
    ),
}
"""Every metric by its name; the one place to add one."""


def image_metrics(pred_score: NDArray, label: NDArray) -> dict[str, float | None]:
    """All image-level metrics of `METRICS`.

    Args:
        pred_score: (N,) real numbers, higher is more anomalous; reckoned in float64.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a score is NaN or infinite, a label neither 0 nor 1, or the lengths differ.
    """
    scores, positive = check_scores(pred_score, label)
    return _evaluate("image", curve(scores, positive) if _has_both(positive) else None)


def pixel_metrics(
    anomaly_map: NDArray | None, mask: NDArray | None, exact: bool = False
) -> dict[str, float | None]:
    """All pixel-level metrics of `METRICS`, over the pixels of all images together.

    Args:
        anomaly_map: (N, H, W) higher is more anomalous, read as float32; None for a method without maps.
        mask: (N, H, W) bool or integer, every value but 0 is defective; None for data without masks.
        exact: Sort the pixels instead of counting them in a histogram (which is right within 1e-5).

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a map holds NaN or infinity, or the shapes differ.
    """
    if anomaly_map is None or mask is None:
        return _evaluate("pixel", None)
    if anomaly_map.ndim != 3 or anomaly_map.shape != mask.shape:
        raise InputError(
            f"anomaly_map has the shape {anomaly_map.shape} and mask {mask.shape}; both must be (N, H, W), "
            "so resize the masks as the images were resized."
        )
    maps, defective = np.asarray(anomaly_map, dtype=np.float32), np.asarray(mask, dtype=bool)
    _refuse_non_finite("anomaly_map", maps)
    return _evaluate("pixel", pixel_curve(maps, defective, exact) if _has_both(defective) else None)


def describe_problems(
    scores: NDArray | None, labels: NDArray | None, what: str = "image"
) -> list[str]:
    """Why metrics read n/a, or are defined but mean nothing.

    Args:
        scores: `pred_score` (N,) or `anomaly_map` (N, H, W); None for a method without maps.
        labels: `label` or `mask` of the same shape; None for data without masks.
        what: ``image`` or ``pixel``, the word in the notes.

    Returns:
        Notes for a report, each a phrase; empty when all is well.
    """
    if scores is None or labels is None:
        return [
            f"{what} metrics n/a: no {'scores or maps' if scores is None else 'labels or masks'}"
        ]
    if scores.size == 0:
        return [f"{what} metrics n/a: nothing to score"]
    if bad := _describe_non_finite(scores):
        return [f"{what} metrics n/a: {bad}"]
    positive = np.asarray(labels, dtype=bool)
    if not _has_both(positive):
        return [
            f"{what} metrics n/a: all {scores.size} {what}s are {'anomalous' if positive.all() else 'normal'}"
        ]
    if scores.min() == scores.max():
        return [
            f"all {scores.size} {what} scores equal {scores.flat[0]:g}: an AUROC of 0.5 means nothing here"
        ]
    if all(np.ptp(scores[side]) == 0 for side in (positive, ~positive)):
        return [f"separation of {what} scores n/a: they do not vary within the classes"]
    return []


def check_scores(
    pred_score: NDArray, label: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (N,) as float64 and whether each is anomalous (N,).

    Raises:
        InputError: a score is NaN or infinite, a label neither 0 nor 1, or the shapes are not the same (N,).
    """
    scores, labels = np.asarray(pred_score, dtype=np.float64), np.asarray(label)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"pred_score has the shape {scores.shape} and label {labels.shape}; give one score and one label per image."
        )
    _refuse_non_finite("pred_score", scores)
    strange = labels[(labels != 0) & (labels != 1)]
    if strange.size:
        raise InputError(f"label holds {strange[0]!s}; allowed are 0 (normal) and 1 (anomalous).")
    return scores, labels.astype(bool)


def _evaluate(level: str, of: Curve | None) -> dict[str, float | None]:
    """The metrics of one level; all n/a without a curve."""
    table = {name: metric for name, metric in METRICS.items() if metric.level == level}
    return {name: None if of is None else metric.compute(of) for name, metric in table.items()}


def _has_both(positive: NDArray) -> bool:
    """Whether normal and anomalous samples are there."""
    return bool(positive.any()) and not bool(positive.all())


def _refuse_non_finite(name: str, scores: Floats) -> None:
    if bad := _describe_non_finite(scores):
        raise InputError(
            f"{name}: {bad}; scores must be finite, so check the model's training (loss, learning rate)."
        )


def _describe_non_finite(scores: NDArray) -> str | None:
    """How many scores are NaN or infinite and where the first one is; None when all are finite."""
    finite = np.isfinite(scores)
    if finite.all():
        return None
    first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), scores.shape))
    count = finite.size - int(np.count_nonzero(finite))
    return f"{count} of {finite.size} values are NaN or infinite, the first one at index {first}"


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold, and the rates that follow; a rate is None (n/a) where it would divide by 0."""

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def accuracy(self) -> float | None:
        """Share of images that are judged right."""
        return _ratio(self.tp + self.tn, self.tp + self.fn + self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        """Share of the reported images that are anomalous."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Share of the anomalous images that are reported; also called sensitivity."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        """Share of the normal images that are not reported."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(pred_score: NDArray, label: NDArray, threshold: float) -> Confusion:
    """The confusion matrix when a score >= `threshold` is called anomalous; arguments as in `image_metrics`.

    Raises:
        InputError: as `image_metrics`.
    """
    scores, positive = check_scores(pred_score, label)
    reported = scores >= threshold
    tp, fp = int(np.sum(reported & positive)), int(np.sum(reported & ~positive))
    return Confusion(tp=tp, fn=int(positive.sum()) - tp, tn=int((~positive).sum()) - fp, fp=fp)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
