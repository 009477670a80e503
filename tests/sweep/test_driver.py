"""Sweeps from the command line, with a toy model that fails in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fake_datasets import write_mvtec

pytestmark = pytest.mark.ray


@pytest.fixture
def site(tmp_path):
    """A folder with data and a sweep file that a test changes."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec",
        categories=("bottle", "wood"),
        train=6,
        good=3,
        defects=4,
        size=48,
    )
    return Site(tmp_path)


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = {
            "name": "s",
            "settings": {
                "dataset_dir": str(root / "datasets"),
                "output_dir": str(root / "outputs"),
                "backbone_dir": str(root / "backbones"),
                "cache_dir": str(root / "cache"),
                "plugins": ["toy_plugin"],
            },
            "grid": {"models": ["toy-ok"], "datasets": {"mvtec": "each"}},
            "overrides": {"toy-*": {"model": {"marks": str(root / "marks")}}},
        }

    def command(self, *options: str) -> list[str]:
        (self.root / "s.yaml").write_text(yaml.safe_dump(self.config))
        return [sys.executable, "-m", "adray.sweep", str(self.root / "s.yaml"), *options]

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables}
        return subprocess.run(
            self.command(*options), capture_output=True, text=True, timeout=550, env=environment
        )

    def starts(self) -> list[str]:
        """Behaviour of each trial that began, in order."""
        marks = self.root / "marks"
        return (
            [line.split()[0] for line in marks.read_text().splitlines()] if marks.exists() else []
        )

    def board(self) -> pd.DataFrame:
        return pd.read_csv(self.root / "outputs" / "sweeps" / "s" / "leaderboard.csv")


def test_the_same_file_again_runs_nothing_a_larger_grid_only_what_is_new_a_changed_field_only_its_model(
    site,
):
    first = site.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(site.starts()) == 2
    report = (site.root / "outputs" / "sweeps" / "s" / "report.html").read_text()
    assert report.count('"x":"done"') == 2
    assert set(site.board()["status"]) == {"done"}

    began = time.monotonic()
    again = site.run()
    assert again.returncode == 0
    assert "nothing to run" in again.stdout
    assert "2 done" in again.stdout
    assert len(site.starts()) == 2
    assert time.monotonic() - began < 30

    site.config["grid"]["models"] = ["toy-ok", "toy-positional"]
    larger = site.run()
    assert "4 trials (2 new, 2 done)" in larger.stdout
    assert len(site.starts()) == 4

    site.config["overrides"]["toy-positional"] = {"model": {"gain": 3.0}}
    changed = site.run()
    assert "toy-positional: model.gain: 2.0 -> 3.0" in changed.stdout
    assert "2 done, 2 stale" in changed.stdout
    assert len(site.starts()) == 6
    assert changed.returncode == 0


def test_each_way_of_failing_is_a_row_and_all_others_finish(site):
    site.config["grid"]["models"] = ["toy-*"]
    site.config["grid"]["exclude"] = [{"models": ["toy-hog", "toy-stop"]}]
    site.config["grid"]["datasets"] = {"mvtec": ["bottle"]}
    site.config["trial_hours"] = 25 / 3600
    done = site.run()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    board = site.board().set_index("configuration")
    reasons = board["reason"].fillna("")
    assert board.loc["toy-ok", "status"] == "done"
    assert board.loc["toy-positional", "status"] == "done"
    assert board.loc["toy-raise", "reason"] == "ValueError: toy went wrong"
    assert "crashed without a log" in reasons["toy-exit"]
    assert "crashed without a log" in reasons["toy-kill"]
    assert "Segmentation fault" in reasons["toy-segfault"]
    assert "took longer than 25 s (trial_hours" in reasons["toy-hang"]
    assert "out of memory" in reasons["toy-memory"]
    assert "no space left on the disk" in reasons["toy-no-space"]
    assert "NoneType" in reasons["toy-none"]
    failed = board[board["status"] == "failed"]
    assert len(failed) == 8
    for folder in failed["folder"]:
        names = {p.name for p in Path(folder).iterdir()}
        assert names == {"trial.json", "failure.json", "log.txt"}
        assert json.loads((Path(folder) / "failure.json").read_text())["log_tail"]
    assert not list((site.root / "outputs").rglob("*.partial"))

    retried = site.run("--no-retry")
    assert retried.returncode == 1
    assert "nothing to run" in retried.stdout


