"""All figures of random and degenerate images, against scikit-learn and every threshold in turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from adray.curves import aupro
from adray.data.base import Sample
from adray.errors import InputError
from adray.pixel_curves import pixel_curve
from adray.results.evaluation import Evaluation, FixedThresholds, ScoredImages, evaluate
from adray.scores import Scores
from adray.spro import Defect, ImageDefects, count_spro

VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape).astype(float),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "half precision": lambda rng, shape: rng.standard_normal(shape).astype(np.float16),
    "huge and tiny": lambda rng, shape: 10.0 ** rng.integers(-30, 30, shape),
    "around a million": lambda rng, shape: 1e6 + rng.standard_normal(shape),
    "minus zero": lambda rng, shape: np.where(rng.random(shape) < 0.5, -0.0, 0.0),
    "below the least normal float": lambda rng, shape: rng.standard_normal(shape) * 1e-42,
    "infinite": lambda rng, shape: np.where(rng.random(shape) < 0.05, np.inf, 0.5),
    "not a number": lambda rng, shape: np.where(rng.random(shape) < 0.05, np.nan, 0.5),
}
LIMITS = (0.001, 0.01, 0.123, 0.5, 1.0)


class Case(NamedTuple):
    """Random images, some of them without a mask, a defect or a part."""

    images: ScoredImages
    fixed: FixedThresholds
    limit: float
    rng: np.random.Generator

    @property
    def is_finite(self) -> bool:
        scores = self.images.scores
        return bool(np.isfinite(scores.pred_score).all() and np.isfinite(scores.anomaly_map).all())


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    values = list(VALUES.values())[seed % len(VALUES)]
    count = int(rng.integers(1, 8))
    shape = (count, int(rng.integers(1, 10)), int(rng.integers(1, 10)))
    masks = rng.random(shape) < rng.choice([0, 0.05, 0.3, 1])
    label = (masks.any((1, 2)) | (rng.random(count) < rng.choice([0, 0.2]))).astype(int)
    has_mask = masks.any((1, 2)) | (label == 0)

    samples = []
    for i in range(count):
        samples.append(
            Sample(
                path=Path(f"/{i}"),
                mask_paths=(Path(f"/m{i}"),) if label[i] and has_mask[i] else (),
                label=int(label[i]),
                defect_type=str(rng.choice(["dent", "hole"])) if label[i] else "good",
                dataset="d",
                category="c",
                split="test",
                relative_path=str(i),
                part=f"p{rng.integers(0, 4)}" if rng.random() < 0.8 else "",
            )
        )
    maps = np.asarray(values(rng, shape), np.float32)
    scores = Scores(values(rng, count), label, maps, masks.astype(np.uint8), has_mask)
    fixed = FixedThresholds(float(rng.standard_normal()), float(rng.standard_normal()))
    return Case(ScoredImages(samples, scores), fixed, float(rng.choice(LIMITS)), rng)


def two_classes(metric, labels, scores):
    return metric(labels, scores) if len(np.unique(labels)) == 2 else None


def best_f1(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))


def f1_at(threshold, labels, scores):
    reported = scores >= threshold
    return f1_score(labels, reported) if labels.any() or reported.any() else None


def overlap_area(
    maps, defects: Sequence[tuple[int, np.ndarray, int]], normal, limit: float
) -> float:
    """The mean of min(found / enough, 1) over the defects (image, pixels, enough), at every threshold."""
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = [min((maps[i][at] >= threshold).sum() / enough, 1) for i, at, enough in defects]
        points.append((np.mean(maps[normal] >= threshold), np.mean(found)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def figures_of_images(case: Case) -> dict[str, float | None]:
    scores = case.images.scores
    label, score = scores.label, np.asarray(scores.pred_score, float)
    highest: dict[str, float] = {}
    worst: dict[str, int] = {}
    for i, sample in enumerate(case.images.samples):
        part = sample.part or f"image {i}"
        highest[part] = max(score[i], highest.get(part, score[i]))
        worst[part] = max(label[i], worst.get(part, 0))
    has_parts = any(sample.part for sample in case.images.samples)
    of_parts = two_classes(roc_auc_score, list(worst.values()), list(highest.values()))
    return {
        "image_auroc": two_classes(roc_auc_score, label, score),
        "image_aupr": two_classes(average_precision_score, label, score),
        "image_f1_max": two_classes(best_f1, label, score),
        "image_f1": f1_at(case.fixed.image, label, score),
        "part_auroc": of_parts if has_parts else None,
    }


def figures_of_pixels(case: Case) -> dict[str, float | None]:
    scores = case.images.scores
    maps, masks = scores.anomaly_map[scores.has_mask], scores.mask[scores.has_mask] > 0
    regions = []
    for i, mask in enumerate(masks):
        numbers, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, numbers == k, (numbers == k).sum()) for k in range(1, count + 1)]
    flat, pixels = masks.ravel(), maps.ravel()
    return {
        "pixel_auroc": roc_auc_score(flat, pixels),
        "pixel_aupr": average_precision_score(flat, pixels),
        "pixel_f1": f1_at(case.fixed.pixel, flat, pixels),
        "pixel_aupro": overlap_area(maps, regions, ~masks, 0.3),
        "pixel_aupro_05": overlap_area(maps, regions, ~masks, 0.05),
        "any limit": overlap_area(maps, regions, ~masks, case.limit),
    }


def figures_of_type(case: Case, name: str) -> dict[str, float | None]:
    scores = case.images.scores
    kinds = np.array([sample.defect_type for sample in case.images.samples])
    chosen = (scores.label == 0) | (kinds == name)
    score = np.asarray(scores.pred_score, float)[chosen]
    return {"image_auroc": two_classes(roc_auc_score, scores.label[chosen], score)}


def check_saturated_overlap(case: Case, maps: np.ndarray, masks: np.ndarray) -> bool:
    """Draw defects of which a part is enough, and compare; tell whether there was anything to do."""
    size = maps.shape[1]
    images, defects = [], []
    for i, mask in enumerate(masks):
        of_image = []
        for _ in range(int(case.rng.integers(1, 4)) if mask.any() else 0):
            at = mask & (case.rng.random(mask.shape) < 0.7)
            if at.any():
                enough = int(case.rng.integers(1, at.sum() + 1))
                of_image.append(Defect(at, enough))
                defects.append((i, at, enough))
        images.append(ImageDefects(size, size, of_image))

    marked = np.zeros(masks.shape, bool)
    for i, at, _ in defects:
        marked[i] |= at
    if not defects or marked.all() or maps.shape[1] != maps.shape[2]:
        return False
    kinds = [("d", "c", "x" if image.defects else "") for image in images]
    curve = count_spro(maps, marked, kinds, images, size).curve(set(kinds))
    expected = overlap_area(maps, defects, ~marked, 0.05)
    assert aupro(curve, 0.05) == pytest.approx(expected, abs=1e-9)
    return True


def check(case: Case, found: Evaluation) -> bool:
    """Compare all figures of a case; tell whether its pixels and sPRO could be compared too."""
    expected = figures_of_images(case)
    scores = case.images.scores
    maps, masks = scores.anomaly_map[scores.has_mask], scores.mask[scores.has_mask] > 0
    has_both = bool(masks.any()) and not bool(masks.all())
    drew = False
    if has_both:
        of_pixels = figures_of_pixels(case)
        any_limit = of_pixels.pop("any limit")
        assert aupro(pixel_curve(maps, masks), case.limit) == pytest.approx(any_limit, abs=1e-9)
        expected |= of_pixels
        drew = check_saturated_overlap(case, maps, masks)
    else:
        expected |= dict.fromkeys(("pixel_auroc", "pixel_aupro", "pixel_aupro_05", "pixel_f1"))
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    for name, figures in found.per_defect_type.items():
        of_type = figures_of_type(case, name)
        assert {key: figures[key] for key in of_type} == pytest.approx(of_type, abs=1e-9)
    assert all(value is not None or found.undefined[k] for k, value in found.metrics.items())
    return drew


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 1000), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.filterwarnings("ignore")
def test_every_figure_is_that_of_scikit_learn_or_of_every_threshold_in_turn(seeds):
    drew = refused = 0
    for seed in seeds:
        case = random_case(seed)
        try:
            found = evaluate(case.images, case.fixed, by_type=True)
        except InputError:
            assert not case.is_finite, seed
            refused += 1
            continue
        if case.is_finite:
            drew += check(case, found)
    assert drew
    assert refused
