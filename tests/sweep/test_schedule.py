"""The simulated schedule."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from adray.config import ResourceRule
from adray.job import Job
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.registry import ModelRegistry
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import SHARES, Need, Share, Site
from adray.sweep.schedule import (
    Scheduled,
    arrange,
    end_of,
    format_schedule,
    lower_bound,
    simulate,
)

EN = load_catalogue("en")
BOX = Site(gpus=2, cpus=64, memory=10**12)


def scheduled(seconds: float, gpu: float, name: str = "padim", seed: int = 0) -> Scheduled:
    trial = PlannedTrial(Job(ModelRegistry.resolve(name), ("mvtec",), ("bottle",), seed), "new")
    return Scheduled(
        trial, Share(gpu, 1, 10**9), Need(seconds, seconds / 2, seconds * 2, 1000, None, 0)
    )


def brute_force(ordered: list[Scheduled], gpus: int, step: float) -> list[float]:
    """Ends of the trials, by stepping through time."""
    free, running, waiting, ends, now = (
        [1.0] * gpus,
        [],
        list(range(len(ordered))),
        [0.0] * len(ordered),
        0.0,
    )
    while waiting or running:
        for i, device, end in list(running):
            if end <= now + 1e-9:
                free[device] += ordered[i].share.gpu
                running.remove((i, device, end))
        for i in list(waiting):
            # The GPU with the fewest trials, of these the one with most room.
            able = [d for d in range(gpus) if free[d] >= ordered[i].share.gpu - 1e-3]
            if able:
                crowd = [sum(device == d for _, device, _ in running) for d in range(gpus)]
                device = min(able, key=lambda d: (crowd[d], -free[d]))
                free[device] -= ordered[i].share.gpu
                ends[i] = now + ordered[i].need.seconds
                running.append((i, device, ends[i]))
                waiting.remove(i)
        now += step
    return ends


def test_the_simulation_agrees_with_stepping_through_time():
    """With shares of at most a half, so that no GPU is kept for a trial that wants all of it."""
    rng = np.random.default_rng(0)
    ordered = [
        scheduled(float(rng.integers(1, 20)), float(rng.choice([0.125, 0.25, 0.5])), seed=i)
        for i in range(40)
    ]
    slots = {slot.scheduled.trial.job.seed: slot.end for slot in simulate(ordered, BOX)}
    assert [slots[i] for i in range(40)] == pytest.approx(brute_force(ordered, 2, 1.0))


def test_big_trials_do_not_starve_behind_small_ones():
    """Ray itself started the last one at 28 s: 24 trials of a quarter for 1 s, two of a GPU for 3 s."""
    small = [scheduled(1.0 + 0.1 * (i % 5), 0.25, seed=i) for i in range(24)]
    big = [scheduled(3.0, 1.0, seed=100 + i) for i in range(2)]
    slots = simulate(arrange(small + big, (), BOX), BOX)
    assert end_of(slots) <= 1.1 * lower_bound(small + big, BOX)


def random_grid(seed: int) -> tuple[list[Scheduled], Site]:
    """Some hundred trials, each far shorter than the whole, on a random box."""
    rng = np.random.default_rng(seed)
    gpus = int(rng.integers(1, 9))
    found = []
    for _ in range(int(rng.integers(1, 4))):
        gpu = float(rng.choice([1.0, 0.5, 0.25, 1 / 6]))
        median = float(rng.choice([20.0, 60.0, 300.0]))
        for seconds in median * np.exp(rng.normal(scale=0.5, size=int(rng.integers(60, 200)))):
            found.append(scheduled(float(seconds), gpu, seed=len(found)))
    return found, Site(gpus, int(rng.integers(gpus, 8 * gpus)), 1000 * 10**9)


@pytest.mark.parametrize("seed", range(12))
def test_a_grid_of_many_trials_ends_within_a_tenth_of_the_time_before_which_it_cannot(seed):
    found, site = random_grid(seed)
    slots = simulate(arrange(found, (), site), site)
    assert len(slots) == len(found)
    assert end_of(slots) <= 1.1 * lower_bound(found, site)


@pytest.mark.parametrize(
    ("site", "short", "long"),
    [
        (Site(5, 16, 1000 * 10**9), (200, 0.5, 300.0), (60, 1 / 8, 1800.0)),
        (Site(7, 32, 1000 * 10**9), (200, 0.5, 300.0), (60, 1 / 6, 1800.0)),
        (Site(2, 6, 1000 * 10**9), (200, 1.0, 300.0), (200, 1 / 8, 1800.0)),
        (Site(3, 8, 1000 * 10**9), (60, 1.0, 60.0), (60, 1 / 6, 300.0)),
    ],
)
def test_trials_that_want_gpus_run_beside_those_that_want_cpus(site, short, long):
    rng = np.random.default_rng(0)
    found = []
    for count, gpu, median in (short, long):
        for seconds in median * np.exp(rng.normal(scale=0.3, size=count)):
            found.append(scheduled(float(seconds), gpu, seed=len(found)))
    assert end_of(simulate(arrange(found, (), site), site)) <= 1.1 * lower_bound(found, site)


def random_fleet(seed: int, fewest: int) -> tuple[list[Scheduled], Site]:
    """One to three kinds of trials on a box where GPUs, CPUs or host memory are what is short."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(int(rng.integers(1, 4))):
        count = int(rng.choice([fewest, 60, 200]))
        gpu = float(rng.choice(SHARES))
        median = 60 * float(rng.choice([1, 5, 30]))
        memory = int(rng.choice([1, 4, 8])) * 10**9
        for seconds in median * np.exp(rng.normal(scale=0.4, size=count)):
            entry = scheduled(float(seconds), gpu, seed=len(found))
            found.append(replace(entry, share=replace(entry.share, memory=memory)))
    cpus = int(rng.choice([4, 6, 8, 16, 32, 64]))
    return found, Site(int(rng.integers(1, 9)), cpus, int(rng.choice([64, 128, 512])) * 10**9)


