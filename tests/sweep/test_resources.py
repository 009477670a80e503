from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from adray.config import ResourceRule, TrainConfig
from adray.errors import InputError
from adray.model_specs import ModelSpec
from adray.registry import Resolved
from adray.sweep.resources import (
    RETRY_LEVELS,
    SHARES,
    Need,
    Node,
    Share,
    Site,
    cpus_for,
    least_share,
    rule_for,
    share_at,
)

BOX = Site(gpus=4, cpus=16, memory=64 * 10**9)
NO_GPU = Site(gpus=0, cpus=16, memory=64 * 10**9)
OPEN = ResourceRule()


def asked(gpu=0.25, memory_gb=3.0, gpu_mb=None, busy=None):
    """A configuration, and what it is predicted to take."""
    spec = ModelSpec("padim", "x", "memory", "a.B", gpu=gpu, memory_gb=memory_gb)
    need = Need(60.0, 10.0, 100.0, memory_gb * 1000, gpu_mb, 0, busy)
    return Resolved(spec, None, TrainConfig()), need


@pytest.mark.parametrize("gpu", [0.01, 0.2, 0.25, 0.4, 0.6, 1.0])
def test_shares_are_quantised_and_never_below_what_the_row_needs(gpu):
    share = least_share(*asked(gpu), OPEN, BOX)
    assert share.gpu in SHARES
    assert share.gpu >= gpu - 1e-3


def test_cpus_are_divided_among_the_trials_that_run_at_once():
    assert cpus_for(1.0, 100, BOX) == 4
    assert cpus_for(0.25, 100, BOX) == 1
    assert cpus_for(0.25, 1, BOX) == 4
    assert [cpus_for(0, load, NO_GPU) for load in (100, 4, 1)] == [1, 4, 16]


@pytest.mark.parametrize("cpus", [1, 3, 8, 13, 64])
@pytest.mark.parametrize("shares", [[1.0] * 9, [0.25] * 3, [1.0, 0.25, 0.25, 0.25], [0.5] * 40])
def test_trials_that_fill_the_gpus_find_the_cpus_they_were_given(cpus, shares):
    """No more than there are, unless each has one only."""
    site = Site(4, cpus, 10**12)
    running = list(itertools.accumulate(shares))
    at_once = sum(total <= 4 for total in running)
    given = [cpus_for(gpu, running[-1], site) for gpu in shares[:at_once]]
    assert sum(given) <= cpus or min(given) == 1


def test_the_node_with_the_fewest_cpus_for_each_gpu_can_fill_its_gpus():
    nodes = (Node(4, 64, 10**12), Node(4, 8, 10**12))
    assert cpus_for(1.0, 100, Site(8, 72, 2 * 10**12, nodes=nodes)) == 2


def test_the_first_rule_that_matches_wins_and_leaves_the_rest_open():
    rules = (ResourceRule(("padim",), gpu=0.5), ResourceRule(("*",), gpu=1.0, cpu=3))
    assert rule_for("padim", rules) is rules[0]
    assert rule_for("dfkde", rules) is rules[1]
    assert rule_for("padim", ()) == ResourceRule()
    share = least_share(*asked(), rules[0], BOX)
    assert (share.gpu, share.cpu) == (0.5, 1)
    assert least_share(*asked(), ResourceRule(gpu=2.0, cpu=3), BOX).cpu == 3
    assert least_share(*asked(), ResourceRule(gpu=0.0), BOX).gpu == 0.0
    assert least_share(*asked(), OPEN, NO_GPU).gpu == 0


def test_a_trial_never_asks_for_more_than_there_is():
    assert least_share(*asked(memory_gb=500), OPEN, BOX).memory < BOX.memory
    with pytest.raises(InputError, match="gpu 8 is asked for, but there are 4"):
        least_share(*asked(), ResourceRule(gpu=8.0), BOX)
    with pytest.raises(InputError, match="asks for 99 CPUs, but there are 16"):
        least_share(*asked(), ResourceRule(cpu=99), BOX)


def test_a_measured_peak_decides_the_share_where_the_card_is_known():
    card = replace(BOX, gpu_memory=24 * 2**30)
    assert least_share(*asked(0.25, gpu_mb=2000.0), OPEN, card).gpu == 1 / 8
    assert least_share(*asked(0.25, gpu_mb=9000.0), OPEN, card).gpu == 1 / 2
    assert least_share(*asked(0.25, gpu_mb=9000.0), OPEN, BOX).gpu == 1 / 4


@pytest.mark.parametrize("busy", [0.05, 0.2, 0.3, 0.45, 0.6, 0.8, 0.97, 1.0])
@pytest.mark.parametrize("gpu", SHARES)
def test_as_many_trials_share_a_gpu_as_get_nearly_all_done_that_can_be(gpu, busy):
    """By hand: n trials that are busy for a part of the time get min(n, 1 / part) done."""
    share = least_share(*asked(gpu, busy=busy), OPEN, BOX).gpu
    most = min(round(1 / gpu), 1 / busy)
    assert share >= gpu
    assert min(round(1 / share), 1 / busy) >= 0.95 * most


def test_where_sharing_was_measured_not_to_pay_a_trial_has_its_gpu_for_itself():
    assert least_share(*asked(0.25, busy=1.0), OPEN, BOX).gpu == 1.0
    assert least_share(*asked(0.25, busy=None), OPEN, BOX).gpu == 0.25
    assert least_share(*asked(0.25, busy=1.0), ResourceRule(gpu=0.25), BOX).gpu == 0.25


def test_a_trial_takes_longer_where_more_share_a_gpu_than_it_bears():
    need = Need(60.0, 30.0, 120.0, 1000, None, 3, 0.5)
    assert need.on(1.0) == need
    assert need.on(0.5) == need
    slower = need.on(0.25)
    assert (slower.seconds, slower.low, slower.high) == (120.0, 60.0, 240.0)


def test_a_site_without_some_gpus_keeps_the_names_of_the_others():
    node = Node(3, 8, 10**9, (24, 80, 24), ("4", "5", "6"), host="box")
    site = Site(3, 8, 10**9, 80 * 10**9, (node,)).without({"box 5", "other 4"})
    assert site.gpus == 2
    assert [(device.name, device.card) for device in site.devices] == [("4", 24), ("6", 24)]


def test_each_retry_level_has_at_least_the_room_of_the_one_below_and_the_last_has_all():
    for start in (
        Share(0.25, 1, 4 * 10**9),
        Share(1 / 3, 1, 40 * 10**9),
        Share(1.0, 4, 10**9),
        Share(2.0, 4, 10**9),
    ):
        shares = [share_at(start, level, BOX) for level in RETRY_LEVELS]
        assert shares[0] == start
        assert all(b.gpu >= a.gpu and b.memory >= a.memory for a, b in itertools.pairwise(shares))
        assert shares[-1].gpu == max(1.0, start.gpu)
        assert shares[-1].memory == int(BOX.memory * 0.9)
    assert share_at(Share(0.25, 1, 10**9), RETRY_LEVELS[2], BOX).gpu == 0.5


def test_without_gpus_a_retry_level_asks_for_none():
    cpu = Site(gpus=0, cpus=4, memory=10**10)
    assert share_at(Share(0.0, 1, 10**9), RETRY_LEVELS[-1], cpu).gpu == 0
