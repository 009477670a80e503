"""Means of conditions and curves over the number of images, against scipy and plain sums."""

from __future__ import annotations

import json
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats

from adray.conditions import Condition, step_of
from adray.results.leaderboard import TrialRow, table
from adray.results.learning_curves import TOLERANCE, condition_means, learning_curves


def row(condition, draw, auroc, configuration="padim", category="bottle", seed=1, status="done"):
    images = 100 if condition == "plain" else 4
    return TrialRow(
        "mvtec",
        category,
        configuration,
        seed,
        status,
        "",
        {"image_auroc": auroc},
        condition=condition,
        draw=draw,
        train_images=images,
        evaluation="test",
        weights="random",
    )


def rows_of(values, **more):
    """Rows of one configuration: condition to the values of its draws."""
    found = []
    for condition, aurocs in values.items():
        for i, auroc in enumerate(aurocs):
            draw = None if condition == "plain" else i + 1
            found.append(row(condition, draw, auroc, **more))
    return found


AUROCS = {
    "k_shot=1": [0.60, 0.66, 0.70],
    "k_shot=4": [0.80, 0.82, 0.84],
    "k_shot=16": [0.894, 0.895, 0.897],
    "plain": [0.9],
}


def test_a_curve_rises_with_the_images_and_ends_in_the_plain_case():
    (curve,) = learning_curves(table(rows_of(AUROCS)), "image_auroc")
    assert [point.value for point in curve.points] == [1, 4, 16, 100]
    assert (curve.axis, curve.rest, curve.configuration) == ("k_shot", "", "padim")
    for point in curve.points:
        values = AUROCS[point.condition]
        assert point.mean == pytest.approx(mean(values))
        assert point.repetitions == len(values)
        if len(values) > 1:
            assert point.spread == pytest.approx(stdev(values))


def test_the_interval_of_the_loss_is_that_of_students_t():
    (curve,) = learning_curves(table(rows_of(AUROCS)), "image_auroc")
    for point in curve.points[:-1]:
        losses = 0.9 - np.array(AUROCS[point.condition])
        low, high = stats.t.interval(0.95, 2, losses.mean(), stats.sem(losses))
        assert (point.low, point.high) == pytest.approx((low, high))
    assert curve.points[-1].loss is None


def test_enough_is_where_the_loss_stays_small_and_surely_where_its_interval_does():
    (curve,) = learning_curves(table(rows_of(AUROCS)), "image_auroc")
    assert TOLERANCE == 0.01
    assert (curve.enough, curve.surely) == (16, 16)
    wider = {**AUROCS, "k_shot=16": [0.88, 0.90, 0.91]}
    (curve,) = learning_curves(table(rows_of(wider)), "image_auroc")
    assert (curve.enough, curve.surely) == (16, None)
    # A small loss that grows again with more images is chance.
    lucky = {**AUROCS, "k_shot=1": [0.9, 0.9, 0.9]}
    (curve,) = learning_curves(table(rows_of(lucky)), "image_auroc")
    assert curve.enough == 16
    one_draw = {"k_shot=4": [0.895], "plain": [0.9]}
    (curve,) = learning_curves(table(rows_of(one_draw)), "image_auroc")
    assert (curve.enough, curve.surely) == (4, None)


def test_losses_are_taken_seed_by_seed():
    rows = rows_of({"plain": [0.9], "k_shot=4": [0.8, 0.8]}, seed=1)
    rows += rows_of({"plain": [0.7], "k_shot=4": [0.6, 0.6]}, seed=2)
    (curve,) = learning_curves(table(rows), "image_auroc")
    point = curve.points[0]
    assert (point.loss, point.low, point.high) == pytest.approx((0.1, 0.1, 0.1))


def test_points_of_a_curve_are_over_the_categories_that_all_of_them_have():
    rows = rows_of({"plain": [0.9], "k_shot=4": [0.8, 0.82]})
    rows += rows_of({"plain": [0.5]}, category="wood")
    (curve,) = learning_curves(table(rows), "image_auroc")
    assert curve.cells == 1
    assert [point.mean for point in curve.points] == pytest.approx([0.81, 0.9])
    assert not learning_curves(table(rows_of({"plain": [0.9]})), "image_auroc")


def test_means_are_over_common_categories_and_best_first():
    rows = rows_of({"k_shot=4": [0.8, 0.9]}) + rows_of({"k_shot=4": [0.2, 0.2]}, category="wood")
    rows += rows_of({"k_shot=4": [0.9, 0.96]}, configuration="stfpm")
    rows += [row("k_shot=4", 1, None, "stfpm", "wood", status="failed")]
    rows += rows_of({"plain": [0.7]})
    plain, best, second = condition_means(table(rows), "image_auroc")
    assert (plain.condition, plain.mean, plain.spread) == ("plain", 0.7, None)
    assert (best.configuration, best.failed, second.failed) == ("stfpm", 1, 0)
    assert (best.mean, second.mean) == pytest.approx((0.93, 0.85))
    assert second.spread == pytest.approx(stdev([0.8, 0.9]))
    assert (best.cells, second.cells) == (1, 1)


def test_contamination_begins_with_the_plain_case_and_each_protocol_is_a_curve():
    values = {"plain": [0.9]}
    for protocol in ("no_overlap", "overlap"):
        for share in (0.1, 0.05):
            values[f"contamination={share} {protocol}"] = [0.8 - share]
    curves = learning_curves(table(rows_of(values)), "image_auroc")
    assert [curve.rest for curve in curves] == ["no_overlap", "overlap"]
    for curve in curves:
        assert [point.value for point in curve.points] == [0, 0.05, 0.1]
        assert curve.enough is None


@pytest.mark.parametrize(
    ("condition", "step"),
    [
        (Condition(k_shot=16, draw=3), ("k_shot", 16, "")),
        (Condition(train_fraction=0.25), ("train_fraction", 0.25, "")),
        (Condition(train_fraction=0.0001), ("train_fraction", 0.0001, "")),
        (Condition(contamination=0.05), ("contamination", 0.05, "no_overlap")),
        (
            Condition(k_shot=4, contamination=0.2, test_defects="overlap", hold_out="clean"),
            ("k_shot", 4, "contamination=0.2 overlap, hold_out=clean"),
        ),
    ],
)
def test_the_name_of_a_condition_says_where_it_stands(condition, step):
    stored = json.loads(json.dumps(condition.stored()))
    assert Condition(**stored).label == condition.label
    found = step_of(condition.label)
    assert (found.axis, found.value, found.rest) == step


@pytest.mark.parametrize(
    "condition", [Condition(), Condition(leave_out="group", left_out="k_shot=4")]
)
def test_others_stand_on_no_axis(condition):
    assert step_of(condition.label) is None
