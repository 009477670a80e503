"""Every figure of a test set: of all its images, of each defect type, and of each group.

What metrics are computed of is counted once, see `_Counted`, and each figure that cannot be had
comes with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adray.aupimo import LEAST_PIXELS, image_aupimo
from adray.curves import Curve, aupro, curve
from adray.metrics import (
    METRICS,
    Confusion,
    check_maps,
    check_scores,
    compute_metrics,
    confusion,
    has_both,
    pixel_verdicts,
)
from adray.pixel_curves import pixel_curves
from adray.scores import Scores
from adray.spro import FPR_LIMITS, Kind, SproCounts

if TYPE_CHECKING:
    from adray.data.base import Sample

LOCO_TYPES = ("logical_anomalies", "structural_anomalies")
"""Defect types that MVTec LOCO judges apart and averages."""

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class ScoredImages:
    """Images and what the model said of them."""

    samples: Sequence[Sample]
    """N images."""
    scores: Scores
    """Of the same images, in their order."""
    copies: Sequence[str] = ()
    """Hash of each image's pixels where another has the same, else empty; none where nobody looked."""

    def subset(self, chosen: NDArray[np.bool_]) -> ScoredImages:
        """Keep the images where `chosen`, (N,) bool, is true, without looking for copies."""
        samples = [sample for sample, keep in zip(self.samples, chosen, strict=True) if keep]
        return ScoredImages(samples, self.scores.subset(chosen))


@dataclass(frozen=True)
class FixedThresholds:
    """Thresholds that held-out normals gave before a test image was seen."""

    image: float | None = None
    """Of image scores, None where there is none."""
    pixel: float | None = None
    """Of maps, None where there is none."""


@dataclass(frozen=True)
class Evaluation:
    """All figures of a set of images."""

    metrics: Metrics
    """By the names in `adray.metrics.METRICS`."""
    undefined: dict[str, str] = field(default_factory=dict)
    """Why a metric has no value, for each that has none."""
    per_defect_type: dict[str, Metrics] = field(default_factory=dict)
    """The same of each type against all normal images; empty where they were not asked for."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Curves by level, image, part, pixel and defect, without those that are not defined; those of
    LOCO's types are ``defect/<type>``."""
    pixel_confusion: Confusion | None = None
    """Verdicts on pixels at the fixed threshold."""

    @property
    def overlap_areas(self) -> dict[str, dict[str, float]]:
        """Give the areas of overlap up to each of `FPR_LIMITS`, by the name of the curve."""
        found = {}
        for name, one in self.curves.items():
            if one.overlap is not None:
                found[name] = {f"{limit:g}": aupro(one, limit) for limit in FPR_LIMITS}
        return found


def evaluate(
    images: ScoredImages,
    fixed: FixedThresholds = FixedThresholds(),
    spro: SproCounts | None = None,
    *,
    by_type: bool = False,
) -> Evaluation:
    """Compute every figure of some images.

    Args:
        images: with their maps.
        fixed: thresholds of held-out normals.
        spro: pixels at full size, of at least these images; None where the data are not judged so.
        by_type: also of each defect type.

    Raises:
        InputError: for a score or map that is not finite.
    """
    types = _defect_types(images)
    pixels = _count_pixels(images, fixed.pixel, types if by_type else None)
    counted = [
        *_counted_images(images, fixed.image),
        _counted_parts(images),
        *_counted_pixels(pixels),
        _counted_defects(images.samples, spro),
    ]

    per_type = {}
    if by_type:
        for name in sorted(set(types) - {""}):
            per_type[name] = _metrics_of_type(images, name, fixed.image, pixels, spro)
    return Evaluation(
        metrics=_metrics(counted),
        undefined=_reasons(counted),
        per_defect_type=per_type,
        curves=_curves(counted),
        pixel_confusion=_value_of(counted, "pixel", "verdicts"),
    )


def _metrics_of_type(
    images: ScoredImages,
    name: str,
    image_threshold: float | None,
    pixels: _Pixels,
    spro: SproCounts | None,
) -> Metrics:
    """Compute the metrics of one defect type against all normal images."""
    types = _defect_types(images)
    chosen = (types == name) | (types == "")
    subset = images.subset(chosen)
    counted = [
        *_counted_images(subset, image_threshold),
        _counted_parts(images, name),
        *_counted_pixels(pixels.of_type(name, chosen)),
        _counted_defects(subset.samples, spro),
    ]
    return _metrics(counted)


