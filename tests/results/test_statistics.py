"""Statistics against scipy, scikit-learn and slow loops on made cases, and against their stated error rates."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from adray.results.groups import group_letters
from adray.results.image_ranking import ranking_on_images
from adray.results.statistics import (
    PairedScores,
    bootstrap_interval,
    holm,
    mean_paired_difference,
    paired_difference,
    paired_differences,
    ranking,
    score_interval,
    seed_spread,
)


def images(rng, count=60, shift=1.0):
    labels = np.repeat([0, 1], count)
    return rng.normal(size=2 * count) + shift * labels, labels


def trials(values: dict[str, list[float | None]], seeds=1, noise=0.0):
    """One row per configuration, category and seed, from the means by category."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "configuration": name,
                "dataset": "d",
                "category": f"c{i:02d}",
                "seed": seed,
                "image_auroc": value,
            }
            | ({"image_auroc": value + noise * rng.normal()} if value is not None else {})
            for name, column in values.items()
            for i, value in enumerate(column)
            for seed in range(seeds)
        ]
    )


# One category


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
    assert paired_difference(np.arange(4.0), np.arange(4.0), np.array([0, 0, 0, 1])) is None


def test_delongs_variance_is_that_of_a_slow_loop_and_close_to_the_bootstraps():
    rng = np.random.default_rng(3)
    scores_a, labels = images(rng, 50)
    scores_b = scores_a + rng.normal(size=100)
    found = paired_difference(scores_a, scores_b, labels)
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
        rejected += paired_difference(a, b, labels).p_value < 0.05
    assert rejected / 600 == pytest.approx(0.05, abs=3 * 0.009)


def test_the_same_scores_differ_by_nothing():
    scores, labels = images(np.random.default_rng(5))
    same = paired_difference(scores, 3 * scores + 1, labels)
    assert same == (0, 0, 0, 0, 1)
    named = PairedScores(scores, 3 * scores + 1, labels, np.arange(len(labels)))
    assert mean_paired_difference([named, named]).p_value == 1


# Many categories


def test_a_broken_configuration_is_left_out_and_named():
    good = [0.9, 0.8, 0.7, 0.95]
    frame = trials({"a": good, "b": [v - 0.1 for v in good], "broken": [0.99, None, None, None]})
    ranked = ranking(frame)
    assert list(ranked["configuration"]) == ["a", "b", "broken"]
    assert list(ranked["common"]) == [4, 4, 0]
    assert list(ranked["coverage"]) == [4, 4, 1]
    assert ranked["mean"][0] == pytest.approx(np.mean(good))
    assert np.isnan(ranked["mean"][2])
    assert any("broken" in note for note in ranked.attrs["notes"])


def test_means_are_over_what_all_share_and_seeds_are_averaged_first():
    frame = trials({"a": [0.9, 0.5, 0.7], "b": [0.8, None, 0.6]}, seeds=2)
    ranked = ranking(frame).set_index("configuration")
    assert ranked.loc["a", "mean"] == pytest.approx(0.8)
    assert ranked.loc["b", "mean"] == pytest.approx(0.7)
    assert list(ranked["mean_rank"]) == [1, 2]
    assert set(ranked["common"]) == {2}


def test_intervals_of_means_are_students_where_nothing_is_skewed():
    values = [0.80, 0.84, 0.86, 0.90]
    ranked = ranking(trials({"a": values}))
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (ranked["low"][0], ranked["high"][0]) == (
        pytest.approx(low, abs=1e-6),
        pytest.approx(high, abs=1e-6),
    )


def test_single_pairs_are_those_of_wilcoxon_and_the_adjusted_are_no_surer():
    rng = np.random.default_rng(6)
    shifts = {"a": 0.1, "b": 0.05, "c": 0.0}
    values = {
        name: list(0.8 + shift + 0.05 * rng.normal(size=12)) for name, shift in shifts.items()
    }
    pairs = paired_differences(trials(values)).set_index(["first", "second"])
    for (first, second), row in pairs.iterrows():
        apart = np.subtract(values[first], values[second])
        assert row["p_value"] == pytest.approx(stats.wilcoxon(apart, method="exact").pvalue)
        assert row["difference"] == pytest.approx(apart.mean())
        assert row["p_value"] <= row["p_adjusted"] <= min(1, 3 * row["p_value"]) + 1e-9
    assert set(pairs["n"]) == {12}


