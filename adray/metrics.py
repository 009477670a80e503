"""How good scores and maps are: AUROC, AUPR, F1, AUPRO, separation, all read off one `Curve`.

A curve counts, for falling thresholds, how many anomalous (tp) and normal (fp) samples score at
least the threshold. Each metric is a small function of it, so the four pixel metrics cost one
histogram, or one sort, together.

scikit-learn has no AUPRO, and sorts and checks anew for each metric. Here 7.5 million pixels take
0.2 s for all four metrics, with it 5.3 s for AUROC and AUPR; 115 images take 0.3 ms against 12 ms,
a confusion matrix 14 us against 4 ms (`jobs/bench_metrics.py`). The tests compare the values.

Sources: F. Provost and T. Fawcett 2001 (ROC); average precision as in scikit-learn; P. Bergmann et
al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5 (per-region overlap up to a false
positive rate of 0.3).
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
"""Wanted number of histogram bins; rounding to powers of two makes at most twice as many and a
few."""
CHUNK_PIXELS = 1 << 20
"""Pixels worked on at a time, which bounds the temporaries to some tens of MB whatever the data
set."""
EIGHT_CONNECTED = np.ones((3, 3), dtype=np.uint8)

Floats = NDArray[np.floating]

logger = logging.getLogger(__name__)


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
    """(K,) share in 0..1 of a defect region that is reported, mean over regions; None where not
    asked for."""
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
    return _count(np.sort(scores[positive]), np.sort(scores[~positive]), np.unique(scores)[::-1])


def _count(positives: Floats, negatives: Floats, threshold: Floats) -> Curve:
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
    fpr = _from_origin(curve.fp / curve.negatives)
    overlap = _from_origin(curve.overlap)

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


def error_bound(curve: Curve, fpr_limit: float = FPR_LIMIT) -> float:
    """Bound how far auroc, aupr, f1_max and aupro may be from exact, since scores share bins.

    The exact curve passes through every corner of the binned one, and may take any rising way in
    between. So an area is off by at most half the rectangle between two corners, and precision and
    F1 are bounded by the way that meets all anomalous, or all normal samples of a bin first. Scores
    that are truly equal count as if they were not.
    """
    if curve.exact:
        return 0.0
    tp = curve.tp
    fp = curve.fp
    tp_before = _from_origin(tp)[:-1]
    fp_before = _from_origin(fp)[:-1]
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

    if curve.overlap is not None:
        inside = fp_before <= fpr_limit * curve.negatives
        boxes = (fp_step / curve.negatives * np.diff(curve.overlap, prepend=0))[inside]
        # The rectangle that the limit cuts can be missed whole, not by half only.
        bounds.append((np.sum(boxes) + boxes[-1]) / (2 * fpr_limit))
    return float(max(bounds))


def _from_origin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the first point of a curve, (0, 0), in front of its values."""
    return np.concatenate(([0.0], values))


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Sum the trapezoids under a curve that starts at the origin."""
    # scipy.integrate has the same, and takes longer to import than a sweep to plan.
    return float(np.sum(np.diff(x, prepend=0) * (_from_origin(y)[:-1] + y))) / 2


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


# ---- curves of pixels ----


def pixel_curve(anomaly_map: Floats, mask: NDArray, exact: bool = False) -> Curve:
    """Make one curve over all pixels of all images, with the overlap of regions.

    By default it is a histogram. When its `error_bound` is above `MAX_ERROR`, and with `exact`, the
    pixels are sorted.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool, with defective and normal pixels among all images.
        exact: sort at once.
    """
    if exact:
        return sorted_curve(anomaly_map, mask)

    binned = binned_curve(anomaly_map, mask)
    bound = error_bound(binned)
    if bound > MAX_ERROR:
        logger.debug("pixel metrics by sorting: a histogram's error bound is %.1g", bound)
        return sorted_curve(anomaly_map, mask)
    logger.debug(
        "pixel metrics by a histogram of %d bins, error at most %.1g", binned.tp.size, bound
    )
    return binned


def sorted_curve(anomaly_map: Floats, mask: NDArray) -> Curve:
    """Make the exact curve of pixels, thinned to the corners where it bends.

    It bends only where a defective pixel comes in and where the last normal pixel before one did.
    Leaving out the thresholds in between keeps the curve small where defects are. Arguments as in
    `pixel_curve`.
    """
    negatives = anomaly_map[~mask]
    negatives.sort()
    inside = anomaly_map[mask]
    order = np.argsort(inside)
    positives = inside[order]

    # The corners: each defective score, the next higher normal one, and the lowest score of all.
    bends = np.unique(positives)
    above = np.searchsorted(negatives, bends, side="right")
    above = above[above < negatives.size]
    lowest = min(positives[0], negatives[0])
    corners = np.unique(np.concatenate((bends, negatives[above], [lowest])))[::-1]
    counts = _count(positives, negatives, corners)

    # Summed from the highest score on, the weights of tp pixels are what is covered at a corner.
    covered = _from_origin(np.cumsum(_region_weights(mask)[order][::-1]))
    overlap = covered[counts.tp.astype(np.int64)] / covered[-1]
    return Curve(counts.threshold, counts.tp, counts.fp, overlap)


def binned_curve(anomaly_map: Floats, mask: NDArray) -> Curve:
    """Make the curve of pixels by a histogram over the bit patterns of the scores.

    Read as ordered integers, float32 scores fall into 65,536 coarse bins by their upper half. Each
    is split by leading bits of the lower half, the finer the more of the pixels or of the defective
    pixels it holds. So the resolution follows the scores wherever they lie, and outliers take none
    of it. Arguments as in `pixel_curve`.
    """
    first_bin, low_bits = _plan_bins(anomaly_map, mask)
    bins = int(first_bin[-1])
    total = np.zeros(bins)
    positive = np.zeros(bins)
    weight = np.zeros(bins)
    # A chunk at a time: the keys of all pixels together would take many times the maps.
    for part in _chunks(anomaly_map.shape):
        key = _ordered_keys(anomaly_map[part])  # (M,)
        coarse = key >> np.uint32(16)
        index = first_bin[coarse] + ((key & np.uint32(0xFFFF)) >> low_bits[coarse])
        total += np.bincount(index, minlength=bins)

        index = index[mask[part].ravel()]  # of the defective pixels
        positive += np.bincount(index, minlength=bins)
        weight += np.bincount(index, weights=_region_weights(mask[part]), minlength=bins)

    filled = np.flatnonzero(total)[::-1]
    tp = np.cumsum(positive[filled])
    fp = np.cumsum(total[filled]) - tp
    covered = np.cumsum(weight[filled])
    threshold = _lowest_scores(filled, first_bin, low_bits)
    return Curve(threshold, tp, fp, covered / covered[-1], exact=False)


def _plan_bins(anomaly_map: Floats, mask: NDArray) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Choose how finely each coarse bin is split.

    Returns:
        For each coarse bin its first fine bin (65537,), of which the last is their number, and the
        low bits to drop (65536,).
    """
    total = np.zeros(1 << 16)
    positive = np.zeros(1 << 16)
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
    """Give the lowest float32 score that falls into each of the fine bins."""
    coarse = np.searchsorted(first_bin, bins, side="right") - 1
    low = (bins - first_bin[coarse]) << low_bits[coarse].astype(np.int64)
    key = ((coarse << 16) + low).astype(np.uint32)
    # Undoes `_ordered_keys`.
    return np.where(key >> np.uint32(31), key ^ np.uint32(1 << 31), ~key).view(np.float32)