def _defect_types(images: ScoredImages) -> NDArray:
    """Give the defect type of each image, empty for normal ones, (N,)."""
    return np.array([kind_of(sample)[2] for sample in images.samples], dtype=object)


# ---- what metrics are computed of ----


@dataclass(frozen=True)
class _Counted:
    """What some metrics are computed of, or why that cannot be had."""

    level: str
    """As in `adray.metrics.Metric`."""
    of: str
    """As in `adray.metrics.Metric`."""
    value: Any
    """What `of` says, None where it cannot be had."""
    reason: str = ""
    """Why not."""


def _metrics(counted: Sequence[_Counted]) -> Metrics:
    """Compute all metrics, in the order of the table."""
    found: Metrics = dict.fromkeys(METRICS)
    for one in counted:
        found |= compute_metrics(one.level, one.of, one.value)
    return found


def _reasons(counted: Sequence[_Counted]) -> dict[str, str]:
    """Say of each metric without a value why it has none."""
    reasons = {}
    for one in counted:
        for name, value in compute_metrics(one.level, one.of, one.value).items():
            if value is None:
                reasons[name] = one.reason or "these scores do not define it"
    return {name: reasons[name] for name in METRICS if name in reasons}


def _curves(counted: Sequence[_Counted]) -> dict[str, Curve]:
    """Collect the curves by level."""
    curves = {}
    for one in counted:
        if one.value is None:
            continue
        if one.of == "curve":
            curves[one.level] = one.value
        elif one.level == "defect":
            names = ["defect"] if len(one.value) == 1 else [f"defect/{t}" for t in LOCO_TYPES]
            curves |= dict(zip(names, one.value, strict=True))
    return curves


def _value_of(counted: Sequence[_Counted], level: str, of: str) -> Any:
    """Find one thing among those that were counted."""
    for one in counted:
        if (one.level, one.of) == (level, of):
            return one.value
    return None


def _one_class(positive: NDArray, what: str) -> str:
    """Say which class alone is there."""
    kind = "anomalous" if positive.all() else "normal"
    return f"all {positive.size} {what} are {kind}" if positive.size else f"there are no {what}"


# ---- images and parts ----


def _counted_images(images: ScoredImages, threshold: float | None) -> list[_Counted]:
    """Count images, with and without a threshold, and by kind of defect."""
    scores, positive = check_scores(images.scores.pred_score, images.scores.label)
    reason = _one_class(positive, "images")
    of_all = curve(scores, positive) if has_both(positive) else None

    verdicts = None
    if threshold is not None:
        verdicts = confusion(scores, positive, threshold)
    return [
        _Counted("image", "curve", of_all, reason),
        _Counted("image", "verdicts", verdicts, "no held-out normals gave a threshold"),
        _counted_kinds(images, scores),
    ]


def _counted_kinds(images: ScoredImages, scores: NDArray) -> _Counted:
    """Count logical and structural anomalies, each against all normal images."""
    types = _defect_types(images)
    if not {"", *LOCO_TYPES} <= set(types):
        return _Counted("image", "kinds", None, "no normal, logical and structural images")
    curves = []
    for name in LOCO_TYPES:
        chosen = (types == name) | (types == "")
        curves.append(curve(scores[chosen], types[chosen] == name))
    return _Counted("image", "kinds", curves)


def _counted_parts(images: ScoredImages, defect_type: str | None = None) -> _Counted:
    """Count parts, each with the highest score of its images, anomalous where one of them is.

    Args:
        images: all images of the parts.
        defect_type: leaves out anomalous parts without a defect of this type.
    """
    if not any(sample.part for sample in images.samples):
        return _Counted("part", "curve", None, "no image names its part")

    highest: dict[Kind, float] = {}
    types: dict[Kind, set[str]] = {}
    for sample, score in zip(images.samples, images.scores.pred_score, strict=True):
        # An image that names no part shows one of its own.
        part = (sample.dataset, sample.category, sample.part or f"image {sample.key}")
        highest[part] = max(float(score), highest.get(part, float(score)))
        types.setdefault(part, set()).update({sample.defect_type} if sample.label else ())

    kept = []
    for part, of_part in types.items():
        if defect_type is None or not of_part or defect_type in of_part:
            kept.append(part)
    scores = np.array([highest[part] for part in kept])
    positive = np.array([bool(types[part]) for part in kept], dtype=bool)
    value = curve(scores, positive) if has_both(positive) else None
    return _Counted("part", "curve", value, _one_class(positive, "parts"))


# ---- pixels and defects ----


