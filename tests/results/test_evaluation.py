"""Figures of all images, of each defect type and of parts, against scikit-learn and subsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from adray.data.base import Sample
from adray.metrics import METRICS, pixel_metrics
from adray.results.evaluation import FixedThresholds, ScoredImages, evaluate
from adray.scores import Scores

TYPES = ["good"] * 8 + ["dent"] * 4 + ["scratch"] * 6


def make_images(types=TYPES, parts=None, bare=(), size=128, seed=0):
    """Scored maps of some images; the positions in `bare` have no mask."""
    rng = np.random.default_rng(seed)
    label = np.array([int(name != "good") for name in types])
    mask = np.zeros((len(types), size, size), np.uint8)
    samples = []
    for i, name in enumerate(types):
        if label[i] and i not in bare:
            mask[i, 10 : 20 + i, 40:70] = 1
        part = parts[i] if parts else ""
        path = Path(f"/data/set/box/{i}.png")
        sample = Sample(path, (), int(label[i]), name, "set", "box", "test", f"{i}.png", part=part)
        samples.append(sample)
    maps = ndimage.gaussian_filter(rng.standard_normal(mask.shape), (0, 2, 2)) * 4 + mask
    has_mask = np.array([i not in bare for i in range(len(types))])
    scores = Scores(
        (rng.standard_normal(len(types)) + label).astype(np.float32),
        label,
        maps.astype(np.float32),
        mask,
        has_mask,
    )
    return ScoredImages(samples, scores)


def test_every_metric_has_a_value_or_a_reason():
    found = evaluate(make_images(), FixedThresholds(1.0, 1.0))
    assert list(found.metrics) == list(METRICS)
    for name, value in found.metrics.items():
        assert (value is None) == (name in found.undefined)
    missing = {"part_auroc", "part_aupr", "part_f1_max", "image_auroc_kinds", "au_spro_05"}
    assert set(found.undefined) == missing
    assert found.undefined["part_auroc"] == "no image names its part"


@pytest.mark.parametrize(
    ("images", "name", "reason"),
    [
        (make_images(["good"] * 4), "image_auroc", "all 4 images are normal"),
        (make_images(["good"] * 4), "pixel_auroc", "all 65536 pixels are normal"),
        (make_images(size=64), "pixel_aupimo", "the normal images have fewer than 100,000 pixels"),
        (make_images(), "image_f1", "no held-out normals gave a threshold"),
        (make_images(), "pixel_f1", "no maps of held-out normals gave a threshold"),
    ],
)
def test_what_is_not_defined_says_why(images, name, reason):
    found = evaluate(images)
    assert found.metrics[name] is None
    assert found.undefined[name] == reason


def test_f1_at_fixed_thresholds_equals_scikit_learn():
    images = make_images()
    found = evaluate(images, FixedThresholds(0.5, 1.25))
    scores = images.scores
    expected = f1_score(scores.label, scores.pred_score >= 0.5)
    assert found.metrics["image_f1"] == pytest.approx(expected)
    expected = f1_score(scores.mask.ravel(), (scores.anomaly_map >= 1.25).ravel())
    assert found.metrics["pixel_f1"] == pytest.approx(expected)
    assert found.pixel_confusion.tp + found.pixel_confusion.fn == scores.mask.sum()


def test_a_defect_type_has_the_figures_of_its_images_and_all_normal_ones():
    images = make_images()
    found = evaluate(images, FixedThresholds(0.5, 1.25), by_type=True).per_defect_type
    assert list(found) == ["dent", "scratch"]
    for name, metrics in found.items():
        chosen = np.array([kind in (name, "good") for kind in TYPES])
        alone = evaluate(images.subset(chosen), FixedThresholds(0.5, 1.25)).metrics
        for metric, value in alone.items():
            assert metrics[metric] == pytest.approx(value, abs=1e-4), metric
        scores = images.scores.subset(chosen)
        expected = pixel_metrics(scores.anomaly_map, scores.mask, exact=True)
        assert metrics["pixel_aupro"] == pytest.approx(expected["pixel_aupro"], abs=1e-4)


def test_a_type_without_masks_has_image_figures_only():
    found = evaluate(make_images(bare=(8, 9, 10, 11)), by_type=True).per_defect_type
    assert found["dent"]["image_auroc"] is not None
    assert found["dent"]["pixel_auroc"] is None
    assert found["dent"]["pixel_aupimo"] is None
    assert found["scratch"]["pixel_auroc"] is not None


def test_the_curve_of_all_images_is_the_same_with_types_and_without():
    images = make_images()
    assert evaluate(images, by_type=True).metrics == pytest.approx(
        evaluate(images).metrics, abs=1e-5, nan_ok=True
    )


def test_a_part_has_the_highest_score_of_its_images_and_is_anomalous_where_one_is():
    types = ["good"] * 12 + ["good", "dent"] * 6
    parts = [f"S{i // 2}" for i in range(24)]
    images = make_images(types, parts)
    score = images.scores.pred_score.reshape(12, 2).max(axis=1)
    label = np.repeat([0, 1], 6)
    found = evaluate(images, by_type=True)
    assert found.metrics["part_auroc"] == pytest.approx(roc_auc_score(label, score))
    assert found.metrics["part_aupr"] == pytest.approx(average_precision_score(label, score))
    assert found.per_defect_type["dent"]["part_auroc"] == found.metrics["part_auroc"]


def test_an_anomalous_part_is_no_normal_one_for_another_defect_type():
    types = ["good", "good", "good", "dent", "good", "scratch"]
    images = make_images(types, ["a", "a", "b", "b", "c", "c"])
    found = evaluate(images, by_type=True)
    score = images.scores.pred_score.reshape(3, 2).max(axis=1)
    expected = float(score[1] > score[0])
    assert found.per_defect_type["dent"]["part_auroc"] == expected


def test_an_image_without_a_part_is_one_of_its_own():
    images = make_images(["good", "good", "dent"], ["a", "", ""])
    assert evaluate(images).curves["part"].negatives == 2


def test_the_aurocs_of_logical_and_of_structural_anomalies_are_averaged():
    types = ["good"] * 6 + ["logical_anomalies"] * 3 + ["structural_anomalies"] * 7
    images = make_images(types)
    score, label = images.scores.pred_score, images.scores.label
    logical, structural = np.r_[0:9], np.r_[0:6, 9:16]
    aurocs = [roc_auc_score(label[rows], score[rows]) for rows in (logical, structural)]
    found = evaluate(images).metrics
    assert found["image_auroc_kinds"] == pytest.approx(np.mean(aurocs))
    assert found["image_auroc"] == pytest.approx(roc_auc_score(label, score))


def test_areas_of_overlap_stand_at_every_usual_limit():
    found = evaluate(make_images())
    areas = found.overlap_areas["pixel"]
    assert list(areas) == ["0.01", "0.05", "0.1", "0.3", "1"]
    assert areas["0.3"] == found.metrics["pixel_aupro"]
    assert areas["0.05"] == found.metrics["pixel_aupro_05"]