def together(shares: list[Share], site: Site) -> list[tuple[int, ...]]:
    """How many trials of each share may run at a moment, of the last as many as find room."""
    *others, last = shares
    found = []
    for counts in itertools.product(range(site.cpus + 1), repeat=len(others)):
        large, small, memory = 0, 0.0, 0
        for count, share in zip(counts, others, strict=True):
            large += count * (share.gpu == 1)
            small += count * share.gpu * (share.gpu < 1)
            memory += count * share.memory

        # A trial that wants all of a GPU shares it with none.
        room = site.gpus - large - (math.ceil(small - 1e-6) if last.gpu == 1 else small)
        cpus = site.cpus - sum(counts)
        if room > -1e-6 and cpus >= 0 and memory <= site.memory:
            most = int((room + 1e-6) / last.gpu), cpus, (site.memory - memory) // last.memory
            found.append((*counts, max(0, min(most))))
    return found


def work_bound(found: list[Scheduled], site: Site) -> float:
    """Seconds in which all is done if trials could be cut into pieces of any length.

    Sharper than GPUs, CPUs and memory one by one: four trials of an eighth may have all CPUs but half of a GPU, and
    keep a whole one waiting.
    """
    work: dict[Share, float] = {}
    for entry in found:
        work[entry.share] = work.get(entry.share, 0.0) + entry.need.seconds
    shares = sorted(work, key=lambda share: -share.gpu)
    sets = np.array(together(shares, site)).T
    solved = linprog(np.ones(sets.shape[1]), A_ub=-sets, b_ub=[-work[share] for share in shares])
    return float(solved.fun)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_short_many_trials_end_within_a_tenth_of_their_bound(seed):
    found, site = random_fleet(seed, 60)
    bound = max(lower_bound(found, site), work_bound(found, site))
    assert bound <= 1.001 * end_of(simulate(arrange(found, (), site), site)) <= 1.1 * bound