def test_a_failed_trial_is_tried_again_and_its_success_replaces_the_failure(site):
    site.config["grid"] = {"models": ["toy-raise"], "datasets": {"mvtec": ["bottle"]}}
    assert site.run().returncode == 1
    folder = Path(site.board()["folder"][0])
    trial = json.loads((folder / "trial.json").read_text())
    again = site.run()
    assert (
        "failed before, tried again: mvtec/bottle/toy-raise (ValueError: toy went wrong)"
        in again.stdout
    )
    assert json.loads((folder / "failure.json").read_text())["attempts"] == 2
    assert trial["id"].startswith(folder.name)


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure(site):
    site.config["grid"]["models"] = ["toy-raise", "toy-ok"]
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 8.0}}
    stopped = site.run("--fail-fast", "--num-cpus", "2")
    assert stopped.returncode == 1
    assert len(site.board()) < 4


@pytest.mark.slow
def test_a_sweep_whose_time_is_over_ends_with_what_is_finished_and_no_failure(site):
    site.config["grid"]["seeds"] = list(range(15))
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 6.0}}
    ended = site.run("--num-cpus", "2", "--minutes", "1")
    assert ended.returncode == 1
    assert "the time is over" in ended.stdout
    assert "crashed" not in ended.stdout
    assert set(site.board()["status"]) == {"done"}
    assert len(site.board()) < 30
    assert not list((site.root / "outputs").rglob("*.partial"))
    page = (site.root / "outputs" / "sweeps" / "s" / "report.html").read_text()
    assert '"progress":null' in page


def test_the_page_is_there_before_the_first_trial_and_plain_lines_are_short(site):
    process = subprocess.Popen(site.command(), stdout=subprocess.PIPE, text=True)
    seen = []
    while not any("the page, to keep open" in line for line in seen):
        seen.append(process.stdout.readline())
        assert process.poll() is None
    page = (site.root / "outputs" / "sweeps" / "s" / "report.html").read_text()
    assert page.count('"x":"waiting"') == 2
    rest, _ = process.communicate(timeout=300)
    lines = [line for line in rest.splitlines() if line.startswith("done ")]
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert '"x":"waiting"' not in (page := site.root / "outputs/sweeps/s/report.html").read_text()
    assert not (page.parent / "now.json").exists()


def test_kill_9_of_the_driver_leaves_only_unfinished_trials_to_run(site):
    site.config["grid"] = {"models": ["toy-ok"], "datasets": {"mvtec": "each"}, "seeds": [0, 1, 2]}
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 1.5}}
    mark = f"SWEEP_OF={site.root}"
    driver = subprocess.Popen(
        site.command("--num-cpus", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "SWEEP_OF": str(site.root)},
    )
    store = site.root / "outputs" / "mvtec"
    _wait_for(lambda: len(list(store.rglob("result.json"))) >= 2)
    assert _processes_with(mark)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # The orphaned worker may finish what it had begun, which is kept too.
    _wait_for(lambda: not _processes_with(mark), seconds=240)
    finished = {p: p.stat().st_mtime_ns for p in store.rglob("result.json")}
    before = len(site.starts())
    assert 2 <= len(finished) < 6
    again = site.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(list(store.rglob("result.json"))) == 6
    assert len(site.starts()) - before == 6 - len(finished)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    assert not list(store.rglob("*.partial"))


