"""Saturated overlap, against every threshold tried in turn and against AUPRO."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from adray.curves import aupro
from adray.data.base import Sample
from adray.metrics import METRICS
from adray.pixel_curves import sorted_curve
from adray.results.evaluation import ScoredImages, evaluate, kind_of
from adray.scores import Scores
from adray.spro import FPR_LIMITS, Defect, ImageDefects, count_spro, enlarge

SIZE = 24
GOOD = ("loco", "box", "")
KIND = ("loco", "box", "logical_anomalies")


def make_images(decimals, seed=0):
    """Five maps; the last three have one to three defects, which overlap and have several parts."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((5, SIZE, SIZE))
    images = []
    for i, one in enumerate(maps):
        defects = []
        for _ in range(max(0, i - 1)):
            pixels = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 2) > 0.12
            one += 1.5 * pixels
            area = int(pixels.sum())
            defects.append(Defect(pixels, int(rng.choice([1, area // 3, area]))))
        images.append(ImageDefects(SIZE, SIZE, defects))
    return np.round(maps, decimals).astype(np.float32), images


def marked(images):
    """Masks of all defects together, (N, H, W)."""
    masks = np.zeros((len(images), SIZE, SIZE), bool)
    for mask, image in zip(masks, images, strict=True):
        for defect in image.defects:
            mask |= defect.pixels
    return masks


def slow_spro(maps, images, limit):
    """Every score is a threshold, reported is what is strictly above it, as the published tool has it."""
    masks = marked(images)
    points = []
    for threshold in [*np.unique(maps)[::-1], -np.inf]:
        overlaps = []
        for one, image in zip(maps, images, strict=True):
            for defect in image.defects:
                found = np.sum((one > threshold) & defect.pixels)
                overlaps.append(min(found / defect.saturation, 1))
        points.append((np.mean(maps[~masks] > threshold), np.mean(overlaps)))

    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def curve_of(maps, images):
    kinds = [KIND if image.defects else GOOD for image in images]
    return count_spro(maps, marked(images), kinds, images, SIZE).curve({GOOD, KIND})


@pytest.mark.parametrize("limit", FPR_LIMITS)
@pytest.mark.parametrize(
    ("decimals", "tolerance"), [(1, 1e-12), (7, 2e-4)], ids=["with ties", "all scores differ"]
)
def test_the_area_equals_that_of_every_threshold_in_turn(limit, decimals, tolerance):
    for seed in range(5):
        maps, images = make_images(decimals, seed)
        found = aupro(curve_of(maps, images), limit)
        assert found == pytest.approx(slow_spro(maps, images, limit), abs=tolerance)


def test_it_is_aupro_where_all_of_each_defect_is_asked_for_and_each_is_one_region():
    rng = np.random.default_rng(3)
    maps = np.round(rng.standard_normal((4, SIZE, SIZE)), 1).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[0, 2:6, 2:9] = True
    masks[1, 10:11, 3:20] = True
    images = []
    for mask in masks:
        defects = [Defect(mask, int(mask.sum()))] if mask.any() else []
        images.append(ImageDefects(SIZE, SIZE, defects))
    for limit in FPR_LIMITS:
        expected = aupro(sorted_curve(maps, masks), limit)
        assert aupro(curve_of(maps, images), limit) == pytest.approx(expected, abs=1e-12)


def test_a_defect_whose_saturation_area_is_found_counts_as_found_wholly():
    maps = np.zeros((1, SIZE, SIZE), np.float32)
    maps[0, 5, 5:8] = 1
    pixels = np.zeros((SIZE, SIZE), bool)
    pixels[4:12, 4:12] = True
    image = ImageDefects(SIZE, SIZE, [Defect(pixels, 3)])
    assert aupro(curve_of(maps, [image]), 0.05) == pytest.approx(1)


def test_a_defect_smaller_than_its_saturation_area_is_found_when_all_of_it_is():
    maps = np.zeros((1, SIZE, SIZE), np.float32)
    maps[0, 5, 5:7] = 1
    pixels = np.zeros((SIZE, SIZE), bool)
    pixels[5, 5:9] = True  # four pixels, of which two are found
    image = ImageDefects(SIZE, SIZE, [Defect(pixels, 100)])
    curve = curve_of(maps, [image])
    assert aupro(curve, 1e-9) == pytest.approx(0.5, abs=1e-6)
    maps[0, 5, 5:9] = 1
    assert aupro(curve_of(maps, [image]), 0.3) == pytest.approx(1)


def test_a_pixel_that_two_defects_share_counts_for_both_and_one_of_a_single_pixel_as_much():
    maps = np.zeros((1, SIZE, SIZE), np.float32)
    maps[0, 5, 5] = 3
    maps[0, 5, 6] = 2
    wide = np.zeros((SIZE, SIZE), bool)
    wide[5, 4:8] = True
    narrow = np.zeros((SIZE, SIZE), bool)
    narrow[5, 5] = True
    image = ImageDefects(SIZE, SIZE, [Defect(wide, 4), Defect(narrow, 1)])
    # Before any normal pixel: half of the wide one, the whole of the narrow one.
    assert aupro(curve_of(maps, [image]), 1e-9) == pytest.approx((0.5 + 1) / 2, abs=1e-6)


def test_the_kinds_of_defects_are_averaged_each_with_all_normal_images():
    maps, images = make_images(1)
    kinds = [GOOD, GOOD, KIND, KIND, ("loco", "box", "structural_anomalies")]
    counts = count_spro(maps, marked(images), kinds, images, SIZE)
    curves = [counts.curve({GOOD, kind}) for kind in set(kinds) - {GOOD}]
    expected = np.mean(
        [
            slow_spro(maps[:4], images[:4], 0.05),
            slow_spro(maps[[0, 1, 4]], [images[i] for i in (0, 1, 4)], 0.05),
        ]
    )
    assert METRICS["au_spro_05"].compute(curves) == pytest.approx(expected, abs=1e-12)


def test_defects_of_other_kinds_than_locos_are_averaged_together_as_autovi_does():
    maps, images = make_images(1)
    types = ["good", "good", "missing", "unclipped", "unclipped"]
    label = np.array([int(name != "good") for name in types])
    samples = []
    for i, name in enumerate(types):
        path = Path(f"/data/autovi/pipe_clip/{i}.png")
        samples.append(Sample(path, (), int(label[i]), name, "autovi", "pipe_clip", "test"))
    scores = Scores(label.astype(np.float32), label, maps, marked(images), np.ones(5, bool))

    kinds = list(map(kind_of, samples))
    counts = count_spro(maps, marked(images), kinds, images, SIZE)
    found = evaluate(ScoredImages(samples, scores), spro=counts)
    for limit in FPR_LIMITS:
        expected = slow_spro(maps, images, limit)
        assert found.overlap_areas["defect"][f"{limit:g}"] == pytest.approx(expected, abs=1e-12)
    assert found.metrics["au_spro_05"] == pytest.approx(slow_spro(maps, images, 0.05), abs=1e-12)


def test_an_image_that_is_left_out_counts_neither_as_normal_nor_as_defective():
    maps, images = make_images(1)
    expected = slow_spro(maps[:4], images[:4], 0.3)
    kinds = [KIND if image.defects else GOOD for image in images]
    counts = count_spro(maps, marked(images), kinds, [*images[:4], None], SIZE)
    assert aupro(counts.curve({GOOD, KIND}), 0.3) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (28, 42), (42, 28)])
def test_a_map_of_any_shape_is_enlarged_as_torch_does_it_bilinear(shape):
    torch = pytest.importorskip("torch")
    small = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    large = enlarge(small, ImageDefects(70, 95, ()), min(shape), 0.0)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small)[None, None], (70, 95), mode="bilinear", align_corners=False
    )
    # Values reach 4, of which both weigh two by weights rounded to float32 on their own.
    np.testing.assert_allclose(large, expected[0, 0].numpy(), atol=2e-5)


def test_the_map_of_a_centre_crop_lies_in_the_centre_of_its_image():
    small = np.ones((16, 16), np.float32)
    large = enlarge(small, ImageDefects(48, 48, ()), SIZE, -1.0)
    assert (large[10:38, 10:38] == 1).all()
    assert (large[:6] == -1).all()
    assert (large[:, -6:] == -1).all()