@pytest.mark.parametrize("seed", range(40))
def test_more_cpus_than_one_for_each_trial_delay_no_end(seed):
    """Not by more than 2 %: what a trial has to spare, another may wait for."""
    found, site = random_fleet(seed, 20)
    one_each = ResourceRule(cpu=1)
    least = end_of(simulate(arrange(found, (one_each,), site), site))
    assert end_of(simulate(arrange(found, (), site), site)) <= 1.021 * least


def test_large_trials_still_start_first_where_no_other_order_ends_earlier():
    box = Site(4, 8, 10**12)
    found = [scheduled(60.0, 0.5, seed=seed) for seed in range(4)]
    found += [scheduled(60.0, 1.0, seed=seed) for seed in range(4, 8)]
    ordered = arrange(found, (ResourceRule(cpu=1),), box)
    assert [entry.share.gpu for entry in ordered] == [1.0] * 4 + [0.5] * 4


def test_trials_have_all_the_cpus_that_no_other_waits_for():
    box = Site(4, 32, 1000 * 10**9)
    wholes = [scheduled(60.0 + seed, 1.0, seed=seed) for seed in range(40)]
    assert {entry.share.cpu for entry in arrange(wholes, (), box)} == {8}


def earliest_on_lanes(seconds: list[float], lanes: int) -> float:
    """The earliest end of trials that run one after the other in each of some lanes, by trying all."""
    best = math.inf
    loads = [0.0] * lanes

    def place(number: int) -> None:
        nonlocal best
        if number == len(seconds):
            best = min(best, max(loads))
            return
        for lane in range(lanes):
            is_first_like_it = loads[lane] not in loads[:lane]
            if is_first_like_it and loads[lane] + seconds[number] < best:
                loads[lane] += seconds[number]
                place(number + 1)
                loads[lane] -= seconds[number]

    place(0)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_few_long_trials_end_about_as_early_as_any_order_lets_them(seed):
    """Their bound is often out of reach. The longest first alone end up to a fifth later."""
    rng = np.random.default_rng(seed)
    box = Site(int(rng.integers(2, 5)), 64, 10**12)
    seconds = sorted((60 * np.exp(rng.normal(scale=0.3, size=11))).tolist(), reverse=True)
    found = [scheduled(value, 1.0, seed=seed) for seed, value in enumerate(seconds)]
    end = end_of(simulate(arrange(found, (), box), box))
    assert end <= 1.04 * earliest_on_lanes(seconds, box.gpus)


def test_where_no_order_can_reach_the_bound_the_end_is_as_early_as_any():
    """Two GPUs and four CPUs, 4 trials of a GPU and 6 of a sixth, all of a minute: 3 minutes, bound 2.5."""
    box = Site(2, 4, 10**12)
    found = [scheduled(60.0, 1.0, seed=seed) for seed in range(4)]
    found += [scheduled(60.0, 1 / 6, seed=seed) for seed in range(4, 10)]
    assert lower_bound(found, box) == pytest.approx(150.0)

    # Of a minute a large trial is worth a half, a small one a sixth: whatever runs at a moment is worth one at most.
    for large, small in itertools.product(range(3), range(5)):
        if large + math.ceil(small / 6) <= 2 and large + small <= 4:
            assert large / 2 + small / 6 <= 1
    assert 4 / 2 + 6 / 6 == 3
    assert end_of(simulate(arrange(found, (), box), box)) == pytest.approx(180.0)


@pytest.mark.parametrize("seed", range(12))
def test_no_run_ends_before_its_bound(seed):
    found, site = random_grid(seed)
    for ordered in (found, found[::-1], arrange(found, (), site)):
        assert end_of(simulate(ordered, site)) >= 0.999 * lower_bound(found, site)


