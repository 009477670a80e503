"""How good scores and maps are: every figure, in one table, and how each is computed.

A metric is a small function of what is counted of images, parts, pixels or defects: most of a
`Curve`, see `adray.curves`, some of the verdicts at one threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adray.curves import (
    FPR_LIMIT,
    SMALL_FPR_LIMIT,
    Curve,
    Floats,
    aupr,
    aupro,
    auroc,
    best_f1,
    curve,
    separation,
    small_aupro,
)
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.pixel_curves import pixel_curve

# ---- verdicts at one threshold ----


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold, and the rates that follow.

    A rate is None (n/a) where it would divide by 0.
    """

    tp: int
    """Anomalous samples that are reported."""
    fn: int
    """Anomalous samples that are not."""
    tn: int
    """Normal samples that are not reported."""
    fp: int
    """Normal samples that are."""

    @property
    def accuracy(self) -> float | None:
        """Give the share of samples that are judged right."""
        return _ratio(self.tp + self.tn, self.tp + self.fn + self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        """Give the share of the reported samples that are anomalous."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Give the share of the anomalous samples that are reported, also called sensitivity."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        """Give the share of the normal samples that are not reported."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def f1(self) -> float | None:
        """Give the harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(pred_score: NDArray, label: NDArray, threshold: float) -> Confusion:
    """Count verdicts when a score >= `threshold` is called anomalous.

    Arguments as in `image_metrics`.

    Raises:
        InputError: as `image_metrics`, and for a threshold that is NaN.
    """
    _check_threshold(threshold)
    scores, positive = check_scores(pred_score, label)
    reported = scores >= threshold
    return Confusion(
        tp=int(np.sum(reported & positive)),
        fn=int(np.sum(~reported & positive)),
        tn=int(np.sum(~reported & ~positive)),
        fp=int(np.sum(reported & ~positive)),
    )


def pixel_verdicts(
    anomaly_map: NDArray,
    mask: NDArray,
    threshold: float,
    inside: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Count the pixels of each image that are judged right and wrong at one threshold.

    Args:
        anomaly_map: (N, H, W); a pixel is reported where it is >= `threshold`.
        mask: (N, H, W), not zero on defects.
        threshold: of pixels.
        inside: (N, H, W), the pixels that count; None for all.

    Returns:
        (N, 4) counts in the order of `Confusion`.

    Raises:
        InputError: a map holds NaN or infinity, or the threshold is NaN.
    """
    _check_threshold(threshold)
    check_finite("anomaly_map", anomaly_map)
    rows = []
    for i, (one, defect) in enumerate(zip(anomaly_map, mask, strict=True)):
        if inside is not None:
            one = one[inside[i]]
            defect = defect[inside[i]]
        reported = one >= threshold
        marked = np.count_nonzero(defect)
        tp = np.count_nonzero(reported[defect != 0])
        fp = np.count_nonzero(reported) - tp
        rows.append((tp, marked - tp, one.size - marked - fp, fp))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _check_threshold(threshold: float) -> None:
    """Refuse a threshold that no score reaches, since it is no number."""
    if np.isnan(threshold):
        raise InputError(Sentence.of("metric threshold nan"))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# ---- the table ----


def mean_auroc(curves: Sequence[Curve]) -> float:
    """Average the AUROC of several kinds of defects."""
    return float(np.mean([auroc(one) for one in curves]))


def mean_small_aupro(curves: Sequence[Curve]) -> float:
    """Average `small_aupro` of several kinds of defects."""
    return float(np.mean([small_aupro(one) for one in curves]))


def mean_area(areas: NDArray[np.float64]) -> float:
    """Average the areas of those images that have one."""
    return float(np.nanmean(areas))


def f1(counts: Confusion) -> float | None:
    """Give the F1 of verdicts at one threshold."""
    return counts.f1


@dataclass(frozen=True)
class Metric:
    """One metric and how it is computed."""

    meaning: str
    """Half a sentence for tables."""
    level: str
    """What is counted: ``image``, ``part``, ``pixel`` or ``defect``."""
    higher_is_better: bool
    """False where a lower value is better."""
    compute: Callable[..., float | None]
    """Its value, of what `of` says; None where it is undefined."""
    of: str = "curve"
    """What it is computed of: ``curve``, a `Curve` on which both classes are present; ``kinds``,
    such a curve for each kind of defect; ``verdicts``, a `Confusion`; ``areas``, one number per
    image, NaN for those that have none."""


METRICS: dict[str, Metric] = {
    "image_auroc": Metric(
        "chance that a defective image outscores a normal one", "image", True, auroc
    ),
    "image_aupr": Metric("average precision of images", "image", True, aupr),
    "image_f1_max": Metric(
        "best F1 of images over all thresholds (oracle)", "image", True, best_f1
    ),
    "image_f1": Metric(
        "F1 of images at the 95th percentile of held-out normals (ClassF1)",
        "image",
        True,
        f1,
        "verdicts",
    ),
    "image_auroc_kinds": Metric(
        "mean of the image AUROCs of logical and of structural anomalies",
        "image",
        True,
        mean_auroc,
        "kinds",
    ),
    "separation": Metric(
        "distance of the mean scores in pooled standard deviations", "image", True, separation
    ),
    "part_auroc": Metric(
        "AUROC of parts by the highest score of their images", "part", True, auroc
    ),
    "part_aupr": Metric(
        "average precision of parts by the highest score of their images", "part", True, aupr
    ),
    "part_f1_max": Metric("best F1 of parts over all thresholds (oracle)", "part", True, best_f1),
    "pixel_auroc": Metric(
        "chance that a defective pixel outscores a normal one", "pixel", True, auroc
    ),
    "pixel_aupr": Metric("average precision of pixels", "pixel", True, aupr),
    "pixel_f1_max": Metric(
        "best F1 of pixels over all thresholds (oracle)", "pixel", True, best_f1
    ),
    "pixel_f1": Metric(
        "F1 of pixels at mean + 3 standard deviations of held-out normals (SegF1)",
        "pixel",
        True,
        f1,
        "verdicts",
    ),
    "pixel_aupro": Metric(
        f"per-region overlap up to a false positive rate of {FPR_LIMIT:g}", "pixel", True, aupro
    ),
    "pixel_aupro_05": Metric(
        f"per-region overlap up to a false positive rate of {SMALL_FPR_LIMIT:g}",
        "pixel",
        True,
        small_aupro,
    ),
    "pixel_aupimo": Metric(
        "mean over images of the overlap at false positive rates from 1e-5 to 1e-4 on normal images",
        "pixel",
        True,
        mean_area,
        "areas",
    ),
    "au_spro_05": Metric(
        f"saturated overlap of defects up to a false positive rate of {SMALL_FPR_LIMIT:g}",
        "defect",
        True,
        mean_small_aupro,
        "kinds",
    ),
}
"""Every metric by its name; the one place to add one."""


# ---- what others call ----


def compute_metrics(level: str, of: str, counted: Any) -> dict[str, float | None]:
    """Compute the metrics of one level that are computed of the same thing.

    Args:
        level: as in `Metric`.
        of: as in `Metric`.
        counted: what `of` says, or None where it cannot be had.

    Returns:
        A value per metric, None (n/a) where it is undefined.
    """
    found: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if (metric.level, metric.of) == (level, of):
            found[name] = None if counted is None else metric.compute(counted)
    return found


def image_metrics(pred_score: NDArray, label: NDArray) -> dict[str, float | None]:
    """Compute the image-level metrics of `METRICS` that need scores and labels alone.

    Args:
        pred_score: (N,) real numbers, higher is more anomalous; reckoned in float64.
        label: (N,) 0 normal, 1 anomalous.

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a score is NaN or infinite, a label neither 0 nor 1, or the lengths differ.
    """
    scores, positive = check_scores(pred_score, label)
    counted = curve(scores, positive) if has_both(positive) else None
    return compute_metrics("image", "curve", counted)


def pixel_metrics(
    anomaly_map: NDArray | None,
    mask: NDArray | None,
    exact: bool = False,
    inside: NDArray[np.bool_] | None = None,
) -> dict[str, float | None]:
    """Compute the metrics of `METRICS` over the pixels of all images together.

    Args:
        anomaly_map: (N, H, W) higher is more anomalous, read as float32; None for a method without
            maps.
        mask: (N, H, W) bool or integer, every value but 0 is defective; None for data without
            masks.
        exact: sort the pixels instead of counting more than `SORTED_PIXELS` of them in a histogram
            (which is right within 1e-5).
        inside: (N, H, W), the pixels that count; None for all.

    Returns:
        A value per metric, None (n/a) where it is undefined; `describe_problems` gives the reason.

    Raises:
        InputError: a map holds NaN or infinity, or the shapes differ.
    """
    if anomaly_map is None or mask is None:
        return compute_metrics("pixel", "curve", None)
    maps, defective = check_maps(anomaly_map, mask)
    counted = pixel_curve(maps, defective, exact, inside) if has_both(defective) else None
    return compute_metrics("pixel", "curve", counted)


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
    if not has_both(positive):
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
            Sentence.of("metric shapes", scores=str(scores.shape), labels=str(labels.shape))
        )
    check_finite("pred_score", scores)

    strange = labels[(labels != 0) & (labels != 1)]
    if strange.size:
        raise InputError(Sentence.of("metric labels", strange=strange[0]))
    return scores, labels.astype(bool)