def _ordered_keys(scores: Floats) -> NDArray[np.uint32]:
    """Turn M float32 scores into unsigned integers of the same order, (M,).

    The bits of positive floats already rise with their value, those of negative ones fall: flip
    these, and set the sign bit of the others.
    """
    bits = (scores.ravel() + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 equal to 0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    return bits ^ flip


def _region_weights(mask: NDArray) -> NDArray[np.float64]:
    """Give 1 / size of its 8-connected region for each of the P defective pixels, (P,).

    Args:
        mask: (N, H, W) bool, in whose order the pixels are.
    """
    weights = [np.empty(0)]
    for image in mask:
        if image.any():
            region, _ = ndimage.label(image, structure=EIGHT_CONNECTED)  # (H, W), 0 is no region
            region = region[image]
            size = np.bincount(region)
            weights.append(1 / size[region])
    return np.concatenate(weights)


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of whole images, about `CHUNK_PIXELS` each."""
    count, height, width = shape
    images = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, count, images):
        yield slice(start, start + images)


# ---- the table, and what others call ----


@dataclass(frozen=True)
class Metric:
    """One metric and how it is read off a curve."""

    meaning: str
    """Half a sentence for tables."""
    level: str
    """``image`` or ``pixel``."""
    higher_is_better: bool
    """False where a lower value is better."""
    compute: Callable[[Curve], float | None]
    """Its value on a curve on which both classes are present; None where it is undefined."""


METRICS: dict[str, Metric] = {
    "image_auroc": Metric(
        "chance that a defective image outscores a normal one", "image", True, auroc
    ),
    "image_aupr": Metric("average precision of images", "image", True, aupr),
    "image_f1_max": Metric(
        "best F1 of images over all thresholds (oracle)", "image", True, best_f1
    ),
    "separation": Metric(
        "distance of the mean scores in pooled standard deviations", "image", True, separation
    ),
    "pixel_auroc": Metric(
        "chance that a defective pixel outscores a normal one", "pixel", True, auroc
    ),
    "pixel_aupr": Metric("average precision of pixels", "pixel", True, aupr),
    "pixel_f1_max": Metric(
        "best F1 of pixels over all thresholds (oracle)", "pixel", True, best_f1
    ),
    "pixel_aupro": Metric(
        "per-region overlap up to a false positive rate of 0.3", "pixel", True, aupro
    ),
}
"""Every metric by its name; the one place to add one."""


def image_metrics(pred_score: NDArray, label: NDArray) -> dict[str, float | None]:
    """Compute all image-level metrics of `METRICS`.

    Args:
        pred_score: (N,) real numbers, higher is more anomalous; reckoned in float64.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a score is NaN or infinite, a label neither 0 nor 1, or the lengths differ.
    """
    scores, positive = check_scores(pred_score, label)
    if not _has_both(positive):
        return _undefined("image")
    return _evaluate("image", curve(scores, positive))


def pixel_metrics(
    anomaly_map: NDArray | None, mask: NDArray | None, exact: bool = False
) -> dict[str, float | None]:
    """Compute all pixel-level metrics of `METRICS`, over the pixels of all images together.

    Args:
        anomaly_map: (N, H, W) higher is more anomalous, read as float32; None for a method without
            maps.
        mask: (N, H, W) bool or integer, every value but 0 is defective; None for data without
            masks.
        exact: sort the pixels instead of counting them in a histogram (which is right within 1e-5).

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a map holds NaN or infinity, or the shapes differ.
    """
    if anomaly_map is None or mask is None:
        return _undefined("pixel")
    if anomaly_map.ndim != 3 or anomaly_map.shape != mask.shape:
        raise InputError(
            f"anomaly_map has the shape {anomaly_map.shape} and mask {mask.shape}; both must be (N, H, W), "
            "so resize the masks as the images were resized."
        )

    maps = np.asarray(anomaly_map, dtype=np.float32)
    defective = np.asarray(mask, dtype=bool)
    _refuse_non_finite("anomaly_map", maps)
    if not _has_both(defective):
        return _undefined("pixel")
    return _evaluate("pixel", pixel_curve(maps, defective, exact))


def describe_problems(
    scores: NDArray | None, labels: NDArray | None, what: str = "image"
) -> list[str]:
    """Say why metrics read n/a, or are defined but mean nothing.

    Args:
        scores: `pred_score` (N,) or `anomaly_map` (N, H, W); None for a method without maps.
        labels: `label` or `mask` of the same shape; None for data without masks.
        what: ``image`` or ``pixel``, the word in the notes.

    Returns:
        Notes for a report, each a phrase; empty when all is well.
    """
    if scores is None:
        return [f"{what} metrics n/a: no scores or maps"]
    if labels is None:
        return [f"{what} metrics n/a: no labels or masks"]
    if scores.size == 0:
        return [f"{what} metrics n/a: nothing to score"]
    not_finite = _describe_non_finite(scores)
    if not_finite is not None:
        return [f"{what} metrics n/a: {not_finite}"]

    positive = np.asarray(labels, dtype=bool)
    if not _has_both(positive):
        kind = "anomalous" if positive.all() else "normal"
        return [f"{what} metrics n/a: all {scores.size} {what}s are {kind}"]
    if scores.min() == scores.max():
        return [
            f"all {scores.size} {what} scores equal {scores.flat[0]:g}: "
            "an AUROC of 0.5 means nothing here"
        ]
    if np.ptp(scores[positive]) == 0 and np.ptp(scores[~positive]) == 0:
        return [f"separation of {what} scores n/a: they do not vary within the classes"]
    return []


def check_scores(
    pred_score: NDArray, label: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give scores (N,) as float64 and whether each is anomalous (N,).

    Raises:
        InputError: a score is NaN or infinite, a label neither 0 nor 1, or the shapes are not the
            same (N,).
    """
    scores = np.asarray(pred_score, dtype=np.float64)
    labels = np.asarray(label)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"pred_score has the shape {scores.shape} and label {labels.shape}; "
            "give one score and one label per image."
        )
    _refuse_non_finite("pred_score", scores)

    strange = labels[(labels != 0) & (labels != 1)]
    if strange.size:
        raise InputError(f"label holds {strange[0]!s}; allowed are 0 (normal) and 1 (anomalous).")
    return scores, labels.astype(bool)


