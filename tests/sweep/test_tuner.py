"""Both ends of Ray Tune, without Ray's processes and without a GPU."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ray import cloudpickle
from test_assignment import an_assignment

from adray.config import to_plain
from adray.sweep import tuner
from adray.sweep.assignment import Outcome, outcome_from


@pytest.fixture(autouse=True)
def _same_gpus_afterwards(monkeypatch):
    """A worker hides GPUs from its process, which here is that of all tests."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.fixture
def in_store(tmp_path):
    """An assignment whose store is there."""
    (tmp_path / "sweeps").mkdir()
    return an_assignment(tmp_path)


def run(assignment):
    """What a worker reports to Tune."""
    trial = tuner.SweepTrial.__new__(tuner.SweepTrial)
    trial.reset_config({"trial": json.dumps({"assignment": to_plain(assignment)})})
    return trial.step()


@pytest.mark.parametrize(("gpu", "fraction"), [(0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_a_trial_may_take_its_share_of_the_gpu_and_no_more(monkeypatch, in_store, gpu, fraction):
    asked, ran_on = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    monkeypatch.setattr(
        tuner,
        "run_assignment",
        lambda assignment, device, report: ran_on.append(device) or Outcome("done"),
    )
    assert run(replace(in_store, gpu=gpu))["done"] is True
    assert asked == [fraction]
    assert ran_on == ["cuda"]


def test_a_worker_that_is_set_up_has_what_trials_need_and_collects_garbage():
    program = (
        "import gc, sys; from adray.sweep.tuner import SweepTrial as S; S.__new__(S).setup({})"
    )
    program += "; print(gc.isenabled(), *sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded[0] == "True"
    assert {"torch", "adray.trial"} <= set(loaded)


def test_a_worker_sees_the_gpus_that_its_trial_was_given_and_no_others(monkeypatch, in_store):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        tuner,
        "run_assignment",
        lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or Outcome("done"),
    )
    run(replace(in_store, gpu=2.0, visible_gpus="2,3"))
    run(in_store)
    assert seen == ["2,3", ""]


def test_a_trial_without_a_share_runs_on_the_cpu(monkeypatch, in_store):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        tuner,
        "run_assignment",
        lambda assignment, device, report: Outcome("done", reason=device),
    )
    assert run(in_store)["reason"] == "cpu"


def test_a_trial_whose_store_is_gone_fails_for_now_and_makes_no_folder(tmp_path):
    gone = tmp_path / "mount"
    assert run(an_assignment(gone))["kind"] == "io"
    assert not gone.exists()


def test_what_a_worker_reports_is_read_as_the_same_outcome(in_store):
    for outcome in (Outcome("done", "", "", 0.5, 3.0), Outcome("failed", "io", "away")):
        assert outcome_from({**to_plain(outcome), "training_iteration": 1}, in_store) == outcome


def test_a_trial_that_ended_without_a_status_was_stopped_if_watched_and_crashed_if_not(in_store):
    last = {"objective": 0.4, "percent": 25.0}
    stopped = outcome_from(last, replace(in_store, watched=True))
    assert (stopped.status, stopped.objective, stopped.percent) == ("stopped", 0.4, 25.0)
    assert outcome_from(None, in_store) == Outcome("crashed", "silent")


@pytest.mark.parametrize("kind", [tuner._Feed, tuner._Callback, tuner._Stopper])
def test_tune_writes_nothing_of_a_source_down_which_may_hold_what_cannot_be(kind):
    source = SimpleNamespace(draws=(number for number in range(3)))
    with pytest.raises(TypeError, match="generator"):
        pickle.dumps(source)
    written = cloudpickle.dumps(kind(source))
    assert not hasattr(cloudpickle.loads(written), "_source")