def test_holm_is_monotone_and_capped():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("count", [2, 5, 44])
def test_equal_configurations_are_told_apart_in_at_most_five_percent_of_all_comparisons(count):
    rng = np.random.default_rng(7)
    repetitions = 100 if count < 44 else 20
    wrong = 0
    for _ in range(repetitions):
        values = rng.normal(size=(count, 12)) + rng.normal(size=12)
        table = ranking(trials({f"m{i:02d}": list(row) for i, row in enumerate(values)}))
        wrong += len(set(table["group"])) > 1
    assert wrong / repetitions <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)


@pytest.mark.parametrize("kind", ["skewed", "unequal", "tied", "partial"])
def test_the_error_rate_holds_for_skewed_unequal_and_tied_figures_and_beside_true_differences(kind):
    """Six configurations on twelve categories of unequal difficulty; 300 repetitions know 5 % to within 1.3 %."""
    rng, wrong = np.random.default_rng(13), 0
    for _ in range(300):
        size, equal = rng.gamma(1, 1, 12), np.arange(6) < 6
        values = -rng.exponential(size=(6, 12)) * size
        if kind == "unequal":
            values = rng.normal(size=(6, 12)) * np.geomspace(0.05, 5, 6)[:, None] * size
        elif kind == "tied":
            values = np.minimum(1, np.round(1.02 + 0.05 * values, 2))
        elif kind == "partial":
            equal = np.arange(6) % 2 == 0
            values[~equal] = 0.1 * values[~equal] + np.array([[-3.0], [0.0], [3.0]])
        same = {f"m{i}" for i in np.flatnonzero(equal)}
        pairs = paired_differences(trials({f"m{i}": list(row) for i, row in enumerate(values)}))
        wrong += (pairs["p_adjusted"] < 0.05)[
            pairs["first"].isin(same) & pairs["second"].isin(same)
        ].any()
    assert wrong / 300 <= 0.05 + 3 * 0.013


def test_configurations_that_differ_everywhere_are_told_apart_even_among_forty_four():
    rng = np.random.default_rng(8)
    cells = 0.05 * rng.normal(size=15)
    values = {
        f"m{i:02d}": list(0.9 - 0.02 * i + cells + 0.001 * rng.normal(size=15)) for i in range(44)
    }
    groups = list(ranking(trials(values))["group"])
    assert len(set(groups)) == 44


def test_over_few_categories_nothing_is_told_apart_and_that_is_said():
    ranked = ranking(trials({"a": [0.9] * 5, "b": [0.1] * 5}))
    assert list(ranked["group"]) == ["a", "a"]
    assert "at least 6" in ranked.attrs["notes"][0]


def test_test_images_tell_a_perfect_detector_from_a_coin_on_one_category():
    rng, label = np.random.default_rng(9), np.repeat([0, 1], 40)
    scores = {"good": label + 0.5 * rng.random(80), "coin": rng.random(80), "coin2": rng.random(80)}
    frame = pd.concat(
        pd.DataFrame(
            {
                "configuration": name,
                "dataset": "d",
                "category": "c",
                "seed": 0,
                "path": range(80),
                "label": label,
            }
            | {"pred_score": values}
        )
        for name, values in scores.items()
    )
    ranked = ranking_on_images(frame).set_index("configuration")
    assert ranked.loc["good", "group"] == "a"
    assert ranked.loc["coin", "group"] == ranked.loc["coin2", "group"] == "b"
    assert ranked.loc["coin", "mean"] == pytest.approx(roc_auc_score(label, scores["coin"]))


def image_scores(rng, labels, configurations, categories, seeds=1):
    """Equal configurations that share most of their errors."""
    rows = []
    for category in range(categories):
        base = rng.normal(size=len(labels)) + labels
        for k, seed in itertools.product(range(configurations), range(seeds)):
            named = {
                "configuration": f"m{k}",
                "dataset": "d",
                "category": f"c{category}",
                "seed": seed,
            }
            images = {"path": np.arange(len(labels)), "label": labels}
            rows.append(
                pd.DataFrame(named | images | {"pred_score": base + rng.normal(size=len(labels))})
            )
    return pd.concat(rows)


