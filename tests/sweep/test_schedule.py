"""The simulated schedule."""

from __future__ import annotations

import numpy as np
import pytest

from adray.job import Job
from adray.registry import ModelRegistry
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Need, Share, Site
from adray.sweep.schedule import Scheduled, format_duration, format_schedule, simulate

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
            device = next((d for d in range(gpus) if free[d] >= ordered[i].share.gpu - 1e-3), None)
            if device is not None:
                free[device] -= ordered[i].share.gpu
                ends[i] = now + ordered[i].need.seconds
                running.append((i, device, ends[i]))
                waiting.remove(i)
        now += step
    return ends


def test_the_simulation_agrees_with_stepping_through_time():
    rng = np.random.default_rng(0)
    ordered = [
        scheduled(float(rng.integers(1, 20)), float(rng.choice([0.25, 0.5, 1.0])), seed=i)
        for i in range(40)
    ]
    slots = {slot.scheduled.trial.job.seed: slot.end for slot in simulate(ordered, BOX)}
    assert [slots[i] for i in range(40)] == pytest.approx(brute_force(ordered, 2, 1.0))


def test_big_trials_starve_behind_small_ones_that_come_later():
    """The measurement of Ray itself: 24 trials of a quarter for 1 s and two of a whole GPU for 3 s."""
    small = [scheduled(1.0 + 0.1 * (i % 5), 0.25, seed=i) for i in range(24)]
    big = [scheduled(3.0, 1.0, seed=100 + i) for i in range(2)]
    first, after = simulate(big + small, BOX), simulate(small[:8] + big + small[8:], BOX)
    assert max(slot.end for slot in first) < max(slot.end for slot in after)
    assert max(slot.start for slot in first if slot.scheduled.share.gpu == 1.0) == 0.0
    last = max(slot.start for slot in after if slot.scheduled.share.gpu == 1.0)
    assert sum(slot.start < last for slot in after if slot.scheduled.share.gpu < 1.0) >= 20


def test_no_device_is_ever_overbooked_and_long_trials_end_before_warm_processes_begin():
    rng = np.random.default_rng(1)
    names = ["stfpm", "padim"]
    ordered = [scheduled(float(rng.uniform(1, 9)), 1 / 3, names[i % 2], i) for i in range(30)]
    slots = simulate(ordered, BOX)
    assert len(slots) == 30
    for slot in slots:
        for device in slot.devices:
            together = [s for s in slots if device in s.devices and s.start <= slot.start < s.end]
            assert sum(s.scheduled.share.gpu for s in together) <= 1.001
    long = [s.end for s in slots if s.scheduled.trial.job.configuration == "stfpm"]
    short = [s.start for s in slots if s.scheduled.trial.job.configuration == "padim"]
    assert max(long) <= min(short)


def test_without_gpus_cpus_are_the_slots():
    site = Site(gpus=0, cpus=4, memory=10**12)
    assert (
        max(slot.end for slot in simulate([scheduled(2.0, 0.0, seed=i) for i in range(10)], site))
        == 6.0
    )


def test_a_long_schedule_is_summed_up():
    text = format_schedule([scheduled(60.0, 0.25, seed=i) for i in range(2000)], BOX)
    assert "and 1960 more" in text
    assert "2000 trials in about 4:10 h (2:05 h to 8:20 h)" in text
    assert "GPU 1: 1000 trials, busy 100 % of the time" in text
    assert len(text.splitlines()) < 60
    assert format_duration(200) == "3:20 min"