def check_maps(
    anomaly_map: NDArray, mask: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give maps (N, H, W) as float32 and whether each pixel is defective (N, H, W).

    Raises:
        InputError: a map holds NaN or infinity, or the shapes are not the same (N, H, W).
    """
    if anomaly_map.ndim != 3 or anomaly_map.shape != mask.shape:
        raise InputError(
            Sentence.of("metric map shapes", map=str(anomaly_map.shape), mask=str(mask.shape))
        )
    maps = np.asarray(anomaly_map, dtype=np.float32)
    check_finite("anomaly_map", maps)
    return maps, np.asarray(mask, dtype=bool)


def has_both(positive: NDArray) -> bool:
    """Tell whether normal and anomalous samples are there."""
    return bool(positive.any()) and not bool(positive.all())


def check_finite(name: str, scores: Floats) -> None:
    """Refuse scores or maps among which NaN or infinity is.

    Args:
        name: of what they are, for the message.
        scores: of any shape.

    Raises:
        InputError: with how many there are, and the index of the first one.
    """
    not_finite = _describe_non_finite(scores)
    if not_finite is not None:
        raise InputError(Sentence.of("metric not finite", name=name, not_finite=not_finite))


def _describe_non_finite(scores: NDArray) -> str | None:
    """Say how many scores are not finite and where the first one is, None when all are."""
    finite = np.isfinite(scores)
    if finite.all():
        return None
    first = np.unravel_index(int(np.argmin(finite)), scores.shape)
    position = tuple(int(i) for i in first)
    count = finite.size - int(np.count_nonzero(finite))
    return f"{count} of {finite.size} values are NaN or infinite, the first one at index {position}"
