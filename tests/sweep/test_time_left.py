"""How long a sweep still takes: against trials whose durations are known."""

from __future__ import annotations

import pytest

from adray.sweep.time_left import TimeLeft


def run(durations, needs, models, lanes=1, until=None):
    """Run trials one after the other in each lane, and give the clock and the prediction at a moment."""
    left = TimeLeft(needs, models)
    queue = list(durations)
    free = [0.0] * lanes
    moments = []
    while queue:
        name = queue.pop(0)
        lane = free.index(min(free))
        moments += [(free[lane], "start", name), (free[lane] + durations[name], "end", name)]
        free[lane] += durations[name]
    for now, what, name in sorted(moments):
        if until is not None and now > until:
            break
        (left.started if what == "start" else left.ended)(name, now)
    return left, max(free)


def test_nothing_is_said_before_a_trial_has_ended():
    left, _ = run({"a": 10.0}, {"a": 1.0}, {"a": "padim"}, until=5)
    assert left.seconds(5.0) is None


@pytest.mark.parametrize("wrong", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("lanes", [1, 2])
def test_guesses_that_are_wrong_by_one_factor_end_right(wrong, lanes):
    durations = {f"t{i}": 10.0 for i in range(20)}
    needs = {name: seconds * wrong for name, seconds in durations.items()}
    left, end = run(durations, needs, dict.fromkeys(durations, "padim"), lanes, until=55)
    assert left.seconds(55.0) == pytest.approx(end - 55, abs=10)


def test_each_model_is_corrected_by_its_own_trials():
    """A fast model whose guess is far too large no longer makes the whole look long."""
    durations = {"a1": 10.0, "b1": 1.0, **{f"b{i}": 1.0 for i in range(2, 22)}}
    needs = dict.fromkeys(durations, 10.0)
    models = {name: name[0] for name in durations}
    left, end = run(durations, needs, models, until=11.0)
    assert left.seconds(11.0) == pytest.approx(end - 11, abs=1)


def test_a_trial_that_runs_counts_by_what_it_has_done_already():
    left, _ = run({"a": 10.0, "b": 10.0}, {"a": 1.0, "b": 1.0}, {"a": "m", "b": "m"}, until=10)
    assert left.seconds(18.0) == pytest.approx(2.0)
    assert left.seconds(500.0) == pytest.approx(0.5)


def test_a_trial_that_runs_again_is_left_again():
    left, _ = run({"a": 10.0, "b": 10.0}, {"a": 1.0, "b": 1.0}, {"a": "m", "b": "m"})
    assert left.seconds(20.0) == 0
    left.reopened("a")
    assert left.seconds(30.0) == pytest.approx(10.0)
