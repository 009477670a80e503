"""The worker's end, without Ray's processes and without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from adray.sweep import worker


@pytest.mark.parametrize(("gpu", "fraction"), [(0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_a_trial_may_take_its_share_of_the_gpu_and_no_more(monkeypatch, tmp_path, gpu, fraction):
    asked, ran_on = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    monkeypatch.setattr(
        worker, "run_trial", lambda message, threads, device, report: ran_on.append(device) or {}
    )
    trial = worker.SweepTrial.__new__(worker.SweepTrial)
    trial.reset_config(_given(_in_store(tmp_path), gpu))
    assert trial.step() == {"done": True}
    assert asked == [fraction]
    assert ran_on == ["cuda"]


def test_a_worker_that_is_set_up_has_what_trials_need_and_collects_garbage():
    program = (
        "import gc, sys; from adray.sweep.worker import SweepTrial as S; S.__new__(S).setup({})"
    )
    program += "; print(gc.isenabled(), *sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded[0] == "True"
    assert {"torch", "timm", "adray.job"} <= set(loaded)


def test_a_trial_without_a_share_runs_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        worker, "run_trial", lambda message, threads, device, report: {"on": device}
    )
    trial = worker.SweepTrial.__new__(worker.SweepTrial)
    trial.reset_config(_given(_in_store(tmp_path), 0.0))
    assert trial.step()["on"] == "cpu"


def test_a_trial_whose_store_is_gone_fails_for_now_and_makes_no_folder(tmp_path):
    trial = worker.SweepTrial.__new__(worker.SweepTrial)
    gone = tmp_path / "mount"
    trial.reset_config(_given({"settings": {"output_dir": str(gone)}}, 0.0))
    assert trial.step()["kind"] == "io"
    assert not gone.exists()


def _given(message, gpu):
    return {"trial": json.dumps({"message": message, "threads": 1, "gpu": gpu})}


def _in_store(folder):
    (folder / "sweeps").mkdir()
    return {"settings": {"output_dir": str(folder)}}