def test_the_order_that_is_chosen_ends_as_early_as_the_best_of_all_orders():
    """Of four trials, by trying all their orders."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        found = [
            scheduled(float(rng.integers(1, 9)), float(rng.choice([1.0, 0.5])), seed=i)
            for i in range(4)
        ]
        best = min(end_of(simulate(order, BOX)) for order in itertools.permutations(found))
        assert end_of(simulate(arrange(found, (), BOX), BOX)) <= 1.25 * best


def test_shares_grow_as_far_as_all_trials_still_run_at_once():
    box = Site(gpus=4, cpus=16, memory=10**12)

    def gpus_of(shares):
        found = [scheduled(9.0, gpu, seed=i) for i, gpu in enumerate(shares)]
        grown = arrange(found, (), box)
        assert end_of(simulate(grown, box)) == 9.0
        return sorted(entry.share.gpu for entry in grown)

    assert gpus_of([0.25] * 4) == [1.0] * 4
    assert gpus_of([0.25] * 5) == [0.5] * 5
    assert gpus_of([0.25] * 8) == [0.5] * 8
    assert gpus_of([0.25] * 16) == [0.25] * 16
    assert gpus_of([1.0, 0.25, 0.25]) == [1.0, 1.0, 1.0]
    assert gpus_of([1.0, 1.0, 1.0] + [0.25] * 4) == [0.25] * 4 + [1.0] * 3


def test_what_a_rule_names_does_not_grow():
    found = [scheduled(9.0, 0.25, seed=i) for i in range(2)]
    rule = ResourceRule(gpu=0.25, cpu=1)
    assert {entry.share.gpu for entry in arrange(found, (rule,), BOX)} == {0.25}
    assert {entry.share.cpu for entry in arrange(found, (rule,), BOX)} == {1}
    assert {entry.share.cpu for entry in arrange(found, (), BOX)} == {32}


def test_long_trials_and_those_that_share_warm_processes_run_side_by_side():
    found = [scheduled(60.0, 0.5, "stfpm", 0)]
    found += [scheduled(10.0, 0.5, "padim", seed) for seed in range(1, 19)]
    assert end_of(simulate(arrange(found, (), BOX), BOX)) == 60.0


def test_without_gpus_cpus_are_the_slots():
    site = Site(gpus=0, cpus=4, memory=10**12)
    assert (
        max(slot.end for slot in simulate([scheduled(2.0, 0.0, seed=i) for i in range(10)], site))
        == 6.0
    )


def test_the_fleet_is_drawn_over_time():
    """Two trials of an hour on the first GPU, half an hour on the second."""
    ordered = [scheduled(3600.0, 0.5), scheduled(1800.0, 1.0), scheduled(3600.0, 0.5)]
    lines = format_schedule(ordered, BOX, EN).splitlines()
    assert "  GPU 0  |" + "2" * 60 + "|" in lines
    assert "  GPU 1  |" + "1" * 30 + "." * 30 + "|" in lines
    assert any("1 min 0 s a column" in line for line in lines)
    no_gpu = Site(0, 12, 10**12)
    crowd = [scheduled(3600.0, 0.0, seed=i) for i in range(12)]
    assert "  CPUs   |" + "+" * 60 + "|" in format_schedule(crowd, no_gpu, EN).splitlines()


def test_a_long_schedule_is_summed_up():
    trials = [scheduled(60.0, 0.25, seed=i) for i in range(2000)]
    trials[0] = replace(trials[0], need=replace(trials[0].need, measured=1))
    text = format_schedule(trials, BOX, EN)
    assert "and 1960 more" in text
    assert "2000 trials in about 4 h 10 min (2 h 5 min to 8 h 20 min), at best 4 h 10 min" in text
    assert "1999 of them are guesses" in text
    assert "GPU 1: 1000 trials, busy 100 % of the time" in text
    assert len(text.splitlines()) < 60


def test_a_first_schedule_gives_one_number_and_says_that_it_is_a_guess():
    text = format_schedule([scheduled(200.0, 0.5)], BOX, EN)
    assert "1 trials in about 3 min 20 s, a first guess" in text
    assert " to " not in text.splitlines()[-1].partition(",")[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_seeds_are_told_apart_and_a_site_without_gpus_has_no_columns_for_them(language):
    say = load_catalogue(language)
    trials = [scheduled(60.0, 0.0, seed=seed) for seed in (1, 2)]
    text = format_schedule(trials, Site(gpus=0, cpus=2, memory=10**12), say)
    assert "GPU" not in text
    assert all(say("schedule seed", seed=seed) in text for seed in (1, 2))