def test_two_models_on_one_category_differ_by_what_delongs_test_says():
    labels = np.repeat([0, 1], 30)
    frame = image_scores(np.random.default_rng(14), labels, 2, 1)
    for shift in np.linspace(0, 2, 9):
        moved = frame.assign(
            pred_score=frame["pred_score"]
            + shift * frame["label"] * (frame["configuration"] == "m1")
        )
        a, b = (
            moved.loc[moved["configuration"] == name, "pred_score"].to_numpy()
            for name in ("m0", "m1")
        )
        apart = paired_difference(a, b, labels).p_value < 0.05
        assert (ranking_on_images(moved)["group"].nunique() == 2) == apart


@pytest.mark.parametrize(("configurations", "categories"), [(2, 1), (6, 2)])
def test_equal_models_are_told_apart_by_images_in_at_most_five_percent_of_all_comparisons(
    configurations, categories
):
    rng, labels, wrong = np.random.default_rng(15), np.repeat([0, 1], [60, 30]), 0
    for _ in range(150):
        frame = image_scores(rng, labels, configurations, categories)
        wrong += ranking_on_images(frame)["group"].nunique() > 1
    assert wrong / 150 <= 0.05 + 3 * 0.018


def test_more_seeds_and_categories_make_means_on_images_surer():
    labels, rng = np.repeat([0, 1], 30), np.random.default_rng(16)
    one, three = (ranking_on_images(image_scores(rng, labels, 2, count)) for count in (1, 6))
    width = [(table["high"] - table["low"]).mean() for table in (one, three)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(6), rel=0.3)
    assert "another seed" in one.attrs["notes"][0]
    assert ranking_on_images(image_scores(rng, labels, 2, 1, seeds=3)).attrs["notes"] == []


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


def test_two_share_a_letter_exactly_where_they_are_not_told_apart():
    rng = np.random.default_rng(10)
    for size in (1, 2, 5, 9):
        for _ in range(20):
            upper = np.triu(rng.random((size, size)) < 0.4, 1)
            apart = upper | upper.T
            letters = group_letters(~apart)
            assert letters[0].startswith("a")
            for a, b in itertools.combinations(range(size), 2):
                assert bool({*letters[a]} & {*letters[b]}) != apart[a, b]
    assert group_letters(np.ones((3, 3), bool)) == ["a", "a", "a"]


def test_the_spread_over_seeds_is_pooled_within_categories():
    frame = trials({"a": [0.9, 0.5], "b": [0.7, 0.6]}, seeds=5, noise=0.02)
    each = [
        g["image_auroc"].var() for _, g in frame[frame["configuration"] == "a"].groupby("category")
    ]
    spread = seed_spread(frame)
    by_name = spread["configurations"]
    assert by_name["a"] == pytest.approx(np.sqrt(np.mean(each)))
    assert spread["overall"] == pytest.approx(np.sqrt((by_name["a"] ** 2 + by_name["b"] ** 2) / 2))
    assert seed_spread(trials({"a": [0.9]}))["configurations"] == {}


def test_forty_four_configurations_over_thirty_categories_rank_at_once():
    rng = np.random.default_rng(11)
    values = {f"m{i:02d}": list(rng.uniform(0.5, 0.6) + 0.4 * rng.random(30)) for i in range(44)}
    values["m00"][3] = None
    ranked = ranking(trials(values, seeds=2))
    assert len(ranked) == 44
    assert set(ranked["common"]) == {29}
    assert ranked["mean"].is_monotonic_decreasing


@pytest.mark.parametrize(
    "values",
    [{}, {"a": []}, {"a": [None]}, {"a": [0.5], "b": [None]}, {"a": [1.0] * 8, "b": [1.0] * 8}],
)
def test_odd_stores_rank_without_an_error(values):
    frame = trials(values) if any(values.values()) else trials({"a": [0.5]}).iloc[:0]
    assert len(ranking(frame)) <= 2
