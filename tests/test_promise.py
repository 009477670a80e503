"""What a threshold of calibration normals promises, against brute force, scipy and hand computation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats

from adray.errors import InputError
from adray.thresholds import (
    compute_thresholds,
    just_above,
    make_promise,
    normals_needed,
    normals_to_be_sure,
    p_values,
    promise_per_group,
    promised_rate,
    rate_to_be_sure,
)

RATES = ("0.2", "0.1", "0.07", "0.05", "0.02", "0.01", "0.001")


def brute_rank(normals, rate):
    """r = ceil((n + 1)(1 - a)) in exact arithmetic, and the largest score where there is none such."""
    return min(math.ceil((normals + 1) * (1 - Fraction(rate))), normals)


@pytest.mark.parametrize("rate", RATES)
def test_the_threshold_is_the_r_th_smallest_score_for_every_number_of_normals(rate):
    rng = np.random.default_rng(0)
    for normals in [*range(1, 130), 298, 299, 300, 999, 1000]:
        scores = rng.normal(size=normals)
        promise = make_promise(scores, float(rate))
        rank = brute_rank(normals, rate)
        assert promise.rank == rank
        assert promise.score == sorted(scores)[rank - 1]
        assert promise.promised == pytest.approx((normals + 1 - rank) / (normals + 1))
        assert promise.is_kept == (normals >= normals_needed(float(rate)))


def test_none_one_and_two_normals_have_their_answer():
    nothing = make_promise(np.empty(0), 0.05)
    assert (nothing.rank, nothing.score, nothing.promised, nothing.bound) == (0, None, None, None)
    assert not nothing.is_kept
    one = make_promise(np.array([3.0]), 0.05)
    assert (one.rank, one.score, one.promised) == (1, 3.0, 0.5)
    assert one.bound == pytest.approx(0.95)
    two = make_promise(np.array([4.0, 3.0]), 0.05)
    assert (two.rank, two.score, two.promised) == (2, 4.0, pytest.approx(1 / 3))
    half = make_promise(np.array([4.0, 3.0]), 0.7)
    assert (half.rank, half.score) == (1, 3.0)


def test_infinite_scores_are_scores_and_nan_is_none():
    assert make_promise(np.array([np.inf, 1.0]), 0.05).score == np.inf
    assert make_promise(np.array([-np.inf] * 30), 0.05).score == -np.inf
    with pytest.raises(InputError, match="1 of 2"):
        make_promise(np.array([np.nan, 1.0]), 0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5, math.nan])
def test_a_rate_that_is_no_part_is_refused_by_its_value(rate):
    with pytest.raises(InputError, match=f"{rate:g}"):
        make_promise(np.arange(9.0), rate)


@pytest.mark.parametrize("rate", RATES)
def test_the_numbers_of_normals_are_the_least_that_do(rate):
    """By trying every number."""
    exact = Fraction(rate)
    needed = next(n for n in range(1, 2000) if math.floor((n + 1) * exact) >= 1)
    assert normals_needed(float(rate)) == needed
    sure = normals_to_be_sure(float(rate))
    assert (1 - float(rate)) ** sure <= 0.05 < (1 - float(rate)) ** (sure - 1)


def test_the_numbers_that_the_field_quotes():
    assert [normals_needed(rate) for rate in (0.05, 0.01, 0.001)] == [19, 99, 999]
    assert [normals_to_be_sure(rate) for rate in (0.05, 0.01, 0.001)] == [59, 299, 2995]
    assert round(100 * rate_to_be_sure(24), 1) == 11.7
    assert rate_to_be_sure(299) <= 0.01 < rate_to_be_sure(298)


@pytest.mark.parametrize(("normals", "count"), [(1, 1), (24, 1), (100, 5), (300, 3), (50, 50)])
def test_the_bound_is_that_of_scipys_beta_distribution(normals, count):
    expected = stats.beta.ppf(0.95, count, normals + 1 - count)
    assert rate_to_be_sure(normals, count) == pytest.approx(expected, rel=1e-9)


LAWS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_cauchy(size=size),
    "ties": lambda rng, size: rng.integers(0, 6, size=size).astype(float),
    "mixture": lambda rng, size: rng.normal(size=size) + 9 * (rng.random(size) < 0.03),
    "constant": lambda rng, size: np.zeros(size),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("normals", "rate"), [(6, 0.2), (24, 0.05), (99, 0.01), (120, 0.05)])
def test_new_normals_ring_no_more_than_promised_whatever_their_law(law, normals, rate):
    rng = np.random.default_rng(normals)
    rates = []
    held = 0
    for _ in range(400):
        promise = make_promise(LAWS[law](rng, normals), rate)
        rang = float(np.mean(LAWS[law](rng, 2000) > promise.score))
        rates.append(rang)
        held += rang <= promise.bound + 3 * math.sqrt(promise.bound / 2000)
    noise = 3 * np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) <= promise.promised + noise
    assert held / len(rates) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(rates))


def test_without_ties_the_promise_is_no_looser_than_it_must_be():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(4000):
        rates.append(stats.norm.sf(make_promise(rng.normal(size=39), 0.05).score))
    assert np.mean(rates) == pytest.approx(0.05, abs=4 * np.std(rates) / math.sqrt(4000))


@pytest.mark.parametrize("law", LAWS)
def test_p_values_count_the_normals_at_or_above_by_hand(law):
    rng = np.random.default_rng(2)
    calibration = LAWS[law](rng, 30)
    scores = np.concatenate([LAWS[law](rng, 50), calibration, [-np.inf, np.inf]])
    by_hand = [(1 + sum(c >= s for c in calibration)) / 31 for s in scores]
    np.testing.assert_allclose(p_values(scores, calibration), by_hand)


def test_p_values_without_calibration_normals_say_nothing():
    assert list(p_values(np.array([1.0, 9.0]), np.empty(0))) == [1.0, 1.0]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rate", [0.2, 0.1, 0.05])
def test_a_score_is_above_the_threshold_exactly_where_its_p_value_is_at_most_the_rate(law, rate):
    rng = np.random.default_rng(3)
    calibration = LAWS[law](rng, 59)
    scores = np.concatenate([LAWS[law](rng, 200), calibration])
    above = scores > make_promise(calibration, rate).score
    assert list(above) == list(p_values(scores, calibration) <= rate)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_reaching_the_stored_value_is_lying_above_the_score(kind):
    rng = np.random.default_rng(4)
    scores = rng.normal(size=200).astype(kind)
    for score in scores[:50]:
        value = just_above(float(score))
        neighbours = [score, np.nextafter(score, kind(9)), np.nextafter(score, kind(-9)), *scores]
        assert [float(s) >= value for s in neighbours] == [s > score for s in neighbours]
        # Another program compares in the precision of the scores.
        assert list(scores >= kind(value)) == list(scores > score)


def test_the_threshold_of_a_trial_is_the_promise_and_none_of_its_calibration_normals_rings_above_r():
    held_out = np.random.default_rng(5).random(39).astype(np.float32)
    found = compute_thresholds(np.arange(4.0), np.array([0, 0, 1, 1]), held_out)["promise"]
    assert np.sum(held_out >= found.value) == 1
    assert not found.oracle
    assert found.note == ""
    assert found.promise.promised == pytest.approx(0.05)


def test_too_few_normals_are_said_in_the_sentence_of_the_design():
    found = compute_thresholds(np.empty(0), np.empty(0), np.arange(24.0), 0.01)["promise"]
    assert found.note == (
        "1 % needs 99 normals to calibrate, 299 to be sure; there are 24: the best that can be "
        "promised is 4 % (11.7 % with 95 % confidence)"
    )
    assert found.value > 23


@pytest.mark.parametrize(("count", "rate"), [(3, 0.5), (4, 0.2), (5, 0.4), (6, 0.3)])
def test_over_all_orders_of_scores_exactly_what_is_promised_rings(count, rate):
    """One of n + 1 exchangeable scores is new: each of the (n + 1)! orders is as likely."""
    rang = 0
    orders = list(itertools.permutations(range(count + 1)))
    for order in orders:
        promise = make_promise(np.array(order[:-1], float), rate)
        rang += order[-1] > promise.score
    assert Fraction(rang, len(orders)) == Fraction(promise.promised).limit_denominator(100)


def test_over_all_orders_new_groups_ring_as_promised_whatever_their_sizes():
    """Groups of 1, 2 and 3 images change places, the new one among them."""
    sizes = (1, 2, 3, 1)
    rang = 0
    drawn = 0
    for seed in range(40):
        scores = np.random.default_rng(seed).permutation(sum(sizes)).astype(float)
        groups = np.split(scores, np.cumsum(sizes)[:-1])
        for order in itertools.permutations(groups):
            names = [f"lot {i}" for i, group in enumerate(order[:-1]) for _ in group]
            promise = promise_per_group(np.concatenate(order[:-1]), names, 0.25)
            rang += order[-1].max() > promise.score
            drawn += 1
    assert promise.promised == 0.25
    assert rang / drawn == promise.promised


def test_the_promise_of_groups_is_that_of_their_highest_scores():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=200)
    names = [f"day {i}" for i in rng.integers(0, 40, 200)]
    highest = [scores[np.array(names) == name].max() for name in set(names)]
    found = promise_per_group(scores, names, 0.05)
    expected = make_promise(np.array(highest), 0.05)
    assert (found.groups, found.score) == (expected.normals, expected.score)
    assert (found.promised, found.bound) == (expected.promised, expected.bound)
    assert found.bound == pytest.approx(stats.beta.ppf(0.95, 2, found.groups - 1))
    chosen = promise_per_group(scores, names, 0.3, tried=4)
    whichever = make_promise(np.array(highest), 0.3, 4)
    assert (chosen.score, chosen.promised) == (whichever.score, whichever.promised)
    assert chosen.tried == 4


def test_nothing_is_promised_of_groups_where_an_image_has_none_or_there_are_two():
    scores = np.arange(9.0)
    assert promise_per_group(scores, ["a", "b", "c"] * 3, 0.1) is not None
    assert promise_per_group(scores, ["a", "b", ""] * 3, 0.1) is None
    assert promise_per_group(scores, ["a", "b", "b"] * 3, 0.1) is None
    assert promise_per_group(np.empty(0), [], 0.1) is None


# One of several trials, chosen by scores of the normals that calibrate it


@pytest.mark.parametrize("tried", [2, 10, 200])
@pytest.mark.parametrize(("normals", "count"), [(1, 1), (24, 1), (100, 5), (30, 30)])
def test_the_rate_of_the_chosen_one_is_the_integral_of_the_union_bound(tried, normals, count):
    law = stats.beta(count, normals + 1 - count)
    expected = integrate.quad(
        lambda t: min(1.0, tried * law.sf(t)), 0, 1, points=[law.isf(1 / tried)], limit=200
    )[0]
    assert promised_rate(normals, count, tried) == pytest.approx(expected, rel=1e-6)
    sure = stats.beta.isf(0.05 / tried, count, normals + 1 - count)
    assert rate_to_be_sure(normals, count, tried) == pytest.approx(sure, rel=1e-9)


@pytest.mark.parametrize("rate", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("tried", [1, 3, 40])
def test_the_rank_for_a_chosen_trial_is_the_least_that_keeps_the_rate(rate, tried):
    for normals in (6, 24, 99, 300, 1000):
        promise = make_promise(np.arange(float(normals)), rate, tried)
        counts = range(1, normals + 1)
        kept = [k for k in counts if promised_rate(normals, k, tried) <= rate * (1 + 1e-12)]
        assert normals + 1 - promise.rank == max(kept, default=1)
        assert promise.is_kept == bool(kept)
        assert bool(kept) == (normals >= normals_needed(rate, tried))


@pytest.mark.parametrize("chosen", [1, 8])
@pytest.mark.parametrize(("normals", "rate"), [(24, 0.05), (120, 0.05), (60, 0.2)])
@pytest.mark.parametrize("law", ["normal", "heavy tails", "ties"])
def test_the_promise_holds_for_the_worst_of_several_trials(law, normals, rate, chosen):
    """The lowest threshold, the choice that rings most."""
    rng = np.random.default_rng([normals, chosen])
    fresh = np.sort(LAWS[law](rng, 20_000))
    rates = []
    for _ in range(250):
        promises = []
        for _ in range(chosen):
            promises.append(make_promise(LAWS[law](rng, normals), rate, chosen))
        lowest = min(promise.score for promise in promises)
        rates.append(1 - np.searchsorted(fresh, lowest, side="right") / len(fresh))
    noise = 3 * np.std(rates) / math.sqrt(len(rates)) + 3 * math.sqrt(rate / len(fresh))
    assert np.mean(rates) <= promises[0].promised + noise
    bound = promises[0].bound + 3 * math.sqrt(promises[0].bound / len(fresh))
    held = np.mean(np.array(rates) <= bound)
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(rates))


def test_a_promise_that_does_not_count_the_trials_is_broken_by_the_choice():
    """So that the test above can fail."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        lowest = min(make_promise(rng.normal(size=120), 0.05).score for _ in range(8))
        rates.append(stats.norm.sf(lowest))
    assert np.mean(rates) > 0.05 + 10 * np.std(rates) / math.sqrt(len(rates))


@pytest.mark.parametrize("law", ["normal", "ties", "constant"])
def test_p_values_of_a_chosen_trial_are_at_most_the_rate_exactly_above_its_threshold(law):
    rng = np.random.default_rng(3)
    calibration = LAWS[law](rng, 200)
    scores = np.concatenate([LAWS[law](rng, 200), calibration, [-9.0, 9.0]])
    for rate in (0.2, 0.05):
        promise = make_promise(calibration, rate, 12)
        assert promise.is_kept
        above = scores > promise.score
        assert list(above) == list(p_values(scores, calibration, 12) <= rate)
    assert p_values(np.array([-9.0]), calibration, 12)[0] == 1
