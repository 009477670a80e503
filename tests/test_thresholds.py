from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_curve

from adray.curves import curve, f1_max
from adray.errors import InputError
from adray.metrics import confusion
from adray.thresholds import THRESHOLDS, compute_thresholds


def make_scores(n=200, offset=0.0, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(np.int64)
    return (rng.standard_normal(n) + 1.5 * label) * scale + offset, label


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (100, 1), (0, 1e-6)])
def test_f1_thresholds_are_the_best_of_their_candidates(offset, scale):
    scores, label = make_scores(offset=offset, scale=scale)
    found = compute_thresholds(scores, label)
    candidates = {
        "f1_percentile": np.percentile(scores, np.linspace(0, 100, 1001)),
        "f1_uniform": np.linspace(scores.min(), scores.max(), 1001),
    }
    for name, values in candidates.items():
        distinct = {np.count_nonzero(scores >= value): value for value in values}.values()
        best = max(f1_score(label, scores >= value, zero_division=0) for value in distinct)
        assert confusion(scores, label, found[name].value).f1 == pytest.approx(best, abs=1e-12)
        assert found[name].value in values


def test_f1_thresholds_come_close_to_the_best_f1_of_all():
    scores, label = make_scores()
    found, best = compute_thresholds(scores, label), f1_max(curve(scores, label))[0]
    assert confusion(scores, label, found["f1_percentile"].value).f1 == pytest.approx(best)
    assert confusion(scores, label, found["f1_uniform"].value).f1 == pytest.approx(best, abs=0.01)


def test_the_percentile_rule_is_not_spoiled_by_an_outlier_as_the_uniform_one_is():
    scores, label = make_scores()
    scores[np.argmax(label)] = 1e9
    found = compute_thresholds(scores, label)
    assert confusion(scores, label, found["f1_percentile"].value).f1 > 0.7
    assert confusion(scores, label, found["f1_uniform"].value).f1 < 0.7


def test_roc_youden_equals_scikit_learn():
    scores, label = make_scores()
    fpr, tpr, threshold = roc_curve(label, scores)
    assert compute_thresholds(scores, label)["roc_youden"].value == threshold[np.argmax(tpr - fpr)]


def test_percentile_95_comes_from_held_out_normals_alone():
    scores, label = make_scores()
    held_out = np.random.default_rng(1).random(60)
    one = compute_thresholds(scores, label, held_out)["percentile_95"]
    other = compute_thresholds(scores + 100, 1 - label, held_out)["percentile_95"]
    assert one.value == other.value == pytest.approx(np.percentile(held_out, 95), abs=1e-15)
    assert one.note == ""


@pytest.mark.parametrize("held_out", [None, np.empty(0)])
def test_percentile_95_without_held_out_normals_is_not_available(held_out):
    found = compute_thresholds(*make_scores(), held_out)["percentile_95"]
    assert found.value is None
    assert "no held-out normals" in found.note


def test_few_held_out_normals_are_noted():
    assert "from only 5" in compute_thresholds(*make_scores(), np.arange(5.0))["percentile_95"].note


def test_a_threshold_is_an_oracle_exactly_when_it_moves_with_the_labels():
    scores, label = make_scores()
    held_out = np.arange(30.0)
    first, second = (
        compute_thresholds(scores, label, held_out),
        compute_thresholds(scores, 1 - label, held_out),
    )
    moved = {name for name in THRESHOLDS if first[name].value != second[name].value}
    assert moved == {name for name, threshold in first.items() if threshold.oracle}
    assert moved == {"f1_percentile", "f1_uniform", "roc_youden"}


@pytest.mark.parametrize("of_class", [0, 1])
def test_one_class_alone_gives_no_oracle_threshold_but_a_note(of_class):
    found = compute_thresholds(np.arange(6.0), np.full(6, of_class), np.arange(40.0))
    for name in ("f1_percentile", "f1_uniform", "roc_youden"):
        assert found[name].value is None
        assert "n/a" in found[name].note
    assert found["percentile_95"].value is not None


def test_no_test_images_give_no_oracle_threshold():
    found = compute_thresholds(np.empty(0), np.empty(0))
    assert all(threshold.value is None and threshold.note for threshold in found.values())


def test_constant_scores_give_that_score_with_a_note():
    found = compute_thresholds(np.full(6, 2.5), np.array([0, 1] * 3), np.full(30, 2.5))
    above = found.pop("promise")  # no normal image reaches it
    assert above.value == np.nextafter(np.float32(2.5), np.float32(3))
    assert {threshold.value for threshold in found.values()} == {2.5}
    assert "every test image" in found["roc_youden"].note


def test_ties_go_to_the_highest_threshold():
    found = compute_thresholds(np.array([0.0, 1.0]), np.array([0, 1]))
    assert [found[name].value for name in ("f1_percentile", "f1_uniform", "roc_youden")] == [
        1.0,
        1.0,
        1.0,
    ]


def test_non_finite_scores_are_refused_also_among_the_held_out():
    scores, label = make_scores()
    with pytest.raises(InputError, match="1 of 3"):
        compute_thresholds(scores, label, np.array([0.0, np.nan, 1.0]))
    scores[0] = np.inf
    with pytest.raises(InputError, match="1 of 200"):
        compute_thresholds(scores, label)