def _evaluate(level: str, of: Curve) -> dict[str, float | None]:
    """Compute the metrics of one level."""
    return {name: metric.compute(of) for name, metric in METRICS.items() if metric.level == level}


def _undefined(level: str) -> dict[str, float | None]:
    """Give None for every metric of one level."""
    return {name: None for name, metric in METRICS.items() if metric.level == level}


def _has_both(positive: NDArray) -> bool:
    """Tell whether normal and anomalous samples are there."""
    return bool(positive.any()) and not bool(positive.all())


def _refuse_non_finite(name: str, scores: Floats) -> None:
    not_finite = _describe_non_finite(scores)
    if not_finite is not None:
        raise InputError(
            f"{name}: {not_finite}; scores must be finite, "
            "so check the model's training (loss, learning rate)."
        )


def _describe_non_finite(scores: NDArray) -> str | None:
    """Say how many scores are not finite and where the first one is, None when all are."""
    finite = np.isfinite(scores)
    if finite.all():
        return None
    first = np.unravel_index(int(np.argmin(finite)), scores.shape)
    position = tuple(int(i) for i in first)
    count = finite.size - int(np.count_nonzero(finite))
    return f"{count} of {finite.size} values are NaN or infinite, the first one at index {position}"


# ---- verdicts at one threshold ----


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold, and the rates that follow.

    A rate is None (n/a) where it would divide by 0.
    """

    tp: int
    """Anomalous images that are reported."""
    fn: int
    """Anomalous images that are not."""
    tn: int
    """Normal images that are not reported."""
    fp: int
    """Normal images that are."""

    @property
    def accuracy(self) -> float | None:
        """Give the share of images that are judged right."""
        return _ratio(self.tp + self.tn, self.tp + self.fn + self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        """Give the share of the reported images that are anomalous."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Give the share of the anomalous images that are reported, also called sensitivity."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        """Give the share of the normal images that are not reported."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def f1(self) -> float | None:
        """Give the harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(pred_score: NDArray, label: NDArray, threshold: float) -> Confusion:
    """Count verdicts when a score >= `threshold` is called anomalous.

    Arguments as in `image_metrics`.

    Raises:
        InputError: as `image_metrics`.
    """
    scores, positive = check_scores(pred_score, label)
    reported = scores >= threshold
    return Confusion(
        tp=int(np.sum(reported & positive)),
        fn=int(np.sum(~reported & positive)),
        tn=int(np.sum(~reported & ~positive)),
        fp=int(np.sum(reported & ~positive)),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
