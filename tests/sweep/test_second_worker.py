"""One worker runs what is over before a second had started, and no more than that."""

from __future__ import annotations

import pytest

from adray.sweep.second_worker import SecondWorker


def wall_seconds(
    trials: list[float], start: float = 5.0, predicted: float = 0.0
) -> tuple[float, int]:
    """Run trials on two cores as a sweep does; give the end of the last, and the workers."""
    second = SecondWorker(predicted)
    waiting = list(enumerate(trials))
    free = [0.0]  # when each worker has loaded what it needs, or ended its trial
    running: dict[str, float] = {}
    now = 0.0
    while waiting or running:
        for id8 in [id8 for id8, end in running.items() if end <= now + 1e-9]:
            second.ended(id8, running.pop(id8))
        free_workers = [i for i, moment in enumerate(free) if moment <= now + 1e-9]
        if waiting and running and len(free) < 2 and second.pays(len(waiting), now):
            free.append(now + start)
        for worker in free_workers:
            if waiting:
                number, seconds = waiting.pop(0)
                second.started(str(number), now)
                running[str(number)] = now + seconds
                free[worker] = now + seconds
        now = round(now + 0.1, 1)
    return now - 0.1, len(free)


@pytest.mark.parametrize("trials", [[0.3] * 2, [0.5] * 12, [1.0] * 5, [0.1] * 60])
def test_short_trials_take_one_worker(trials):
    seconds, workers = wall_seconds(trials)
    assert workers == 1
    assert seconds == pytest.approx(sum(trials), abs=0.2 * len(trials))


@pytest.mark.parametrize(
    "trials", [[60.0] * 2, [3.0] * 40, [1.0] * 200, [0.1, *[50.0] * 3], [30.0] * 3]
)
def test_others_get_a_second_one_soon_though_they_were_guessed_short(trials):
    seconds, workers = wall_seconds(trials)
    assert workers == 2
    in_turn = sum(trials) / 2 + max(trials) / 2
    assert seconds <= in_turn + 5.0 + 10.0  # a start of a worker, and what was waited before


def test_what_is_guessed_to_be_long_gets_it_at_once():
    assert SecondWorker(60.0).pays(1, 0.0)
    assert not SecondWorker(1.0).pays(9, 0.0)


def test_it_is_never_taken_back():
    second = SecondWorker(0.0)
    second.started("a", 0.0)
    assert second.pays(3, 4.0)
    second.ended("a", 4.0)
    assert second.pays(0, 4.0)
