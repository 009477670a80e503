"""Where trials go: properties that hold on random fleets and grids, after each trial that starts or ends."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from adray.sweep.placement import Placed, Queue
from adray.sweep.resources import SHARES, Node, Share, Site

GB = 10**9


def random_site(rng: np.random.Generator) -> Site:
    """A box of one to eight GPUs, of one or two sizes, with few or many CPUs."""
    gpus = int(rng.integers(1, 9))
    cards = tuple(int(card) for card in rng.choice([24, 80], gpus))
    cpus = int(rng.integers(1, 8 * gpus + 1))
    memory = int(rng.integers(8, 256)) * GB
    return Site(gpus, cpus, memory, nodes=(Node(gpus, cpus, memory, cards),))


def random_shares(rng: np.random.Generator, site: Site) -> list[Share]:
    """Trials that fit the site when nothing else runs."""
    found = []
    for _ in range(int(rng.integers(1, 60))):
        gpu = float(rng.choice(SHARES))
        if site.gpus > 1 and rng.random() < 0.05:
            gpu = 2.0
        card = int(rng.choice([0, 0, 0, max(site.cards)])) if gpu <= 1 else 0
        cpu = int(rng.integers(1, min(4, site.cpus) + 1))
        found.append(Share(gpu, cpu, int(rng.integers(1, 8)) * GB, card))
    return found


def run(queue: Queue[int], rng: np.random.Generator, look) -> list[Placed[int]]:
    """Run all trials with random durations. `look` sees what runs whenever nothing more starts."""
    running: list[tuple[float, int, Placed[int]]] = []
    order, now = [], 0.0
    while True:
        while placed := queue.start():
            order.append(placed)
            heapq.heappush(running, (now + rng.exponential(), placed.trial, placed))
        look([placed for _, _, placed in running], order)
        if not running:
            return order
        now, _, ended = heapq.heappop(running)
        queue.end(ended)


def cases(count: int):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        site = random_site(rng)
        yield rng, site, random_shares(rng, site)


def on_gpus(running: list[Placed[int]], site: Site) -> tuple[list[float], list[int]]:
    """What is taken of each GPU, and how many trials it has."""
    taken, trials = [0.0] * site.gpus, [0] * site.gpus
    for placed in running:
        for gpu in placed.place.gpus:
            taken[gpu] += min(placed.share.gpu, 1.0)
            trials[gpu] += 1
    return taken, trials


def test_all_trials_run_once_and_nothing_is_ever_overbooked():
    for rng, site, shares in cases(80):

        def look(running, order, site=site):
            taken, _ = on_gpus(running, site)
            assert max(taken) <= 1.001
            assert sum(placed.share.cpu for placed in running) <= site.cpus
            assert sum(placed.share.memory for placed in running) <= site.memory
            for placed in running:
                assert len(placed.place.gpus) == max(1, int(placed.share.gpu))
                assert all(site.devices[gpu].card >= placed.share.card for gpu in placed.place.gpus)

        order = run(Queue(enumerate(shares), site), rng, look)
        assert sorted(placed.trial for placed in order) == list(range(len(shares)))


def test_no_gpu_idles_while_another_has_two_trials_and_one_that_fits_waits():
    for rng, site, shares in cases(80):

        def look(running, order, site=site, shares=shares):
            _, trials = on_gpus(running, site)
            idle = [gpu for gpu in range(site.gpus) if not trials[gpu]]
            if max(trials) < 2 or not idle:
                return
            cpus = site.cpus - sum(placed.share.cpu for placed in running)
            memory = site.memory - sum(placed.share.memory for placed in running)
            card = max(site.devices[gpu].card for gpu in idle)
            begun = {placed.trial for placed in order}
            for trial, share in enumerate(shares):
                fits = share.cpu <= cpus and share.memory <= memory and share.card <= card
                assert trial in begun or share.gpu > 1 or not fits

        run(Queue(enumerate(shares), site), rng, look)


def test_whatever_fits_anywhere_starts():
    for rng, site, shares in cases(40):

        def look(running, order, site=site, shares=shares):
            taken, _ = on_gpus(running, site)
            cpus = site.cpus - sum(placed.share.cpu for placed in running)
            memory = site.memory - sum(placed.share.memory for placed in running)
            begun = {placed.trial for placed in order}
            for trial, share in enumerate(shares):
                if trial in begun or share.cpu > cpus or share.memory > memory or share.gpu > 1:
                    continue
                room = [
                    1 - taken[gpu]
                    for gpu in range(site.gpus)
                    if site.devices[gpu].card >= share.card
                ]
                assert max(room) < share.gpu - 1e-3

        run(Queue(enumerate(shares), site), rng, look)


@pytest.mark.parametrize(("gpus", "cpus"), [(4, 4), (4, 6), (8, 10), (3, 100)])
def test_where_cpus_or_shares_limit_no_gpu_has_two_trials_more_than_another(gpus, cpus):
    queue = Queue(((i, Share(0.25, 1, GB)) for i in range(100)), Site(gpus, cpus, 1000 * GB))
    placed = []
    while found := queue.start():
        placed.append(found)
    _, trials = on_gpus(placed, Site(gpus, cpus, 1000 * GB))
    assert sum(trials) == min(cpus, 4 * gpus)
    assert max(trials) - min(trials) <= 1


def test_small_trials_share_a_gpu_where_large_ones_want_the_others():
    shares = [Share(0.25, 1, GB)] * 4 + [Share(1.0, 1, GB)] * 9
    queue = Queue(enumerate(shares), Site(4, 16, 1000 * GB))
    places = [queue.start().place for _ in range(7)]
    assert [place.gpus for place in places[:4]] == [(0,)] * 4
    assert [place.neighbours for place in places[:4]] == [0, 1, 2, 3]
    assert sorted(place.gpus[0] for place in places[4:]) == [1, 2, 3]


def test_no_gpu_is_kept_for_large_trials_that_cpus_would_not_let_start():
    shares = [Share(0.25, 1, GB)] * 4 + [Share(1.0, 1, GB)] * 9
    queue = Queue(enumerate(shares), Site(4, 4, 1000 * GB))
    gpus = [queue.start().place.gpus[0] for _ in range(4)]
    assert sorted(gpus) == [0, 1, 2, 3]


def test_a_trial_without_a_gpu_goes_where_most_cpus_are_free():
    nodes = (Node(1, 2, 9 * GB), Node(0, 8, 9 * GB))
    queue = Queue(((i, Share(0.0, 2, GB)) for i in range(9)), Site(1, 10, 18 * GB, nodes=nodes))
    assert [queue.start().place.node for _ in range(5)].count(1) == 4
    assert queue.start() is None