@pytest.mark.parametrize("process", ["gcs_server", pytest.param("raylet", marks=pytest.mark.slow)])
def test_kill_9_of_a_process_of_ray_ends_the_sweep_with_a_sentence_and_nothing_finished_is_lost(
    site, process
):
    site.config["grid"] = {
        "models": ["toy-ok"],
        "datasets": {"mvtec": ["bottle"]},
        "seeds": [0, 1, 2],
    }
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 5.0}}
    driver = subprocess.Popen(
        site.command("--num-cpus", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = site.root / "outputs" / "mvtec"
    _wait_for(lambda: list(store.rglob("result.json")))
    found = subprocess.run(
        ["pgrep", "-P", str(driver.pid), "-f", f"/{process} "], capture_output=True, check=True
    )
    began = time.monotonic()
    os.kill(int(found.stdout), signal.SIGKILL)
    printed, errors = driver.communicate(timeout=200)
    # Ray itself would wait a minute for the GCS, and for ever for the raylet.
    assert time.monotonic() - began < 50
    assert driver.returncode == 2
    assert f"({process}) is gone" in errors
    assert "To go on: python -m adray.sweep" in errors
    assert "Traceback" not in errors
    assert "state-dump" not in printed
    assert "rpc_client" not in errors

    again = site.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(list(store.rglob("result.json"))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_sweep_with_130_and_the_command_to_go_on(site, number):
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 30.0}}
    driver = subprocess.Popen(
        site.command("--num-cpus", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    _wait_for(lambda: site.starts())
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 130
    assert "To go on: python -m adray.sweep" in errors
    assert "--num-cpus 1" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=["sigterm", "ctrl-c", "sighup"],
)
@pytest.mark.parametrize("moment", ["at once", pytest.param("gcs", marks=pytest.mark.slow)])
def test_a_signal_while_ray_starts_ends_the_sweep_with_130_and_the_command_to_go_on(
    site, number, moment
):
    driver = subprocess.Popen(
        [*site.command("--num-cpus", "1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in driver.stdout:
        if "starting Ray" in line:
            break
    began = "/gcs_server " if moment == "gcs" else "adray.sweep.orphans"
    _wait_for(lambda: subprocess.run(["pgrep", "-P", str(driver.pid), "-f", began]).returncode == 0)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 130
    assert "To go on: python -m adray.sweep" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_trial_that_eats_the_hosts_memory_becomes_a_row_and_all_others_finish(site):
    """Ray's memory monitor ends a whole `Tuner.fit` for it; the threshold is set low so that it fires here."""
    site.config["grid"] = {
        "models": ["toy-hog", "toy-ok", "toy-positional"],
        "datasets": {"mvtec": ["bottle"]},
    }
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 1.0}}
    used = 1 - _available() + 0.12
    done = site.run(
        "--num-cpus",
        "2",
        RAY_memory_usage_threshold=f"{used:.3f}",
        RAY_memory_monitor_refresh_ms="100",
    )
    board = site.board().set_index("configuration")
    assert done.returncode == 1, done.stdout + done.stderr
    assert board.loc["toy-ok", "status"] == "done"
    assert board.loc["toy-positional", "status"] == "done"
    assert "memory" in board.loc["toy-hog", "reason"]


def _available() -> float:
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(values["MemAvailable"].split()[0]) / int(values["MemTotal"].split()[0])


@pytest.mark.slow
def test_out_of_memory_raises_the_retry_level_that_the_next_sweep_starts_from(site):
    site.config["grid"] = {"models": ["toy-narrow"], "datasets": {"mvtec": ["bottle"]}}
    site.config["overrides"]["toy-narrow"] = {"train": {"batch_size": 8}}
    first = site.run()
    assert first.returncode == 0, first.stdout + first.stderr
    said = " ".join(first.stdout.split())  # a line has at most 80 characters
    assert "out of memory; next with a quarter of the evaluation batch" in said
    assert len(site.starts()) == 2
    assert list(site.board()["retry_level"]) == [1]
    site.config["grid"]["datasets"] = {"mvtec": "each"}
    second = site.run()
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(site.starts()) == 3  # wood begins where bottle ended
    assert list(site.board()["retry_level"]) == [1, 1]
    record = next((site.root / "outputs").rglob("trial.json"))
    stored = json.loads(record.read_text())
    assert stored["assignment"]["train"]["batch_size"] == 8
    assert stored["assignment"]["train"]["eval_batch_size"] == 2


def test_on_fake_gpus_big_trials_start_first_and_shares_fill_every_device(site):
    site.config["grid"] = {
        "models": ["toy-ok", "toy-positional"],
        "datasets": {"mvtec": "each"},
        "seeds": [0, 1],
    }
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 3.0}}
    site.config["resources"] = [
        {"models": ["toy-ok"], "gpu": 1.0, "cpu": 1},
        {"models": ["toy-*"], "gpu": 0.5, "cpu": 1},
    ]
    site.config["keep"] = "best"
    done = site.run("--num-gpus", "4", "--num-cpus", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = [
        path.relative_to(site.root / "outputs").parts[1]
        for path in (site.root / "outputs").rglob("*.pth")
    ]
    assert sorted(kept) == ["bottle", "wood"]
    lines = [line.split() for line in (site.root / "marks").read_text().splitlines()]
    assert [float(line[-1]) for line in lines] == sorted(float(line[-1]) for line in lines)
    first = lines[:4]
    assert sorted(line[1] for line in first) == ["0", "1", "2", "3"]


def test_no_authentication_is_refused(site):
    refused = site.run(RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2
    # Before it stands a line of progress where looking took three seconds.
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(
        "error: RAY_AUTH_MODE=disabled lets anyone on the network run code here; unset it"
    )


def test_two_sweeps_at_once_on_one_store_leave_each_trial_once_and_whole(site):
    site.config["overrides"]["toy-ok"] = {"model": {"pause": 1.0}}
    drivers = [
        subprocess.Popen(
            site.command("--num-cpus", "1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    output = [driver.communicate(timeout=200)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], output
    folders = [p.parent for p in (site.root / "outputs" / "mvtec").rglob("result.json")]
    assert len(folders) == 2
    for folder in folders:
        assert {"trial.json", "scores.parquet", "log.txt"} <= {p.name for p in folder.iterdir()}
    assert not [p for p in (site.root / "outputs" / "mvtec").rglob(".*") if p.is_dir()]


def _processes_with(variable: str) -> list[str]:
    """Ids of the processes that have a variable in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if variable.encode() in file.read_bytes().split(b"\0"):
                found.append(file.parent.name)
    return found


def _wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)
