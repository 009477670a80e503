"""Curves in a file: few points, from which figures can be computed again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.metrics import precision_recall_curve

from adray.curves import aupro, auroc, curve
from adray.pixel_curves import sorted_curve
from adray.results.curve_points import MOST_POINTS, read_curves, write_curves


def pixels():
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 96, 96), bool)
    masks[::2, 20:40, 30:80] = True
    maps = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 2, 2)) * 4 + masks
    return sorted_curve(maps.astype(np.float32), masks)


def test_a_short_curve_is_kept_whole_with_the_precision_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 50)
    score = rng.standard_normal(50) + label
    write_curves(tmp_path, {"image": curve(score, label)})
    stored = pd.read_parquet(tmp_path / "curves.parquet")
    precision, recall, threshold = precision_recall_curve(label, score)
    np.testing.assert_allclose(stored["threshold"], threshold[::-1])
    np.testing.assert_allclose(stored["precision"], precision[:-1][::-1])
    np.testing.assert_allclose(stored["recall"], recall[:-1][::-1])
    assert stored["overlap"].isna().all()


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.07, 0.3, 1.0])
def test_overlap_up_to_any_limit_can_be_computed_of_the_points(tmp_path, limit):
    whole = pixels()
    write_curves(tmp_path, {"pixel": whole})
    stored = read_curves(tmp_path)["pixel"]
    assert stored.threshold.size <= MOST_POINTS
    assert aupro(stored, limit) == pytest.approx(aupro(whole, limit), abs=1e-3)
    assert auroc(stored) == pytest.approx(auroc(whole), abs=1e-3)


def test_no_curve_at_all_leaves_an_empty_file(tmp_path):
    write_curves(tmp_path, {})
    assert read_curves(tmp_path) == {}
