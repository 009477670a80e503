from __future__ import annotations

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
)

from adray.aupimo import image_aupimo
from adray.curves import aupr, aupro, auroc, curve, error_bound, f1_max
from adray.errors import InputError
from adray.metrics import (
    METRICS,
    confusion,
    describe_problems,
    image_metrics,
    pixel_metrics,
    pixel_verdicts,
)
from adray.pixel_curves import MAX_ERROR, binned_curve, sorted_curve
from adray.spro import count_spro
from adray.thresholds import pixel_threshold


def make_scores(offset=0.0, scale=1.0, decimals=None, n=300, seed=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(np.int64)
    scores = rng.standard_normal(n) + label
    return (np.round(scores, decimals) if decimals is not None else scores) * scale + offset, label


def make_maps(n=6, size=48, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), dtype=bool)
    for mask in masks[::2]:
        for _ in range(3):
            top, left = rng.integers(0, size - 16, 2)
            height, width = rng.integers(2, 16, 2)
            mask[top : top + height, left : left + width] = True
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 2, 2)) * 3
    return (ndimage.gaussian_filter(masks.astype(float), (0, 2, 2)) + noise).astype(
        np.float32
    ), masks


def slow_f1_max(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


def slow_aupro(maps, masks, limit=0.3):
    """Every distinct score is a threshold, every region is measured at it, one by one."""
    regions = []
    for i, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [np.sort(maps[i][labelled == k + 1]) for k in range(count)]
    normal = np.sort(maps[~masks])
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        fpr = 1 - np.searchsorted(normal, threshold) / normal.size
        points.append((fpr, np.mean([1 - np.searchsorted(r, threshold) / r.size for r in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def mvtecs_aupro(maps, masks, limit):
    """The evaluation code of MVTec AD, restated: every pixel is a step of both rates, ties are one step."""
    structure = np.ones((3, 3))
    regions, pro_step = 0, np.zeros(masks.shape)
    for i, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure)
        regions += count
        for k in range(1, count + 1):
            pro_step[i][labelled == k] = 1 / np.count_nonzero(labelled == k)

    order = np.argsort(maps.ravel())[::-1]
    falling = maps.ravel()[order]
    last_of_ties = np.append(np.diff(falling) != 0, True)
    normal = ~masks.ravel()[order]
    fprs = np.cumsum(normal)[last_of_ties] / np.count_nonzero(normal)
    pros = np.cumsum(pro_step.ravel()[order])[last_of_ties] / regions
    fprs = np.concatenate(([0], fprs, [1]))
    pros = np.concatenate(([0], np.clip(pros, None, 1), [1]))
    inside = fprs <= limit
    area = np.trapezoid(pros[inside], fprs[inside])
    if limit not in fprs:
        k = np.searchsorted(fprs, limit)
        slope = (pros[k] - pros[k - 1]) / (fprs[k] - fprs[k - 1])
        at_limit = pros[k - 1] + slope * (limit - fprs[k - 1])
        area += 0.5 * (pros[k - 1] + at_limit) * (limit - fprs[k - 1])
    return area / limit


KINDS_OF_VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "half precision": lambda rng, shape: rng.standard_normal(shape).astype(np.float16),
    "huge and tiny": lambda rng, shape: 10.0 ** rng.integers(-30, 30, shape),
    "around a million": lambda rng, shape: 1e6 + rng.standard_normal(shape),
    "next to each other": lambda rng, shape: np.nextafter(
        np.float32(1), np.float32(2) * rng.integers(0, 2, shape).astype(np.float32)
    ),
}


def random_case(seed):
    """Scores and labels, maps and masks of a random size from one on, of a random kind, also of one class."""
    rng = np.random.default_rng(seed)
    values = list(KINDS_OF_VALUES.values())[seed % len(KINDS_OF_VALUES)]
    count = int(rng.integers(1, 30))
    label = (rng.random(count) < rng.choice([0, 0.1, 0.5, 1])).astype(int)
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    masks = rng.random(shape) < rng.choice([0, 0.05, 0.4, 1])
    return values(rng, count), label, values(rng, shape), masks


SCALES = [
    pytest.param({}, id="plain"),
    pytest.param({"offset": 1e2}, id="around 1e2"),
    pytest.param({"scale": 1e-6}, id="around 1e-6"),
    pytest.param({"decimals": 1}, id="with ties"),
    pytest.param(
        {"decimals": 0, "offset": 1e2, "scale": 1e-6}, id="ties and a tiny spread around 1e2"
    ),
]
SHAPES_OF_SCORES = {
    "mixed signs": lambda maps: maps,
    "around 1e2": lambda maps: maps + 100,
    "around 1e-6": lambda maps: maps * 1e-6,
    "all negative": lambda maps: -np.exp(-maps),
    "many zeros": lambda maps: np.maximum(maps, 0),
    "few levels": lambda maps: np.round(maps * 10),
    "one outlier": lambda maps: np.where(maps == maps.max(), 1e30, maps),
    "spread over 40 decades": lambda maps: np.exp(maps * 12),
}
SHAPES = pytest.mark.parametrize("shape", SHAPES_OF_SCORES.values(), ids=SHAPES_OF_SCORES.keys())


@pytest.mark.parametrize("kind", SCALES)
def test_image_metrics_equal_scikit_learn_to_1e_12(kind):
    scores, label = make_scores(**kind)
    ours = image_metrics(scores, label)
    assert ours["image_auroc"] == pytest.approx(roc_auc_score(label, scores), abs=1e-12)
    assert ours["image_aupr"] == pytest.approx(average_precision_score(label, scores), abs=1e-12)
    assert ours["image_f1_max"] == pytest.approx(slow_f1_max(label, scores), abs=1e-12)


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 1000), marks=pytest.mark.slow)], ids=str
)
def test_all_metrics_of_random_and_degenerate_inputs_are_scikit_learns_and_mvtecs_to_1e_9(seeds):
    for seed in seeds:
        scores, label, maps, masks = random_case(seed)
        ours = image_metrics(scores, label)
        if len(np.unique(label)) < 2:
            assert set(ours.values()) == {None}
        else:
            theirs = scikit_learns(label, scores.astype(np.float64))
            assert [ours[f"image_{name}"] for name in theirs] == pytest.approx(
                list(theirs.values()), abs=1e-9
            ), seed

        ours = pixel_metrics(maps, masks)
        if len(np.unique(masks)) < 2:
            assert set(ours.values()) == {None}
            continue
        maps = maps.astype(np.float32)
        theirs = scikit_learns(masks.ravel(), maps.ravel())
        theirs["aupro"] = mvtecs_aupro(maps, masks, 0.3)
        theirs["aupro_05"] = mvtecs_aupro(maps, masks, 0.05)
        assert [ours[f"pixel_{name}"] for name in theirs] == pytest.approx(
            list(theirs.values()), abs=1e-9
        ), seed


