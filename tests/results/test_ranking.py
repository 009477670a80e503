"""Rankings by categories and by test images, on made cases, and against their stated error rates."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from adray.results.image_statistics import PairedScores, mean_paired_difference
from adray.results.ranking import ranking, ranking_on_images, seed_spread


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


def test_a_broken_configuration_is_left_out_and_named():
    good = [0.9, 0.8, 0.7, 0.95]
    frame = trials({"a": good, "b": [v - 0.1 for v in good], "broken": [0.99, None, None, None]})
    found = ranking(frame)
    ranked = found.table
    assert list(ranked["configuration"]) == ["a", "b", "broken"]
    assert list(ranked["common"]) == [4, 4, 0]
    assert list(ranked["coverage"]) == [4, 4, 1]
    assert ranked["mean"][0] == pytest.approx(np.mean(good))
    assert np.isnan(ranked["mean"][2])
    assert any("broken" in str(note) for note in found.notes)


def test_means_are_over_what_all_share_and_seeds_are_averaged_first():
    frame = trials({"a": [0.9, 0.5, 0.7], "b": [0.8, None, 0.6]}, seeds=2)
    ranked = ranking(frame).table.set_index("configuration")
    assert ranked.loc["a", "mean"] == pytest.approx(0.8)
    assert ranked.loc["b", "mean"] == pytest.approx(0.7)
    assert list(ranked["mean_rank"]) == [1, 2]
    assert set(ranked["common"]) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5, 44])
def test_equal_configurations_are_told_apart_in_at_most_five_percent_of_all_comparisons(count):
    rng = np.random.default_rng(7)
    repetitions = 100 if count < 44 else 20
    wrong = 0
    for _ in range(repetitions):
        values = rng.normal(size=(count, 12)) + rng.normal(size=12)
        frame = trials({f"m{i:02d}": list(row) for i, row in enumerate(values)})
        table = ranking(frame).table
        wrong += len(set(table["group"])) > 1
    assert wrong / repetitions <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)


def test_configurations_that_differ_everywhere_are_told_apart_even_among_forty_four():
    rng = np.random.default_rng(8)
    cells = 0.05 * rng.normal(size=15)
    values = {
        f"m{i:02d}": list(0.9 - 0.02 * i + cells + 0.001 * rng.normal(size=15)) for i in range(44)
    }
    groups = list(ranking(trials(values)).table["group"])
    assert len(set(groups)) == 44


def test_over_few_categories_nothing_is_told_apart_and_that_is_said():
    ranked = ranking(trials({"a": [0.9] * 5, "b": [0.1] * 5}))
    assert list(ranked.table["group"]) == ["a", "a"]
    assert "at least 6" in str(ranked.notes[0])


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
    ranked = ranking_on_images(frame).table.set_index("configuration")
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
        paired = PairedScores(a, b, labels, np.arange(len(labels)))
        apart = mean_paired_difference([paired]).p_value < 0.05
        assert (ranking_on_images(moved).table["group"].nunique() == 2) == apart


@pytest.mark.slow
@pytest.mark.parametrize(("configurations", "categories"), [(2, 1), (6, 2)])
def test_equal_models_are_told_apart_by_images_in_at_most_five_percent_of_all_comparisons(
    configurations, categories
):
    rng, labels, wrong = np.random.default_rng(15), np.repeat([0, 1], [60, 30]), 0
    for _ in range(150):
        frame = image_scores(rng, labels, configurations, categories)
        wrong += ranking_on_images(frame).table["group"].nunique() > 1
    assert wrong / 150 <= 0.05 + 3 * 0.018


def test_more_seeds_and_categories_make_means_on_images_surer():
    labels, rng = np.repeat([0, 1], 30), np.random.default_rng(16)
    one, three = (ranking_on_images(image_scores(rng, labels, 2, count)) for count in (1, 6))
    width = [(found.table["high"] - found.table["low"]).mean() for found in (one, three)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(6), rel=0.3)
    assert "another seed" in str(one.notes[0])
    assert ranking_on_images(image_scores(rng, labels, 2, 1, seeds=3)).notes == ()


def test_the_spread_over_seeds_is_pooled_within_categories():
    frame = trials({"a": [0.9, 0.5], "b": [0.7, 0.6]}, seeds=5, noise=0.02)
    each = [
        g["image_auroc"].var() for _, g in frame[frame["configuration"] == "a"].groupby("category")
    ]
    assert seed_spread(frame)["a"] == pytest.approx(np.sqrt(np.mean(each)))
    assert seed_spread(trials({"a": [0.9]})) == {}


def test_forty_four_configurations_over_thirty_categories_rank_at_once():
    rng = np.random.default_rng(11)
    values = {f"m{i:02d}": list(rng.uniform(0.5, 0.6) + 0.4 * rng.random(30)) for i in range(44)}
    values["m00"][3] = None
    ranked = ranking(trials(values, seeds=2)).table
    assert len(ranked) == 44
    assert set(ranked["common"]) == {29}
    assert ranked["mean"].is_monotonic_decreasing


@pytest.mark.parametrize(
    "values",
    [{}, {"a": []}, {"a": [None]}, {"a": [0.5], "b": [None]}, {"a": [1.0] * 8, "b": [1.0] * 8}],
)
def test_odd_stores_rank_without_an_error(values):
    frame = trials(values) if any(values.values()) else trials({"a": [0.5]}).iloc[:0]
    assert len(ranking(frame).table) <= 2
