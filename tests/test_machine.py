"""What this machine is and what a process takes of it."""

from __future__ import annotations

import time

import pytest
import torch

from adray import __version__
from adray.machine import Meter, environment, host_peak_mb, reset_peaks

MEGABYTES = 200


def fill_memory():
    block = bytearray(MEGABYTES * 2**20)
    block[::4096] = b"x" * len(block[::4096])


def test_the_environment_names_versions_and_threads():
    found = environment("cpu")
    assert found["adray"] == __version__
    assert torch.__version__.startswith(found["torch"])
    assert found["threads"] == torch.get_num_threads()
    assert found["device"].endswith(" CPU")


def test_peak_memory_counts_anew_after_a_reset():
    fill_memory()
    before = host_peak_mb()
    if not reset_peaks("cpu"):
        pytest.skip("the kernel does not let peak memory be reset")
    assert host_peak_mb() < before - MEGABYTES / 2


def test_the_peak_of_a_job_is_found_after_its_memory_was_given_back():
    meter = Meter("cpu")
    at_first = meter.memory()["host_peak_mb"]
    fill_memory()
    assert meter.memory()["host_peak_mb"] > at_first + MEGABYTES / 2
    assert meter.memory()["gpu_peak_mb"] is None


def test_laps_add_up_to_the_total():
    meter = Meter("cpu")
    for name in ("data_seconds", "fit_seconds"):
        time.sleep(0.02)
        meter.lap(name)
    timings = meter.timings()
    assert list(timings) == ["data_seconds", "fit_seconds", "total_seconds", "cpu_seconds"]
    assert min(timings["data_seconds"], timings["fit_seconds"]) >= 0.02
    laps = timings["data_seconds"] + timings["fit_seconds"]
    assert timings["total_seconds"] == pytest.approx(laps, abs=2e-4)
