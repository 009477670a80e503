"""AUPIMO, against every threshold tried in turn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from adray.aupimo import LEAST_PIXELS, image_aupimo
from adray.metrics import METRICS


def make_maps(decimals, size=160, seed=0):
    """Eight normal maps, which have enough pixels together, and four of defects."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((12, size, size), bool)
    for i, mask in enumerate(masks[8:]):
        mask[20 : 40 + 10 * i, 30:60] = True
    maps = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 1, 1)) * 4
    maps += 4 * masks * rng.random(masks.shape)
    return np.round(maps, decimals).astype(np.float32), masks, np.arange(12) < 8


def slow_aupimo(one, mask, normal_maps):
    """The recall of the lowest threshold that keeps to each rate, over the logarithm of the rate."""
    normal = np.sort(normal_maps.ravel())
    thresholds = np.unique(np.concatenate([normal[-200:], one[mask]]))[::-1]
    rates = (normal.size - np.searchsorted(normal, thresholds)) / normal.size
    wanted = np.exp(np.linspace(np.log(1e-5), np.log(1e-4), 20_001))
    wanted = (wanted[1:] + wanted[:-1]) / 2
    recalls = [0.0] + [np.mean(one[mask] >= threshold) for threshold in thresholds]
    return np.mean(np.array(recalls)[np.searchsorted(rates, wanted, side="right")])


@pytest.mark.parametrize("decimals", [1, 7], ids=["with ties", "all scores differ"])
def test_the_area_of_each_image_equals_that_of_every_threshold_in_turn(decimals):
    maps, masks, normal = make_maps(decimals)
    found = image_aupimo(maps, masks, normal)
    assert np.isnan(found[:8]).all()
    for i in range(8, 12):
        assert found[i] == pytest.approx(slow_aupimo(maps[i], masks[i], maps[:8]), abs=2e-4)
    assert 0.01 < METRICS["pixel_aupimo"].compute(found) < 0.99


def test_it_is_near_the_trapezoids_of_the_published_formula():
    maps, masks, normal = make_maps(7, size=400)
    found = image_aupimo(maps, masks, normal)
    highest = np.sort(maps[:8].ravel())[::-1][:200]
    rates = np.log(np.arange(1, 201) / maps[:8].size)
    wanted = np.linspace(np.log(1e-5), np.log(1e-4), 2001)
    for i in range(8, 12):
        recalls = [np.mean(maps[i][masks[i]] >= score) for score in highest]
        area = np.mean(np.interp(wanted, rates, recalls))
        assert found[i] == pytest.approx(area, abs=0.01)


def test_a_defect_above_all_normal_pixels_has_1_and_a_constant_map_0():
    maps, masks, normal = make_maps(7)
    perfect = np.where(masks, 100, maps)
    np.testing.assert_allclose(image_aupimo(perfect, masks, normal)[8:], 1)
    assert (image_aupimo(np.zeros_like(maps), masks, normal)[8:] == 0).all()
    assert maps[normal].size >= LEAST_PIXELS
