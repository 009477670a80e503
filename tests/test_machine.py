"""What this machine is and what a process takes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from adray import __version__, machine
from adray.machine import Meter, environment

MEGABYTES = 200
FILL = f"""
from adray.machine import Meter, host_peak_mb, reset_peaks

def fill_memory():
    block = bytearray({MEGABYTES} * 2**20)
    block[::4096] = b"x" * len(block[::4096])

"""


def in_a_fresh_process(steps):
    """Run steps where no earlier test left free memory in the heap, which a new block would take."""
    run = [sys.executable, "-c", FILL + steps]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return json.loads(printed)


def test_the_environment_names_versions_and_threads():
    found = environment("cpu")
    assert found["adray"] == __version__
    assert torch.__version__.startswith(found["torch"])
    assert found["threads"] == torch.get_num_threads()
    assert found["device"].endswith(" CPU")


def test_peak_memory_counts_anew_after_a_reset():
    steps = "fill_memory(); before = host_peak_mb(); was_reset = reset_peaks('cpu')\n"
    steps += "print(f'[{before}, {str(was_reset).lower()}, {host_peak_mb()}]')"
    before, was_reset, after = in_a_fresh_process(steps)
    if not was_reset:
        pytest.skip("the kernel does not let peak memory be reset")
    assert after < before - MEGABYTES / 2


def test_the_peak_of_a_job_is_found_after_its_memory_was_given_back():
    steps = "meter = Meter('cpu'); at_first = meter.memory()['host_peak_mb']; fill_memory()\n"
    steps += "print(f'[{at_first}, {meter.memory()[\"host_peak_mb\"]}]')"
    at_first, peak = in_a_fresh_process(steps)
    assert peak > at_first + MEGABYTES / 2
    assert Meter("cpu").memory()["gpu_peak_mb"] is None


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


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups as files below a folder: what the kernel says of this process, and their limits."""

    def write(own: str, **files: str) -> None:
        lines = machine._lines_of
        monkeypatch.setattr(
            machine,
            "_lines_of",
            lambda path: own.splitlines() if path == "/proc/self/cgroup" else lines(path),
        )
        monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_the_smallest_limit_of_memory_from_the_root_down_counts(groups):
    everything = machine.available_memory()
    groups("0::/a/b", a__memory_dot_max="3000000000\n", a__b__memory_dot_max="max\n")
    assert machine.available_memory() == min(3 * 10**9, everything)


def test_limits_of_version_1_are_found_by_their_controller(groups):
    own = "5:cpuset:/x\n4:memory:/docker\n3:cpu,cpuacct:/docker\n"
    groups(own, memory__docker__memory_dot_limit_in_bytes="2000000000\n")
    assert machine.available_memory() == 2 * 10**9


@pytest.mark.parametrize(
    ("text", "cpus"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)]
)
def test_a_quota_of_cpus_counts_where_it_is_less_than_there_are(groups, text, cpus, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    groups("0::/", cpu_dot_max=text)
    assert machine.available_cpus() == (cpus or 8)


@pytest.mark.parametrize(("quota", "cpus"), [("150000", 2), ("-1", 8)])
def test_a_quota_of_cpus_of_version_1_counts_too(groups, quota, cpus, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    groups(
        "3:cpu,cpuacct:/docker\n",
        cpu__docker__cpu_dot_cfs_quota_us=quota,
        cpu__docker__cpu_dot_cfs_period_us="100000",
    )
    assert machine.available_cpus() == cpus


def test_without_control_groups_the_machine_counts(groups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    groups("")
    assert machine.available_cpus() == 8
    assert machine.available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