def scikit_learns(label, scores):
    return {
        "auroc": roc_auc_score(label, scores),
        "aupr": average_precision_score(label, scores),
        "f1_max": slow_f1_max(label, scores),
    }


def test_image_metrics_of_a_perfect_and_of_a_reversed_ranking_are_1_and_0():
    label = np.array([0, 0, 0, 1, 1])
    assert image_metrics(np.arange(5.0), label)["image_auroc"] == 1
    assert image_metrics(np.arange(5.0), label)["image_f1_max"] == 1
    assert image_metrics(-np.arange(5.0), label)["image_auroc"] == 0


@pytest.mark.parametrize("kind", SCALES)
def test_separation_is_the_mean_difference_in_pooled_standard_deviations(kind):
    scores, label = make_scores(**kind)
    normal, anomalous = scores[label == 0], scores[label == 1]
    squares = normal.var(ddof=1) * (normal.size - 1) + anomalous.var(ddof=1) * (anomalous.size - 1)
    expected = (anomalous.mean() - normal.mean()) / np.sqrt(squares / (scores.size - 2))
    assert image_metrics(scores, label)["separation"] == pytest.approx(expected, rel=1e-6)


def test_separation_without_spread_inside_the_classes_is_not_available_and_says_why():
    scores, label = np.array([0.1, 0.1, 0.1, 0.7, 0.7, 0.7]), np.array([0, 0, 0, 1, 1, 1])
    assert image_metrics(scores, label)["separation"] is None
    assert "separation" in describe_problems(scores, label)[0]


