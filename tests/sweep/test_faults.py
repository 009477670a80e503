"""What a sweep survives: killed workers, a store that goes away, a bad device, a second driver, a second Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_datasets import write_mvtec
from toy_sweep import results, toy_settings, wait_for

from adray.config import TrainConfig
from adray.machine import host_identity
from adray.results.store import is_taken
from adray.settings import Settings
from adray.sweep.assignment import Assignment
from adray.sweep.devices import DeviceWatch


@pytest.fixture
def site(tmp_path):
    write_mvtec(
        tmp_path / "datasets" / "mvtec",
        categories=("bottle", "wood"),
        train=6,
        good=3,
        defects=4,
        size=48,
    )
    return tmp_path


def write(site: Path, seeds: int = 10, name: str = "s", **changes: object) -> Path:
    file = site / f"{name}.yaml"
    config = {
        "name": name,
        "settings": toy_settings(site),
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": "each"}, "seeds": list(range(seeds))},
        "overrides": {"toy-*": {"model": {"marks": str(site / "marks"), "pause": 0.5}}},
        "save_maps": 0,
        **changes,
    }
    file.write_text(yaml.safe_dump(config))
    return file


def start(file: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "adray.sweep", str(file), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )


def workers(driver: subprocess.Popen[str]) -> list[int]:
    """The processes of this sweep in which trials run."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            title = (folder / "cmdline").read_bytes()
            if b"ray::SweepTrial" in title or b"ray::ResourceTrainable" in title:
                found.append(int(folder.name))
        except OSError:
            continue

    def descends(pid: int) -> bool:
        return pid == driver.pid or (pid in parents and descends(parents[pid]))

    return [pid for pid in sorted(found) if descends(pid)]


