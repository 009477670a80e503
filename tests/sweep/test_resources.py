from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from adray.config import ResourceRule, TrainConfig
from adray.errors import InputError
from adray.model_specs import ModelSpec
from adray.registry import Resolved
from adray.sweep.resources import RETRY_LEVELS, SHARES, Need, Share, Site, choose_share, share_at

BOX = Site(gpus=4, cpus=16, memory=64 * 10**9)
PLENTY = Site(gpus=4, cpus=1024, memory=8192 * 10**9)
"""A box on which GPUs alone are short."""


def resolved(gpu=0.25, memory_gb=3.0, **train):
    spec = ModelSpec("padim", "x", "memory", "a.B", gpu=gpu, memory_gb=memory_gb)
    return Resolved(spec, None, TrainConfig(**train))


def asked(gpu=0.25, memory_gb=3.0, gpu_mb=None):
    """A configuration, and what it is predicted to take."""
    return resolved(gpu, memory_gb), Need(60.0, 10.0, 100.0, memory_gb * 1000, gpu_mb, 0)


@pytest.mark.parametrize("pending", [1, 3, 4, 5, 9, 17, 1000])
@pytest.mark.parametrize("gpu", [0.01, 0.2, 0.25, 0.4, 0.6, 1.0])
def test_shares_are_quantised_and_never_below_what_the_row_needs(gpu, pending):
    share = choose_share(*asked(gpu), (), BOX, pending)
    assert share.gpu in SHARES
    assert share.gpu >= gpu - 1e-3


@pytest.mark.parametrize("gpu", SHARES)
def test_as_many_shares_as_promised_fit_one_device(gpu):
    share = choose_share(*asked(gpu), (), PLENTY, 1000)
    assert share.gpu == gpu
    assert round(1 / gpu) * share.bundle()["GPU"] <= 1


def test_few_pending_trials_get_larger_shares_so_that_no_gpu_idles():
    assert choose_share(*asked(0.25), (), BOX, 4).gpu == 1.0
    assert choose_share(*asked(0.25), (), BOX, 8).gpu == 0.5
    assert choose_share(*asked(0.25), (), BOX, 100).gpu == 0.25


def test_cpus_are_divided_among_the_trials_that_run_at_once():
    assert choose_share(*asked(1.0), (), BOX, 100).cpu == 4
    assert choose_share(*asked(0.25), (), BOX, 100).cpu == 1
    no_gpu = Site(gpus=0, cpus=16, memory=64 * 10**9)
    assert choose_share(*asked(), (), no_gpu, 100).cpu == 1
    assert choose_share(*asked(), (), no_gpu, 4).cpu == 4
    assert choose_share(*asked(), (), no_gpu, 100).gpu == 0


def test_the_first_rule_that_matches_wins_and_leaves_the_rest_open():
    rules = (ResourceRule(("padim",), gpu=0.5), ResourceRule(("*",), gpu=1.0, cpu=3))
    share = choose_share(*asked(), rules, BOX, 100)
    assert (share.gpu, share.cpu) == (0.5, 2)
    assert choose_share(*asked(), (ResourceRule(("all",), gpu=2.0),), BOX, 1).gpu == 2.0
    assert choose_share(*asked(), (ResourceRule(("*",), gpu=0.0),), BOX, 1).gpu == 0.0


def test_a_trial_never_asks_for_more_than_there_is():
    assert choose_share(*asked(memory_gb=500), (), BOX, 1).memory < BOX.memory
    with pytest.raises(InputError, match="gpu 8 is asked for, but there are 4"):
        choose_share(*asked(), (ResourceRule(gpu=8.0),), BOX, 1)
    with pytest.raises(InputError, match="asks for 99 CPUs, but there are 16"):
        choose_share(*asked(), (ResourceRule(cpu=99),), BOX, 1)


def test_a_measured_peak_decides_the_share_where_the_card_is_known():
    card = replace(PLENTY, gpu_memory=24 * 2**30)
    assert choose_share(*asked(0.25, gpu_mb=2000.0), (), card, 1000).gpu == 1 / 8
    assert choose_share(*asked(0.25, gpu_mb=9000.0), (), card, 1000).gpu == 1 / 2
    assert choose_share(*asked(0.25, gpu_mb=9000.0), (), BOX, 1000).gpu == 1 / 4


@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize("cpus", [1, 4, 7, 16, 64])
@pytest.mark.parametrize("memory_gb", [16, 64, 1024])
@pytest.mark.parametrize("gpu", [1 / 8, 1 / 4, 1 / 2])
def test_no_gpu_idles_while_another_holds_more_than_one_needs(gpus, cpus, memory_gb, gpu):
    """As Ray packs: one GPU is full before the next is opened."""
    site = Site(gpus, cpus, memory_gb * 10**9)
    rule = ResourceRule(gpu=gpu, cpu=1)
    share = choose_share(*asked(), (rule,), site, 1000)
    at_once = min(cpus, site.memory // share.memory)
    per_gpu = round(1 / share.gpu)

    assert share.gpu >= gpu
    # As many run at once as before, and on no GPU more than a fair part rounded up to a share.
    assert min(at_once, per_gpu * gpus) == min(at_once, round(1 / gpu) * gpus)
    coarser = [s for s in SHARES if s > share.gpu]
    assert all(round(1 / s) * gpus < at_once for s in coarser)


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