def test_f1_max_gives_the_threshold_that_reaches_it():
    scores, label = make_scores(decimals=1)
    best, threshold = f1_max(curve(scores, label))
    assert confusion(scores, label, threshold).f1 == pytest.approx(best, abs=1e-15)


@pytest.mark.parametrize("of_class", [0, 1])
def test_one_class_alone_gives_no_metric_and_a_note(of_class):
    scores, label = np.arange(4.0), np.full(4, of_class)
    assert set(image_metrics(scores, label).values()) == {None}
    assert ("normal", "anomalous")[of_class] in describe_problems(scores, label)[0]
    maps, masks = np.zeros((2, 8, 8), np.float32), np.full((2, 8, 8), of_class, np.uint8)
    assert set(pixel_metrics(maps, masks).values()) == {None}
    assert describe_problems(maps, masks, "pixel")[0].startswith("pixel metrics n/a")


def test_nothing_to_score_gives_no_metric_and_a_note():
    assert set(image_metrics(np.empty(0), np.empty(0)).values()) == {None}
    assert describe_problems(np.empty(0), np.empty(0)) == ["image metrics n/a: nothing to score"]
    assert set(pixel_metrics(np.empty((0, 8, 8)), np.empty((0, 8, 8))).values()) == {None}


def test_missing_maps_or_masks_give_no_metric_and_a_note():
    maps, masks = make_maps(2)
    assert set(pixel_metrics(maps, None).values()) == {None}
    assert set(pixel_metrics(None, masks).values()) == {None}
    assert "masks" in describe_problems(maps, None, "pixel")[0]
    assert "maps" in describe_problems(None, masks, "pixel")[0]


def test_constant_scores_give_auroc_one_half_with_a_note():
    scores, label = np.full(6, 3.0), np.array([0, 1, 0, 1, 0, 1])
    assert image_metrics(scores, label)["image_auroc"] == 0.5
    assert "all 6 image scores equal 3" in describe_problems(scores, label)[0]


