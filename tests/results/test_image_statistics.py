"""Statistics over test images against scikit-learn and slow loops, and against their stated error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from adray.results.image_statistics import (
    PairedScores,
    auroc_of_rows,
    bootstrap_interval,
    holm,
    mean_paired_difference,
    score_interval,
)


def images(rng, count=60, shift=1.0):
    labels = np.repeat([0, 1], count)
    return rng.normal(size=2 * count) + shift * labels, labels


def difference(scores_a, scores_b, labels):
    """AUROC of a minus that of b on the same images, of one seed."""
    return mean_paired_difference(
        [PairedScores(scores_a, scores_b, labels, np.arange(len(labels)))]
    )


def test_the_standard_error_is_that_of_a_loop_over_draws():
    rng = np.random.default_rng(1)
    scores, labels = images(rng, 30)
    scores = scores.round(1)  # ties
    values = []
    for _ in range(2000):
        drawn = np.concatenate([rng.choice(np.flatnonzero(labels == k), 30) for k in (0, 1)])
        values.append(roc_auc_score(labels[drawn], scores[drawn]))
    found = bootstrap_interval(scores, labels)
    assert found.standard_error == pytest.approx(np.std(values), rel=0.1)
    assert found.low == pytest.approx(
        np.quantile(values, 0.025), abs=0.04
    )  # Newcombe's shape, not the percentiles
    assert found.high == pytest.approx(np.quantile(values, 0.975), abs=0.04)
    assert found.low < roc_auc_score(labels, scores) < found.high


def test_intervals_cover_the_true_auroc_as_often_as_they_say():
    """A normal score shifted by 1 has AUROC Phi(1 / sqrt 2); 400 repetitions know 95 % to within 1.1 %."""
    rng, truth = np.random.default_rng(2), stats.norm.cdf(1 / np.sqrt(2))
    found = [bootstrap_interval(*images(rng), draws=500) for _ in range(400)]
    assert np.mean([i.low <= truth <= i.high for i in found]) == pytest.approx(0.95, abs=3 * 0.011)


def test_intervals_cover_an_auroc_near_one_too():
    """Where percentiles of the bootstrap fail: AUROC 0.99 on 20 + 20 images."""
    rng, shift = np.random.default_rng(12), np.sqrt(2) * stats.norm.ppf(0.99)
    found = [bootstrap_interval(*images(rng, 20, shift), draws=300) for _ in range(400)]
    assert np.mean([i.low <= 0.99 <= i.high for i in found]) >= 0.95 - 3 * 0.011


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.6, 0.9, 0.98, 0.995])
@pytest.mark.parametrize(("anomalous", "normal"), [(20, 20), (80, 30)])
@pytest.mark.parametrize("spread", [1, 3])
def test_intervals_cover_whatever_the_auroc_the_number_of_images_and_their_spread(
    truth, anomalous, normal, spread
):
    """At least 95 %, but for 2 % where 20 defects spread three times as far as the normal images."""
    rng, labels = np.random.default_rng(17), np.repeat([1, 0], [anomalous, normal])
    shift, found = stats.norm.ppf(truth) * np.hypot(1, spread), []
    for _ in range(1000):
        scores = np.concatenate([rng.normal(shift, spread, anomalous), rng.normal(size=normal)])
        found.append(bootstrap_interval(scores, labels, draws=400))
    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.95 - 3 * 0.007 - (0.02 if spread > 1 else 0) <= covered <= 0.985


def test_a_perfect_auroc_is_not_certain_and_less_so_with_fewer_images():
    few = bootstrap_interval(np.arange(10.0), np.repeat([0, 1], 5))
    many = bootstrap_interval(np.arange(200.0), np.repeat([0, 1], 100))
    assert few.high == many.high == 1.0
    assert 0.3 < few.low < 0.85
    assert 0.95 < many.low < 0.99
    worst = bootstrap_interval(-np.arange(10.0), np.repeat([0, 1], 5))
    assert (worst.low, worst.high) == (0.0, pytest.approx(1 - few.low))
    assert score_interval(1.0, 0.0, 5, 5)[0] == pytest.approx(few.low)


def test_without_both_classes_there_is_no_interval():
    assert bootstrap_interval(np.arange(4.0), np.zeros(4)) is None
    assert difference(np.arange(4.0), np.arange(4.0), np.array([0, 0, 0, 1])) is None


def test_delongs_variance_is_that_of_a_slow_loop_and_close_to_the_bootstraps():
    rng = np.random.default_rng(3)
    scores_a, labels = images(rng, 50)
    scores_b = scores_a + rng.normal(size=100)
    found = difference(scores_a, scores_b, labels)
    assert found.difference == pytest.approx(
        roc_auc_score(labels, scores_a) - roc_auc_score(labels, scores_b)
    )
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    above = [
        np.array([[(s[p] > s[n]) + 0.5 * (s[p] == s[n]) for n in negative] for p in positive])
        for s in (scores_a, scores_b)
    ]
    v10 = np.cov(above[0].mean(1), above[1].mean(1))  # DeLong's components, and their covariance
    v01 = np.cov(above[0].mean(0), above[1].mean(0))
    total = v10 / 50 + v01 / 50
    slow = np.sqrt(total[0, 0] + total[1, 1] - 2 * total[0, 1])
    assert found.standard_error == pytest.approx(slow, rel=1e-6)
    assert found.low < found.difference < found.high
    draws = [
        np.concatenate([rng.choice(part, 50) for part in (negative, positive)]) for _ in range(1000)
    ]
    apart = [
        roc_auc_score(labels[d], scores_a[d]) - roc_auc_score(labels[d], scores_b[d]) for d in draws
    ]
    assert np.std(apart) == pytest.approx(slow, rel=0.15)


def test_delong_rejects_equal_configurations_as_often_as_it_says():
    rng, rejected = np.random.default_rng(4), 0
    for _ in range(600):
        base, labels = images(rng, 50)
        a, b = (base + rng.normal(size=100) for _ in range(2))
        rejected += difference(a, b, labels).p_value < 0.05
    assert rejected / 600 == pytest.approx(0.05, abs=3 * 0.009)


def test_the_same_scores_differ_by_nothing():
    scores, labels = images(np.random.default_rng(5))
    same = difference(scores, 3 * scores + 1, labels)
    assert same == (0, 0, 0, 0, 1)
    named = PairedScores(scores, 3 * scores + 1, labels, np.arange(len(labels)))
    assert mean_paired_difference([named, named]).p_value == 1


def test_holm_is_monotone_and_capped():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_auroc_of_rows_is_scikit_learns():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    scores = rng.integers(0, 20, (5, 60)).astype(float)
    expected = [roc_auc_score(label, row) for row in scores]
    assert np.allclose(auroc_of_rows(scores, label == 1), expected)