@dataclass(frozen=True)
class _Pixels:
    """What is counted of the pixels of N images."""

    reason: str = ""
    """Why nothing is, else empty."""
    whole: Curve | None = None
    """Of all of them."""
    by_type: Mapping[str, Curve] = field(default_factory=dict)
    """Of each defect type and the normal images."""
    areas: NDArray | None = None
    """(N,) AUPIMO of each image, NaN where it has none; None where it is not defined."""
    verdicts: NDArray | None = None
    """(N, 4) pixels of each image, see `pixel_verdicts`, zeros for images that are left out; None
    without a threshold."""

    def of_type(self, name: str, chosen: NDArray[np.bool_]) -> _Pixels:
        """Give those of the images where `chosen` is true: of one defect type, and the normal ones."""
        if self.reason or name not in self.by_type:
            return _Pixels(self.reason or f"no defect of the type {name} has a mask")
        return _Pixels(
            whole=self.by_type[name],
            areas=None if self.areas is None else self.areas[chosen],
            verdicts=None if self.verdicts is None else self.verdicts[chosen],
        )


def _count_pixels(images: ScoredImages, threshold: float | None, types: NDArray | None) -> _Pixels:
    """Count the pixels of those images that have a mask or no defect.

    Args:
        images: with their maps.
        threshold: of pixels, or None.
        types: (N,) defect types that shall have curves of their own, or None.
    """
    scores = images.scores
    if scores.anomaly_map is None:
        return _Pixels("the model gives no maps")
    if scores.mask is None:
        return _Pixels("no defect has a mask")

    rows = np.flatnonzero(scores.has_mask)
    is_all = len(rows) == len(scores.has_mask)
    maps, masks = check_maps(
        scores.anomaly_map if is_all else scores.anomaly_map[rows],
        scores.mask if is_all else scores.mask[rows],
    )
    inside = scores.inside
    if inside is not None and not is_all:
        inside = inside[rows]
    if not has_both(masks):
        return _Pixels(_one_class(masks, "pixels"))

    names = np.full(len(rows), "", dtype=object) if types is None else types[rows]
    whole, by_type = pixel_curves(maps, masks, names, inside)
    verdicts = None
    if threshold is not None:
        verdicts = np.zeros((len(images.samples), 4), dtype=np.int64)
        verdicts[rows] = pixel_verdicts(maps, masks, threshold, inside)

    areas = None
    normal = scores.label[rows] == 0
    pixels = np.count_nonzero(normal) * maps[0].size
    if inside is not None:
        pixels = np.count_nonzero(inside[normal])
    if pixels >= LEAST_PIXELS:
        areas = np.full(len(images.samples), np.nan)
        areas[rows] = image_aupimo(maps, masks, normal, inside)
    return _Pixels("", whole, by_type, areas, verdicts)


def _counted_pixels(pixels: _Pixels) -> list[_Counted]:
    """Give the three things that metrics of pixels are computed of."""
    if pixels.reason:
        return [_Counted("pixel", of, None, pixels.reason) for of in ("curve", "areas", "verdicts")]
    few = f"the normal images have fewer than {LEAST_PIXELS:,} pixels"
    verdicts = None
    if pixels.verdicts is not None:
        verdicts = Confusion(*pixels.verdicts.sum(axis=0).tolist())
    return [
        _Counted("pixel", "curve", pixels.whole),
        _Counted("pixel", "areas", pixels.areas, few),
        _Counted("pixel", "verdicts", verdicts, "no maps of held-out normals gave a threshold"),
    ]


def _counted_defects(samples: Sequence[Sample], spro: SproCounts | None) -> _Counted:
    """Give the curves of saturated overlap: of LOCO's two types, else of all defects together."""
    if spro is None:
        reason = (
            "the data have no defects_config.json, which says what part of a defect is enough, or "
            "the images are not squeezed whole (fit, roi)"
        )
        return _Counted("defect", "kinds", None, reason)

    kinds = set(map(kind_of, samples))
    types = set(map(itemgetter(2), kinds))
    groups = [types]
    if set(LOCO_TYPES) <= types:
        groups = [{"", name} for name in LOCO_TYPES]
    curves = []
    for group in groups:
        one = spro.curve([kind for kind in kinds if kind[2] in group])
        if one is None:
            return _Counted("defect", "kinds", None, "no defect has a mask")
        curves.append(one)
    return _Counted("defect", "kinds", curves)


def kind_of(sample: Sample) -> Kind:
    """Give data set, category and defect type of an image, the type empty for a normal one."""
    return sample.dataset, sample.category, sample.defect_type if sample.label else ""