def test_good_scores_give_no_note():
    assert describe_problems(*make_scores()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_refused_with_how_many_and_where(bad):
    scores, label = make_scores()
    scores[[7, 9]] = bad
    with pytest.raises(InputError, match=r"pred_score: 2 of 300 values .* index \(7,\)"):
        image_metrics(scores, label)
    maps, masks = make_maps()
    maps[3, 4, 5] = bad
    with pytest.raises(InputError, match=r"anomaly_map: 1 of 13824 values .* index \(3, 4, 5\)"):
        pixel_metrics(maps, masks)
    assert "2 of 300" in describe_problems(scores, label)[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_figure_of_pixels_and_no_threshold_is_computed_of_what_is_no_number(bad):
    maps, masks = make_maps()
    maps[0, 1, 2] = bad
    with pytest.raises(InputError, match=r"anomaly_map: 1 of 13824 .* \(0, 1, 2\)"):
        pixel_verdicts(maps, masks, 0.5)
    with pytest.raises(InputError, match="anomaly_map: 1 of 13824"):
        image_aupimo(maps, masks, np.ones(len(maps), bool))
    with pytest.raises(InputError, match="anomaly_map: 1 of 13824"):
        count_spro(maps, masks, [("d", "c", "")] * len(maps), [None] * len(maps), 48)
    with pytest.raises(InputError, match="anomaly_map of held-out normals: 1 of 13824"):
        pixel_threshold(maps)


def test_a_threshold_that_is_nan_is_refused():
    scores, label = make_scores()
    maps, masks = make_maps()
    with pytest.raises(InputError, match="the threshold is NaN"):
        confusion(scores, label, np.nan)
    with pytest.raises(InputError, match="the threshold is NaN"):
        pixel_verdicts(maps, masks, np.nan)


def test_wrong_labels_and_shapes_are_refused():
    with pytest.raises(InputError, match="label holds -1"):
        image_metrics(np.arange(3.0), np.array([0, 1, -1]))
    with pytest.raises(InputError, match="one score and one label"):
        image_metrics(np.arange(3.0), np.array([0, 1]))
    maps, masks = make_maps()
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        pixel_metrics(maps[:, None], masks[:, None])
    with pytest.raises(InputError, match="resize the masks"):
        pixel_metrics(maps, masks[:, :24])


@pytest.mark.parametrize(
    ("exact", "tolerance"), [(False, 1e-5), (True, 1e-12)], ids=["default", "exact"]
)
@SHAPES
def test_pixel_metrics_agree_with_scikit_learn_and_a_slow_aupro_loop(shape, exact, tolerance):
    maps, masks = make_maps()
    maps = shape(maps).astype(np.float32)
    ours = pixel_metrics(maps, masks, exact)
    assert ours["pixel_auroc"] == pytest.approx(
        roc_auc_score(masks.ravel(), maps.ravel()), abs=tolerance
    )
    assert ours["pixel_aupr"] == pytest.approx(
        average_precision_score(masks.ravel(), maps.ravel()), abs=tolerance
    )
    assert ours["pixel_f1_max"] == pytest.approx(
        slow_f1_max(masks.ravel(), maps.ravel()), abs=tolerance
    )
    assert ours["pixel_aupro"] == pytest.approx(slow_aupro(maps, masks), abs=tolerance)


@pytest.mark.parametrize("bins", [64, 4096, 1 << 16])
@SHAPES
def test_a_histogram_is_never_further_off_than_the_bound_it_states(shape, bins, monkeypatch):
    monkeypatch.setattr("adray.pixel_curves.HISTOGRAM_BINS", bins)
    maps, masks = make_maps(20)
    maps = shape(maps).astype(np.float32)
    binned, exact = binned_curve(maps, masks), sorted_curve(maps, masks)
    off = [abs(of(binned) - of(exact)) for of in (auroc, aupr, aupro, lambda c: f1_max(c)[0])]
    assert max(off) <= error_bound(binned) + 1e-12
    assert error_bound(exact) == 0


def test_a_histogram_is_fine_enough_for_smooth_maps_and_gives_way_to_sorting_for_tied_ones():
    maps, masks = make_maps(200, 64)
    assert error_bound(binned_curve(maps, masks)) <= MAX_ERROR
    expected = (
        roc_auc_score(masks.ravel(), maps.ravel()),
        average_precision_score(masks.ravel(), maps.ravel()),
    )
    binned = pixel_metrics(maps, masks)
    assert (binned["pixel_auroc"], binned["pixel_aupr"]) == pytest.approx(expected, abs=1e-5)
    assert binned != pixel_metrics(maps, masks, exact=True)
    tied = np.maximum(maps, 0)
    assert error_bound(binned_curve(tied, masks)) > MAX_ERROR
    assert pixel_metrics(tied, masks) == pixel_metrics(tied, masks, exact=True)


@SHAPES
def test_a_histogram_threshold_reports_the_pixels_it_counted(shape):
    maps, masks = make_maps()
    maps = shape(maps).astype(np.float32)
    binned = binned_curve(maps, masks)
    for k in range(0, binned.tp.size, max(1, binned.tp.size // 20)):
        reported = maps >= binned.threshold[k]
        assert (binned.tp[k], binned.fp[k]) == (np.sum(reported & masks), np.sum(reported & ~masks))


def test_a_perfect_map_has_aupro_1_and_a_constant_one_half_the_limit():
    _, masks = make_maps()
    assert set(pixel_metrics(masks.astype(np.float32), masks).values()) == {1.0}
    assert pixel_metrics(np.ones(masks.shape, np.float32), masks)["pixel_aupro"] == pytest.approx(
        0.15, abs=1e-12
    )


def test_aupro_is_never_above_1():
    for seed in range(20):
        maps, masks = make_maps(4, 32, seed)
        for level in (maps, np.round(maps * 3), masks + 0.01 * maps):
            assert 0 <= pixel_metrics(level, masks)["pixel_aupro"] <= 1


def test_aupro_counts_regions_not_pixels_and_joins_diagonal_neighbors():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 0:10, 0:10] = True
    masks[0, 15, 15] = masks[0, 16, 16] = True
    maps = np.zeros((1, 20, 20), np.float32)
    maps[0, 15, 15] = maps[0, 16, 16] = 1
    # the small region of two regions is found: half the overlap at rate 0, a straight way to (1, 1) from there
    assert pixel_metrics(maps, masks)["pixel_aupro"] == pytest.approx(
        0.5 + 0.5 * 0.3 / 2, abs=1e-12
    )


def test_aupro_at_another_limit_equals_the_slow_loop():
    maps, masks = make_maps()
    for limit in (0.01, 0.05, 1.0):
        assert aupro(sorted_curve(maps, masks), limit) == pytest.approx(
            slow_aupro(maps, masks, limit), abs=1e-12
        )


def test_aupro_needs_regions():
    maps, masks = make_maps()
    with pytest.raises(ValueError, match="regions"):
        aupro(dataclasses.replace(sorted_curve(maps, masks), overlap=None))


def test_masks_of_0_and_255_and_minus_zero_change_nothing():
    maps, masks = make_maps()
    maps = np.maximum(maps, 0)
    minus = np.where((maps == 0) & masks, np.float32(-0.0), maps)
    expected = pixel_metrics(maps, masks)
    assert pixel_metrics(maps, masks.astype(np.uint8) * 255) == expected
    assert pixel_metrics(minus, masks) == expected
    assert auroc(binned_curve(minus, masks)) == auroc(binned_curve(maps, masks))


@pytest.mark.parametrize("exact", [False, True])
def test_the_order_of_images_changes_nothing(exact):
    maps, masks = make_maps()
    assert pixel_metrics(maps[::-1], masks[::-1], exact) == pytest.approx(
        pixel_metrics(maps, masks, exact), abs=1e-12
    )


@pytest.mark.parametrize("exact", [False, True])
def test_pixel_metrics_leave_their_input_alone_and_take_at_most_three_times_its_memory(exact):
    maps, masks = make_maps(100, 256)
    copies = maps.copy(), masks.copy()
    tracemalloc.start()
    pixel_metrics(maps, masks, exact)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 3 * maps.nbytes
    assert np.array_equal(maps, copies[0])
    assert np.array_equal(masks, copies[1])


def test_confusion_equals_scikit_learn_and_reports_scores_at_the_threshold():
    scores, label = make_scores(decimals=1)
    threshold = scores[5]
    (tn, fp), (fn, tp) = confusion_matrix(label, scores >= threshold)
    ours = confusion(scores, label, threshold)
    assert (ours.tp, ours.fn, ours.tn, ours.fp) == (tp, fn, tn, fp)
    assert ours.accuracy == (tp + tn) / label.size
    assert ours.precision == tp / (tp + fp)
    assert ours.recall == tp / (tp + fn)
    assert ours.specificity == tn / (tn + fp)
    assert ours.f1 == pytest.approx(2 / (1 / ours.precision + 1 / ours.recall))


def test_confusion_compares_float32_scores_at_full_precision():
    score = np.float32(0.1)  # a little more than the 0.1 of float64
    assert confusion(np.array([score]), np.array([1]), 0.1).tp == 1
    assert confusion(np.array([score]), np.array([1]), np.nextafter(float(score), 1)).tp == 0


def test_rates_that_divide_by_nothing_are_not_available():
    nothing_reported = confusion(np.zeros(3), np.zeros(3), 1.0)
    assert nothing_reported.precision is None
    assert nothing_reported.recall is None
    assert nothing_reported.f1 is None
    assert nothing_reported.accuracy == 1


def test_every_metric_of_the_table_is_computed():
    maps, masks = make_maps()
    computed = image_metrics(*make_scores()) | pixel_metrics(maps, masks)
    of_curves = {
        name for name, m in METRICS.items() if m.of == "curve" and m.level in ("image", "pixel")
    }
    assert set(computed) == of_curves
    assert all(isinstance(value, float) for value in computed.values())
