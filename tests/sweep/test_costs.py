"""Predictions of what trials take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adray.config import to_plain
from adray.job import Job
from adray.registry import ModelRegistry
from adray.results.store import TrialRecord
from adray.sweep.costs import CostModel, hang_limit, without_unfit, work_units
from adray.sweep.plan import Plan, PlannedTrial
from adray.sweep.resources import Need, Site
from adray.sweep.schedule import in_order


def planned(name: str, images: int = 250, **train: object) -> PlannedTrial:
    resolved = ModelRegistry.resolve(name, train=train)
    return PlannedTrial(Job(resolved, ("mvtec",), ("bottle",), 42), "new", images=images)


def finished(
    trial: PlannedTrial,
    seconds: float,
    host_mb: float = 900.0,
    gpu_mb: float | None = None,
    neighbours: int | None = None,
) -> TrialRecord:
    resolved = trial.job.resolved
    identity = {
        "configuration": trial.job.configuration,
        "train": to_plain(resolved.train_config),
        "model": to_plain(resolved.config),
    }
    result = {
        "counts": {"train": trial.images},
        "timings": {"total_seconds": seconds},
        "memory": {"host_peak_mb": host_mb, "gpu_peak_mb": gpu_mb},
    }
    plain = {"id": "0" * 64, "identity": identity}
    if neighbours is not None:
        plain["assignment"] = {"neighbours": neighbours}
    return TrialRecord(Path("x"), plain, result, None)


def test_more_epochs_larger_images_and_more_steps_are_more_work():
    units = [
        work_units(planned("stfpm", num_epochs=n, img_size=size).job.resolved, 100)
        for n, size in ((3, 256), (9, 256), (9, 512))
    ]
    assert units == sorted(units)
    assert len(set(units)) == 3


def test_measured_trials_correct_a_guess_and_the_closest_ones_count():
    trial, other = planned("padim"), planned("patchcore-resnet18")
    guess = CostModel([], "cpu").need(trial)
    model = CostModel(
        [finished(trial, s) for s in (90.0, 100.0, 110.0)] + [finished(other, 7.0)], "cpu"
    )
    need = model.need(trial)
    assert need.seconds == pytest.approx(100.0, rel=1e-6)
    assert need.host_mb == pytest.approx(900.0)
    assert need.measured == 3
    assert need.low < 90 < 110 < need.high
    assert need.high / need.low < guess.high / guess.low
    # twice the images take twice the time
    assert model.need(planned("padim", images=500)).seconds == pytest.approx(200.0, rel=1e-6)
    # a configuration of the same family that was never measured follows the family, and claims no measurement
    assert model.need(planned("dfkde")).measured == 0


def test_nine_in_ten_of_trials_drawn_from_the_spread_lie_in_the_range():
    import numpy as np

    rng, inside = np.random.default_rng(0), []
    trial = planned("padim")
    for _ in range(300):
        times = 60 * np.exp(rng.normal(scale=0.3, size=9))
        need = CostModel([finished(trial, float(t)) for t in times[:8]], "cpu").need(trial)
        inside.append(need.low <= times[8] <= need.high)
    assert 0.8 < np.mean(inside) <= 1.0


def test_figures_of_a_gpu_say_nothing_of_a_cpu():
    trial = planned("padim")
    records = [finished(trial, 1.0, gpu_mb=2000.0)]
    assert CostModel(records, "cpu").need(trial) == CostModel([], "cpu").need(trial)
    assert CostModel(records, "cuda").need(trial).gpu_mb == 2000.0


def test_only_a_measured_peak_forbids_a_card_and_the_reason_names_both_sizes():
    small = Site(gpus=1, cpus=4, memory=64 * 2**30, gpu_memory=24 * 2**30)
    trial = planned("padim")
    plan = Plan((trial,), ())
    assert without_unfit(plan, CostModel([], "cuda"), small).trials[0].state == "new"
    measured = CostModel([finished(trial, 9.0, gpu_mb=31 * 1024.0)], "cuda")
    (skipped,) = without_unfit(plan, measured, small).trials
    assert skipped.state == "impossible"
    assert "31 GB" in skipped.reason
    assert "24 GB" in skipped.reason
    large = Site(gpus=1, cpus=4, memory=64 * 2**30, gpu_memory=80 * 2**30)
    assert without_unfit(plan, measured, large).trials[0].state == "new"


def test_a_guess_never_shortens_the_limit_and_a_retry_gets_all_of_it():
    sure, guess = Need(100, 80, 200, 1, None, 5), Need(100, 80, 200, 1, None, 0)
    assert hang_limit(guess, 24, 0) == 24 * 3600
    assert hang_limit(sure, 24, 0) == 1000.0
    assert hang_limit(sure, 24, 1) == 24 * 3600
    assert hang_limit(sure, 0.1, 0) == 360.0
    assert hang_limit(Need(1, 1, 2, 1, None, 5), 24, 0) == 600.0


def test_a_configuration_that_is_not_here_teaches_nothing():
    record = finished(planned("padim"), 5.0)
    record.trial["identity"]["configuration"] = "of-a-plug-in-that-is-gone"
    assert math.isfinite(CostModel([record], "cpu").need(planned("padim")).seconds)


def test_what_others_on_the_gpu_cost_is_learnt_from_trials_alone_and_beside_them():
    """Four that each want half of the GPU take twice as long as one alone."""
    trial = planned("padim")
    alone = [finished(trial, 100.0, gpu_mb=900.0, neighbours=0) for _ in range(3)]
    beside = [finished(trial, 200.0, gpu_mb=900.0, neighbours=3) for _ in range(5)]
    need = CostModel(alone + beside, "cuda").need(trial)
    assert need.gpu_busy == pytest.approx(0.5)
    assert need.seconds == pytest.approx(100.0)
    assert need.on(0.25).seconds == pytest.approx(200.0)
    assert CostModel(alone, "cuda").need(trial).gpu_busy is None
    assert CostModel(beside, "cuda").need(trial).gpu_busy is None


def test_sharing_that_slows_nobody_and_trials_of_unknown_neighbours_say_nothing_against_it():
    trial = planned("padim")
    alone = [finished(trial, 100.0, gpu_mb=900.0, neighbours=0)]
    beside = [finished(trial, 103.0, gpu_mb=900.0, neighbours=3)]
    unknown = [finished(trial, 400.0, gpu_mb=900.0)]
    assert CostModel(alone + beside, "cuda").need(trial).gpu_busy is None
    assert CostModel(alone + unknown, "cuda").need(trial).gpu_busy is None


def test_trials_that_gain_nothing_from_sharing_have_a_gpu_to_themselves():
    trial = planned("padim")
    alone = [finished(trial, 100.0, gpu_mb=900.0, neighbours=0)]
    beside = [finished(trial, 400.0, gpu_mb=900.0, neighbours=3)]
    site = Site(gpus=2, cpus=8, memory=64 * 2**30, gpu_memory=80 * 2**30)
    costs = CostModel(alone + beside, "cuda")
    assert {entry.share.gpu for entry in in_order([trial] * 9, costs, (), site)} == {1.0}
    unlearned = in_order([trial] * 9, CostModel(alone, "cuda"), (), site)
    assert max(entry.share.gpu for entry in unlearned) < 1.0
