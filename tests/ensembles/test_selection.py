"""Greedy selection against brute force, and an honest gain that is honest."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from adray.ensembles.selection import (
    Cell,
    Rules,
    best_single,
    choose,
    cross_validate,
    fold_of_images,
    greedy,
    select,
    team_value,
    values_of,
)
from adray.errors import InputError


def cell_of(scores, label, unit=None):
    """Images that each stand for themselves, or are of the units given."""
    unit = np.arange(len(label)) if unit is None else np.asarray(unit)
    return Cell(np.asarray(scores, dtype=np.float64), np.asarray(label), unit)


def noise(rng, candidates, normal, anomalous, signal=0.0):
    """Scores of candidates that see defects by `signal` (one number or one each), each with errors of its own."""
    label = np.arange(normal + anomalous) >= normal
    return cell_of(
        rng.standard_normal((candidates, len(label)))
        + np.outer(np.broadcast_to(signal, candidates), label),
        label,
    )


def brute_force(cells, size, metric="image_auroc"):
    count = len(cells[0].scores)
    return max(combinations(range(count), size), key=lambda team: team_value(cells, team, metric))


def test_values_agree_with_scikit_learn_also_with_ties():
    rng = np.random.default_rng(0)
    cell = cell_of(np.round(rng.standard_normal((5, 40)), 1), rng.random(40) < 0.4)
    other = noise(rng, 5, 20, 10, 1.0)
    for metric, reference in (
        ("image_auroc", roc_auc_score),
        ("image_aupr", average_precision_score),
    ):
        expected = [
            np.mean([reference(c.label, c.scores[i]) for c in (cell, other)]) for i in range(5)
        ]
        np.testing.assert_allclose(values_of([cell, other], metric), expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_finds_what_brute_force_finds_where_each_defect_needs_its_own_specialist(size, seed):
    rng = np.random.default_rng(seed)
    # One candidate alone sees the defects of a kind, of which there are fewer for each further kind.
    kind = np.repeat(np.arange(-1, 5), [30, 16, 11, 7, 4, 2])
    scores = 1.0 * (kind[None] == rng.permutation(5)[:, None])
    cells = [cell_of(scores, kind >= 0)]
    assert set(greedy(cells, Rules(size, size))[:size]) == set(brute_force(cells, size))


def test_a_tie_goes_to_the_candidate_that_separates_better_and_then_to_the_first():
    label = np.array([False] * 4 + [True] * 4)
    narrow, wide = (
        np.where(label, 1.0, 0.0) + np.linspace(0, 0.5, 8),
        np.where(label, 9.0, 0.0) + np.linspace(0, 0.5, 8),
    )
    cells = [cell_of(np.stack([narrow, wide, wide]), label)]
    assert values_of(cells, "image_auroc").tolist() == [1, 1, 1]
    assert best_single(cells, "image_auroc") == 1


def test_members_that_complement_one_another_gain_honestly_too():
    rng = np.random.default_rng(1)
    selection = select([noise(rng, 6, 60, 60, 1.0)], Rules(3, 5))
    assert selection.honest.gain > 2 * selection.honest.error
    assert len(selection.team) == len(set(selection.team))
    assert selection.honest.team < selection.team_value + 0.02


def test_on_pure_noise_the_honest_gain_is_zero_while_the_optimistic_one_is_not():
    honest, optimistic, errors = [], [], []
    rules = Rules(3, 3)
    for seed in range(250):
        cells = [noise(np.random.default_rng(seed), 20, 20, 20)]
        result = cross_validate(cells, rules, seed, repeats=1)
        honest.append(result.gain)
        errors.append(result.error)
        team = greedy(cells, rules)
        optimistic.append(
            team_value(cells, team, rules.metric) - values_of(cells, rules.metric).max()
        )
    error_of_mean = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest)) < 3 * error_of_mean < np.mean(optimistic) / 2
    assert np.mean(optimistic) > 0.05
    assert np.mean(errors) == pytest.approx(
        np.std(honest), rel=0.25
    )  # the stated error is the true spread


def test_copies_of_one_model_gain_nothing_at_all():
    one = noise(np.random.default_rng(2), 1, 20, 20, 1.0)
    selection = select([cell_of(np.repeat(one.scores, 5, axis=0), one.label)], Rules(3, 5))
    assert selection.honest.gain == pytest.approx(0, abs=1e-12)
    assert len(selection.team) == 3  # among equals the smallest team


def test_the_number_of_members_follows_what_helps():
    rng = np.random.default_rng(3)
    helpful = [noise(rng, 5, 80, 80, 1.0)]
    assert len(choose(helpful, Rules(2, 5), rng)) == 5
    one_good = [noise(rng, 6, 80, 80, np.array([3.0, 0, 0, 0, 0, 0]))]
    assert len(choose(one_good, Rules(2, 5), rng)) == 2


def test_limits_hold_for_every_team_size_and_leave_room_for_the_smallest():
    rng = np.random.default_rng(4)
    cells = [noise(rng, 8, 30, 30, np.linspace(2, 0.5, 8))]  # the best ones are the dearest
    costs = np.array([np.linspace(10, 3, 8), np.full(8, 100.0)])
    for limit in (9.01, 12.0, 18.0, 30.0):
        team = list(choose(cells, Rules(2, 5, costs=costs, limits=np.array([limit, 450.0])), rng))
        assert costs[0, team].sum() <= limit
        assert costs[1, team].sum() <= 450
        assert len(team) >= 2
    with pytest.raises(
        InputError, match="no team of 3 of the 8 candidates was found within the limits"
    ):
        select(cells, Rules(3, 5, costs=costs, limits=np.array([11.0, 450.0])))
    assert greedy(cells, Rules(2, 5)) == greedy(
        cells, Rules(2, 5, costs=costs, limits=np.array([1e6, 1e6]))
    )


def test_a_greedy_team_within_a_limit_is_as_good_as_brute_force_where_only_one_fits():
    cells = [noise(np.random.default_rng(5), 6, 30, 30, 1.0)]
    costs = np.array([[1.0, 1.0, 1.0, 5.0, 5.0, 5.0]])
    assert set(greedy(cells, Rules(3, 3, costs=costs, limits=np.array([3.0])))) == {0, 1, 2}


def test_one_team_for_several_categories_is_good_on_their_mean():
    rng = np.random.default_rng(6)
    cells = [noise(rng, 5, 40, 40, [3, 0, 1.5, 0, 0]), noise(rng, 5, 40, 40, [0, 3, 1.5, 0, 0])]
    assert best_single(cells, "image_auroc") == 2
    assert set(greedy(cells, Rules(2, 3))[:3]) == set(brute_force(cells, 3))


def test_the_choice_is_the_same_each_time_and_the_shares_say_how_stable_it_is():
    cells = [noise(np.random.default_rng(7), 6, 40, 40, [1, 1, 1, 0, 0, 0])]
    first, second = (select(cells, Rules(3, 3)) for _ in range(2))
    assert first.team == second.team
    assert first.honest.gain == second.honest.gain
    assert first.honest.chosen[:3].min() > first.honest.chosen[3:].max()
    assert first.honest.chosen.sum() == pytest.approx(3)


@pytest.mark.parametrize("seed", range(8))
def test_a_unit_is_in_one_fold_and_every_fold_has_both_classes(seed):
    rng = np.random.default_rng(seed)
    # Units of 1 to 6 images, pure ones and mixed ones, five or more with images of each class.
    kinds = ["normal"] * 3 + ["anomalous"] * 2 + ["mixed"] * rng.integers(3, 6)
    sizes = rng.integers(2, 7, len(kinds))
    unit = np.repeat(rng.permutation(100)[: len(kinds)], sizes)
    of_kind = {"normal": 0.0, "anomalous": 1.0, "mixed": 0.5}
    label = []
    for kind, size in zip(kinds, sizes, strict=True):
        share = of_kind[kind]
        label += [i < max(1, round(share * size)) for i in range(size)] if share else [False] * size
    cell = cell_of(np.zeros((1, len(unit))), label, unit)

    places = fold_of_images(cell, 5, rng)
    assert all(len(set(places[unit == one])) == 1 for one in unit)
    for fold in range(5):
        assert set(cell.label[places == fold]) == {False, True}


def test_images_that_each_stand_for_themselves_are_spread_evenly():
    rng = np.random.default_rng(0)
    cell = noise(rng, 1, 52, 23)
    places = fold_of_images(cell, 5, rng)
    for of_class in (cell.label, ~cell.label):
        counts = np.bincount(places[of_class])
        assert counts.max() - counts.min() <= 1


def test_copies_of_images_make_no_gain_look_surer():
    rng = np.random.default_rng(9)
    once = noise(rng, 4, 12, 12, 0.5)
    unit = np.arange(24)
    often = cell_of(np.tile(once.scores, 4), np.tile(once.label, 4), np.tile(unit, 4))
    rules = Rules(2, 2)
    alone = cross_validate([once], rules, repeats=4)
    copied = cross_validate([often], rules, repeats=4)
    assert copied.team == pytest.approx(alone.team, abs=0.05)
    assert copied.error > 0.7 * alone.error


def test_images_of_few_groups_are_too_few():
    rng = np.random.default_rng(10)
    cell = noise(rng, 5, 20, 20)
    few = cell_of(cell.scores, cell.label, np.repeat(np.arange(6), [10, 10, 10, 4, 3, 3]))
    with pytest.raises(InputError, match="2 normal and 4 anomalous test images, those of a group"):
        select([few], Rules())


def test_too_few_candidates_or_images_are_refused():
    rng = np.random.default_rng(8)
    with pytest.raises(InputError, match="2 usable candidates, but a team needs 3"):
        select([noise(rng, 2, 20, 20)], Rules())
    with pytest.raises(InputError, match="3 normal and 20 anomalous test images"):
        select([noise(rng, 5, 3, 20)], Rules())
    select([noise(rng, 5, 4, 4)], Rules())