@pytest.mark.ray
def test_killed_workers_cost_only_the_trials_in_them_and_no_visible_result_is_computed_again(site):
    driver, rng, killed = start(write(site)), np.random.default_rng(0), 0
    deadline = time.monotonic() + 240
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(float(rng.uniform(1.0, 2.0)))
        found = workers(driver)
        if found and killed < 3:
            os.kill(found[int(rng.integers(len(found)))], signal.SIGKILL)
            killed += 1
    output = driver.communicate()[0]
    assert driver.returncode == 0, output
    assert killed == 3
    assert len(results(site)) == 20
    # each trial starts once, and once more for each kill at most
    assert 20 <= len((site / "marks").read_text().splitlines()) <= 20 + killed
    assert not list((site / "outputs").rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_that_goes_away_for_a_while_loses_nothing_and_is_not_made_anew_below_its_mount(
    site,
):
    driver = start(write(site))
    wait_for(site, 4)
    before = results(site)
    (site / "outputs").rename(site / "away")
    time.sleep(6)
    assert not (site / "outputs").exists()
    (site / "away").rename(site / "outputs")
    output = driver.communicate(timeout=240)[0]
    assert driver.returncode == 0, output
    assert len(results(site)) == 20
    assert {name: results(site)[name] for name in before} == before
    assert "could not be reached" in output or "is not there" in output


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_that_is_read_only_for_a_while_is_waited_for_and_loses_nothing(site):
    if os.geteuid():
        pytest.skip("mounting needs root")
    outputs = site / "outputs"
    outputs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", outputs], check=True)
    try:
        driver = start(write(site, seeds=4), "--num-cpus", "1")
        wait_for(site, 3)
        while subprocess.run(
            ["mount", "-o", "remount,ro", outputs], capture_output=True
        ).returncode:
            pass  # not while a file is open for writing
        before = results(site)
        time.sleep(8)
        assert results(site) == before
        subprocess.run(["mount", "-o", "remount,rw", outputs], check=True)
        output = driver.communicate(timeout=240)[0]
        assert driver.returncode == 0, output
        assert len(results(site)) == 8
        assert {name: results(site)[name] for name in before} == before
    finally:
        subprocess.run(["umount", "-l", outputs], check=True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_process_that_is_stopped_and_hears_nothing_is_ended_after_its_limit(site):
    grid = {"models": ["toy-ok", "toy-stop"], "datasets": {"mvtec": ["bottle"]}}
    driver = start(write(site, grid=grid, trial_hours=0.003), "--num-cpus", "1")
    output = driver.communicate(timeout=240)[0]
    assert driver.returncode == 1, output
    (failure,) = (site / "outputs").rglob("failure.json")
    assert json.loads(failure.read_text())["kind"] == "timeout"
    assert len(results(site)) == 1


@pytest.mark.slow
@pytest.mark.ray
def test_a_device_on_which_different_models_fail_is_put_aside_and_its_trials_run_elsewhere(site):
    names = ["toy-device-a", "toy-device-b", "toy-device-c", "toy-device-d"]
    grid = {"models": names, "datasets": {"mvtec": "each"}, "seeds": [1, 2]}
    file = write(site, grid=grid, resources=[{"gpu": 1.0, "cpu": 1}])
    driver = start(file, "--num-gpus", "2", "--num-cpus", "2")
    output = driver.communicate(timeout=240)[0]
    assert driver.returncode == 0, output
    assert "it is put aside" in output
    assert len(results(site)) == 16
    places = {
        json.loads((p.parent / "trial.json").read_text())["environment"]["visible_gpus"]
        for p in (site / "outputs").rglob("result.json")
    }
    assert places == {"0"}


@pytest.mark.slow
@pytest.mark.ray
def test_two_drivers_share_the_work_and_neither_repeats_the_other(site):
    first = start(write(site, seeds=6))
    wait_for(site, 1)
    second = start(write(site, seeds=6, name="t"))
    outputs = [driver.communicate(timeout=240)[0] for driver in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(results(site)) == 12
    assert (
        len((site / "marks").read_text().splitlines()) <= 13
    )  # each looks whether the other is at work


@pytest.mark.slow
@pytest.mark.ray
def test_a_second_ctrl_c_ends_at_once_and_the_next_run_finishes(site):
    file = write(
        site, seeds=3, overrides={"toy-*": {"model": {"marks": str(site / "marks"), "pause": 3.0}}}
    )
    driver = start(file, "--num-cpus", "1")
    wait_for(site, 1)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=200)
    assert driver.returncode == 130
    assert time.monotonic() - began < 10
    again = start(file)
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    assert len(results(site)) == 6


def assignment(folder: Path, name: str) -> Assignment:
    identity = {"configuration": name}
    return Assignment("0" * 8, name, str(folder), identity, TrainConfig(), Settings(), 60.0)


def ran(tmp_path: Path, name: str, gpu: str) -> Assignment:
    folder = tmp_path / name / gpu
    folder.mkdir(parents=True, exist_ok=True)
    trial = {"identity": {"configuration": name}, "environment": {"host": "h", "visible_gpus": gpu}}
    (folder / "trial.json").write_text(json.dumps(trial))
    return assignment(folder, name)


def test_a_device_is_suspected_only_for_different_models_in_a_row_and_while_another_works(tmp_path):
    watch = DeviceWatch(1)
    for name in ("a", "b", "c"):
        watch.note(ran(tmp_path, name, "1"), worked=False)
    assert not watch.put_aside()  # nothing works anywhere
    watch.note(ran(tmp_path, "a", "0"), worked=True)
    assert {k: len(v) for k, v in watch.put_aside().items()} == {"h 1": 3}
    assert not watch.put_aside()

    same = DeviceWatch(1)
    same.note(ran(tmp_path, "a", "0"), worked=True)
    for _ in range(5):
        same.note(ran(tmp_path, "a", "1"), worked=False)
    same.note(ran(tmp_path, "b", "1"), worked=True)
    for name in ("a", "b"):
        same.note(ran(tmp_path, name, "1"), worked=False)
    assert not same.put_aside()


def test_another_sweep_counts_while_its_driver_runs(tmp_path):
    final = tmp_path / "0123abcd"
    host = host_identity()
    partial = tmp_path / f".0123abcd.{host}-77.partial"
    partial.mkdir()

    def owned_by(driver: str) -> bool:
        (partial / "trial.json").write_text(json.dumps({"assignment": {"driver": driver}}))
        return is_taken(final, f"{host}-1234567")

    gone = subprocess.Popen(["true"])
    gone.wait()
    assert owned_by(f"{host}-{os.getpid()}")
    assert not owned_by(f"{host}-{gone.pid}")
    assert not owned_by(f"{host}-1234567")
    assert owned_by("elsewhere-1")
    # a machine of the same name, whose process numbers say nothing here
    assert owned_by(f"{os.uname().nodename}.000000-{gone.pid}")
    old = time.time() - 7200
    os.utime(partial / "trial.json", (old, old))
    assert not is_taken(final, "x-1")
